"""Work on tables: off the loop, unless it is done sooner than a thread would begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

FEW_BYTES = 256 * 1024
FEW_COLUMNS = 64
"""What is small: a wide table has a price per column."""


def is_small(table: Any, limit: int = FEW_BYTES) -> bool:
    """Whether a pass over an Arrow table takes a fraction of a millisecond, and it has room in
    ``limit`` bytes of memory."""
    few = table.nbytes <= FEW_BYTES <= limit
    return bool(few and table.num_columns <= FEW_COLUMNS)


async def beside(small: bool, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``call`` in a thread; here where its data is ``small``: each hop costs 0.1 ms."""
    if small:
        return call(*args, **kwargs)
    return await asyncio.to_thread(call, *args, **kwargs)
