"""Bytes in: byte ranges of files, row groups, validation on Arrow columns, the load pipeline."""
