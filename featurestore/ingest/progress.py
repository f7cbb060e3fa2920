"""How far a load is, told to whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far an ingest has come: in the present ``file`` and in all.

    Totals are None where a source does not say how long it is. Rows of a file that ended in an
    error are not kept; ``finished`` marks the last report of a file.
    """

    file: str
    rows_done: int
    rows_total: int | None
    bytes_done: int
    bytes_total: int | None
    files_done: int
    files_total: int
    finished: bool = False


OnProgress = Callable[[Progress], None]
