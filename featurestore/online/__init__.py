"""Feature vectors out: a request resolved to a statement, its rows to vectors."""
