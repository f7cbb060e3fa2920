"""Which tables are so small that work on them is done sooner than a thread would begin."""

from __future__ import annotations

from typing import Any

FEW_BYTES = 256 * 1024
FEW_COLUMNS = 64
"""What is small: a wide table has a price per column."""
FEW_PIECES = 128
"""Chunks of all columns: to sum up their bytes takes some 4 µs for each."""


def is_small(table: Any, limit: int = FEW_BYTES) -> bool:
    """Whether a pass over an Arrow table takes a fraction of a millisecond, and it has room in
    ``limit`` bytes of memory."""
    if table.num_columns > FEW_COLUMNS or limit < FEW_BYTES:
        return False
    pieces = sum(table.column(number).num_chunks for number in range(table.num_columns))
    return bool(pieces <= FEW_PIECES and table.nbytes <= FEW_BYTES)
