"""Copies of history in Parquet: made once, kept up to date from mark to mark."""
