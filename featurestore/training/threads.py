"""Work on tables: off the loop, unless it is done sooner than a thread would begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_FEW_BYTES = 256 * 1024
_FEW_COLUMNS = 64


def is_small(table: Any) -> bool:
    """Whether a pass over an Arrow table takes a fraction of a millisecond."""
    return bool(table.nbytes <= _FEW_BYTES and table.num_columns <= _FEW_COLUMNS)


async def beside(small: bool, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``call`` in a thread; here where its data is ``small``: each hop costs 0.1 ms."""
    if small:
        return call(*args, **kwargs)
    return await asyncio.to_thread(call, *args, **kwargs)
