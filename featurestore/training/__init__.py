"""Training sets: entity rows in, the features as they were known at each row's time out."""
