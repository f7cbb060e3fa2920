"""Which tables are so small that work on them is done sooner than a thread would begin."""

from __future__ import annotations

from typing import Any

FEW_BYTES = 256 * 1024
FEW_COLUMNS = 64
"""What is small: a wide table has a price per column."""


def is_small(table: Any, limit: int = FEW_BYTES) -> bool:
    """Whether a pass over an Arrow table takes a fraction of a millisecond, and it has room in
    ``limit`` bytes of memory."""
    few = table.nbytes <= FEW_BYTES <= limit
    return bool(few and table.num_columns <= FEW_COLUMNS)
