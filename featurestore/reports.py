"""What calls that write answer with: frozen values that print as short tables."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def write_warnings(rows_future: int, rows_rejected: int) -> tuple[str, ...]:
    """What a report says of rows ahead of the clock, and of rows in quarantine."""
    warnings = []
    if rows_future:
        warnings.append(
            f"{rows_future:,} rows lie ahead of the database's clock: they are in history, and "
            f"come online with the first materialize, or write to their key, after their time"
        )
    if rows_rejected:
        warnings.append(f"{rows_rejected:,} invalid rows were set aside in quarantine")
    return tuple(warnings)


@dataclass(frozen=True)
class LoadReport:
    """One file (or Arrow object) of an ingest: what became of its rows.

    ``skipped`` says that the same content was there already; ``load_id`` is then the load that
    brought it. ``rows_future`` counts rows too far ahead of the database's clock to be online.
    ``rows_before`` rows had been read by an earlier call, which broke off (``commit_every``): this
    one went on after them, and its other figures are of this call alone.
    """

    load_id: int
    source: str
    skipped: bool
    rows_read: int
    rows_written: int
    rows_rejected: int
    rows_future: int
    seconds: float
    rows_before: int = 0

    @property
    def note(self) -> str:
        """What is particular about it, in a few words; mostly nothing."""
        if self.skipped:
            return "skipped"
        notes = []
        if self.rows_before:
            notes.append(f"from row {self.rows_before:,}")
        if self.rows_future:
            notes.append(f"{self.rows_future:,} in the future")
        return ", ".join(notes)


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did, in all and per file (``loads``), in ``seconds`` of wall time.

    Printing it shows a short table: 80 columns and 20 files, long names and lists cut.
    """

    view: str
    loads: tuple[LoadReport, ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def rows_read(self) -> int:
        return sum(load.rows_read for load in self.loads)

    @property
    def rows_written(self) -> int:
        return sum(load.rows_written for load in self.loads)

    @property
    def rows_rejected(self) -> int:
        return sum(load.rows_rejected for load in self.loads)

    @property
    def rows_future(self) -> int:
        """Rows in history that come online only after their time."""
        return sum(load.rows_future for load in self.loads)

    def __str__(self) -> str:
        lines = _table(self.loads)
        rate = self.rows_written / self.seconds if self.seconds else 0.0
        lines.append(
            f"{self.view}: {self.rows_written:,} rows in {self.seconds:.2f} s ({rate:,.0f} rows/s)"
        )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


_COLUMNS = 80
_SHOWN = 20
_SHORTEST = 16


def _table(loads: Sequence[LoadReport]) -> list[str]:
    """The loads as lines, those in the middle of very many left out."""
    half = _SHOWN // 2
    shown = loads if len(loads) <= _SHOWN else (*loads[:half], *loads[-half:])
    rows: list[tuple[str, ...]] = [("source", "load", "read", "written", "rejected", "note")]
    for load in shown:
        counts = (f"{count:,}" for count in (load.rows_read, load.rows_written, load.rows_rejected))
        rows.append((load.source, str(load.load_id), *counts, load.note))
    numbers = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:-1]]
    beside = sum(numbers) + 2 * len(numbers)
    if notes := max(len(load.note) for load in shown) if shown else 0:
        beside += 2 + notes
    room = max(_COLUMNS - beside, _SHORTEST)
    sources = [one if len(one) <= room else f"…{one[1 - room :]}" for one, *_ in rows]
    width = max(map(len, sources))
    lines = []
    for source, (_, *cells, note) in zip(sources, rows, strict=True):
        right = (f"{cell:>{size}}" for cell, size in zip(cells, numbers, strict=True))
        line = "  ".join([f"{source:<{width}}", *right, note if notes else ""])
        lines.append(line.rstrip())
    if len(shown) < len(loads):
        lines.insert(half + 1, f"… and {len(loads) - len(shown):,} more")
    return lines


@dataclass(frozen=True)
class PushReport:
    """What a push did: the rows are durable, and readable online unless in ``rows_future``."""

    view: str
    load_id: int
    rows_written: int
    rows_future: int = 0


@dataclass(frozen=True)
class StreamReport:
    """What a stream brought: its rows are durable, in ``batches`` transactions of their own.

    Each of them is a load; their numbers lie between ``first_load_id`` and ``last_load_id``
    (None where nothing came), among those of other writers. ``rows_future`` counts rows too far
    ahead of the database's clock to be online. ``seconds`` is wall time, waiting included.
    """

    view: str
    batches: int = 0
    rows_written: int = 0
    rows_rejected: int = 0
    rows_future: int = 0
    first_load_id: int | None = None
    last_load_id: int | None = None
    seconds: float = 0.0

    @property
    def rows_read(self) -> int:
        """Rows of the stream that were written or set aside."""
        return self.rows_written + self.rows_rejected

    def __str__(self) -> str:
        loads = "-" if not self.batches else f"{self.first_load_id} to {self.last_load_id}"
        lines = [
            f"{'batches':>8}  {'read':>12}  {'written':>12}  {'rejected':>9}  loads",
            f"{self.batches:>8,}  {self.rows_read:>12,}  {self.rows_written:>12,}  "
            f"{self.rows_rejected:>9,}  {loads}",
        ]
        rate = self.rows_written / self.seconds if self.seconds else 0.0
        lines.append(
            f"{self.view}: {self.rows_written:,} rows in {self.seconds:.2f} s ({rate:,.0f} rows/s)"
        )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the rows needs a look: those ahead of the clock, and those set aside."""
        return write_warnings(self.rows_future, self.rows_rejected)


@dataclass(frozen=True)
class MaterializeReport:
    """What a materialize did: per view, how many keys' online rows were changed."""

    keys_changed: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        lines = [f"{view}: {keys:,} keys changed" for view, keys in self.keys_changed.items()]
        return "\n".join([*lines, f"{self.seconds:.2f} s"])


