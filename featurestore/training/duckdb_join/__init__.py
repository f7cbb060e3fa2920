"""The join in DuckDB, beside the database: for entity tables as large as history."""
