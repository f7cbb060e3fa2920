"""How much memory a training set may take, and what each stage gets of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pyarrow as pa

from featurestore.errors import DefinitionError

_MIB = 1 << 20
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)B|([KMGT])iB)", re.IGNORECASE)

LEAST = 128 * _MIB
_MOST = 1 << 50  # no machine has that much, and DuckDB takes no larger number
THREAD_BYTES = 128 * _MIB
"""What DuckDB wants for each thread to sort with, by its guide for performance."""

POOL = pa.system_memory_pool()
"""Where large columns are gathered. Arrow's own allocator asks the kernel for huge pages, which it
may have to move others about for: a million rows took 0.4 to 0.8 s of system time by that, and take
0.15 s from here."""

DEFAULT_MOST = 8 << 30
"""Without a limit a quarter of the machine's memory is taken, and no more than this."""


@dataclass(frozen=True)
class Memory:
    """Bytes for DuckDB (``engine``), for history held beside it, and for results before they go
    to the disk."""

    engine: int
    history: int
    results: int
    threads: int

    @classmethod
    def of(cls, limit: int | str | None) -> Memory:
        """``limit`` is DuckDB's; half as much again may be history or results in memory."""
        total = _default() if limit is None else parse_size(limit)
        results = max(total // 2, LEAST)
        threads = max(1, min(os.cpu_count() or 1, total // THREAD_BYTES))
        return cls(total, total // 2, results, threads)


def parse_size(size: int | str) -> int:
    """A number of bytes, or text such as ``"1GB"`` or ``"512 MiB"``."""
    if isinstance(size, int) and not isinstance(size, bool):
        count = min(size, _MOST)
    elif isinstance(size, str) and (match := _SIZE.fullmatch(size.strip())):
        factor = _BINARY[match[3].upper()] if match[3] else _UNITS[(match[2] or "").upper()]
        count = int(min(float(match[1]) * factor, _MOST))
    else:
        raise DefinitionError(
            f"memory_limit={size!r}: it is a number of bytes, or text such as '4GB' or '512MiB'."
        )
    if count < LEAST:
        raise DefinitionError(f"memory_limit={size!r}: {LEAST // _MIB} MiB are the least.")
    return count


def _default() -> int:
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return 2 << 30
    return max(LEAST, min(physical // 4, DEFAULT_MOST))