@dataclass(frozen=True)
class Load:
    """One entry of the ledger: a file, an Arrow object or a push that was written.

    Its rows have the arrivals ``first_arrival`` to ``last_arrival``, both inclusive (None where
    it wrote none). ``undone_at`` is set once :meth:`FeatureStore.undo_load` took it back.
    ``rows_total`` is what its file holds, None where the source did not say: of a load in steps
    (``commit_every``) that was broken off, ``rows_read`` are in, and loading the file again goes
    on from there.
    """

    load_id: int
    view: str
    kind: str
    source: str
    rows_read: int
    rows_written: int
    rows_rejected: int
    rows_future: int
    first_arrival: int | None
    last_arrival: int | None
    started_at: dt.datetime
    finished_at: dt.datetime
    undone_at: dt.datetime | None
    rows_total: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all rows of the source were read."""
        return self.rows_total is None or self.rows_read == self.rows_total


@dataclass(frozen=True)
class UndoReport:
    """What undoing a load did, in history and online.

    ``rows_removed`` rows left history. Of the keys whose online row the load had brought,
    ``keys_changed`` went back to an older value and ``keys_removed`` have none any more. All
    other keys had newer values from elsewhere, and kept them.
    """

    load_id: int
    view: str
    rows_removed: int
    keys_changed: int
    keys_removed: int

    def __str__(self) -> str:
        changes = []
        if self.keys_changed:
            changes.append(f"{_keys(self.keys_changed)} back to an older value")
        if self.keys_removed:
            changes.append(f"{_keys(self.keys_removed)} gone")
        rows = f"{self.rows_removed:,} {'row' if self.rows_removed == 1 else 'rows'}"
        return (
            f"Load {self.load_id} is undone: {rows} of {self.view} removed; online, "
            f"{' and '.join(changes) or 'nothing changed'}."
        )


def _keys(count: int) -> str:
    return "1 key is" if count == 1 else f"{count:,} keys are"


@dataclass(frozen=True)
class ExportReport:
    """What an export of a view's history did to its copy in the folder ``path``.

    ``rows_added`` rows came in, ``rows_removed`` were taken out: undone or erased since. The copy
    has ``rows`` then, and is as the store was at ``mark``. ``files_written`` data files are new;
    ``files_rewritten`` are gone, since rows of theirs had to go or they were small. ``remade`` says
    that all of it was written anew: the view's columns had changed. ``seconds`` is wall time.
    """

    view: str
    path: str
    rows_added: int
    rows_removed: int
    files_written: int
    files_rewritten: int
    mark: str
    seconds: float
    rows: int
    remade: bool = False

    def __str__(self) -> str:
        anew = ", all of it anew" if self.remade else ""
        return (
            f"{self.view}: {self.rows_added:,} rows added, {self.rows_removed:,} removed in "
            f"{self.seconds:.2f} s{anew}; {self.rows:,} in {self.path}\n"
            f"{self.files_written:,} files written, {self.files_rewritten:,} replaced; "
            f"mark {self.mark}"
        )


@dataclass(frozen=True)
class ExportProgress:
    """How far an export of ``view`` is: ``rows`` of ``total`` rows have been read for its files.

    Beside those that come in, they are the rows of files that are written anew. ``finishing`` is
    set once all have been read, and the last of them are on their way to the disk.
    """

    view: str
    rows: int
    total: int
    finishing: bool = False


OnExport = Callable[[ExportProgress], None]


@dataclass(frozen=True)
class QuarantinedRow:
    """A rejected row that was set aside: where it stood, why, and its values as text."""

    load_id: int
    view: str
    source: str
    row: int
    reason: str
    values: dict[str, object]


BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
"""Upper bounds of the classes in which :class:`GatherStats` counts batches."""


@dataclass(frozen=True)
class GatherStats:
    """What a store's reads, or its pushes, have come to so far, and how many are under way.

    ``requests`` calls with ``rows`` rows went to the database in ``batches`` statements.
    ``batch_sizes`` counts batches by their requests: as many as ``BATCH_SIZES`` has bounds, and
    one class above. ``waiting`` callers wait for a batch, ``in_flight`` batches for their answer;
    ``overloaded`` calls were refused or given up.
    """

    requests: int = 0
    rows: int = 0
    batches: int = 0
    batch_sizes: tuple[int, ...] = (0,) * (len(BATCH_SIZES) + 1)
    waiting: int = 0
    in_flight: int = 0
    overloaded: int = 0


@dataclass(frozen=True)
class CacheStats:
    """What a store's cache has been good for.

    It holds ``entries`` vectors, those among them that are of no more use and wait to be dropped.
    ``hits`` vectors were answered from it, ``misses`` had to be read.
    """

    entries: int = 0
    hits: int = 0
    misses: int = 0


@dataclass(frozen=True)
class StoreStats:
    """What a store does at this moment, and has done since it was made: no I/O."""

    reads: GatherStats
    pushes: GatherStats
    pool_size: int
    pool_in_use: int
    cache: CacheStats | None = None
