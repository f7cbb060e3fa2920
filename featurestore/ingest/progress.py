"""How far a load is, told to whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["starting", "reading", "finishing", "done"]


@dataclass(frozen=True)
class Progress:
    """How far an ingest has come: in ``file``, the one of this ``file_number`` from 1, and in all.

    Files may run side by side; each is told of by itself. ``rows_done`` rows of it are with the
    database; ``bytes_done`` of its needed columns are read, which is ahead of that. Totals are
    None where a source does not say how long it is. ``phase`` is

    - "starting": it waits for its turn, and is looked up in the ledger;
    - "reading": rows are read, checked and written;
    - "finishing": all rows are with the database, which makes an index, brings keys online and
      commits. That may take as long as half of the reading, and nothing is told meanwhile;
    - "done": it was loaded or skipped. A file that failed does not come that far.

    ``load_id`` is its load, from "reading" on. ``rows_kept`` rows were committed and stay if the
    ingest breaks off now (``commit_every``), ``rows_before`` of them by an earlier call.
    """

    file: str
    rows_done: int
    rows_total: int | None
    bytes_done: int
    bytes_total: int | None
    files_done: int
    files_total: int
    file_number: int = 1
    phase: Phase = "reading"
    load_id: int | None = None
    rows_before: int = 0
    rows_kept: int = 0

    @property
    def finished(self) -> bool:
        """Whether this is the last report of its file."""
        return self.phase == "done"


OnProgress = Callable[[Progress], None]


class Told:
    """What is told of the files of one ingest; ``on_progress`` is called on the loop."""

    def __init__(self, on_progress: OnProgress | None, files: int) -> None:
        self._on_progress = on_progress
        self.files = files
        self.done = 0

    def of(self, index: int, name: str, rows: int) -> ToldOfFile:
        """Begin with the file at ``index``, which has so many rows."""
        start = Progress(name, 0, rows, 0, None, self.done, self.files, index + 1, "starting")
        return ToldOfFile(self, start)

    def tell(self, now: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(replace(now, files_done=self.done))


class ToldOfFile:
    """What is told of one file: made as it starts, each call is a report."""

    def __init__(self, told: Told, start: Progress) -> None:
        self._told = told
        self._now = start
        self._tell()

    def begins(self, load_id: int, rows: int, size: int) -> None:
        """Its rows begin to be written, after the first ``rows``, which are committed; ``size``
        bytes of it are needed."""
        now = self._now
        self._tell(
            phase="reading",
            load_id=load_id,
            rows_done=rows,
            rows_kept=rows,
            rows_before=rows if now.load_id is None else now.rows_before,
            bytes_total=size,
        )

    def read(self, size: int) -> None:
        """So many more bytes were read."""
        if size:
            self._tell(bytes_done=self._now.bytes_done + size)

    def stored(self, rows: int) -> None:
        """The database has its first ``rows``."""
        if rows == self._now.rows_total:
            self.finishing()
        else:
            self._tell(rows_done=rows)

    def finishing(self) -> None:
        """All rows are with the database."""
        if self._now.phase != "finishing":
            self._tell(phase="finishing", rows_done=self._now.rows_total)

    def finished(self) -> None:
        """It was loaded, or skipped."""
        self._told.done += 1
        self._tell(phase="done")

    def _tell(self, **changes: object) -> None:
        self._now = replace(self._now, **changes)  # type: ignore[arg-type]
        self._told.tell(self._now)
