"""What calls that write answer with: frozen values that print as short tables."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """One file (or Arrow object) of an ingest: what became of its rows.

    ``skipped`` says that the same content was there already; ``load_id`` is then the load that
    brought it. ``rows_future`` counts rows too far ahead of the database's clock to be online.
    """

    load_id: int
    source: str
    skipped: bool
    rows_read: int
    rows_written: int
    rows_rejected: int
    rows_future: int
    seconds: float


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did, in all and per file (``loads``), in ``seconds`` of wall time."""

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
        width = max([len(load.source) for load in self.loads] + [6])
        heads = f"{'load':>8}  {'read':>12}  {'written':>12}  {'rejected':>9}"
        lines = [f"{'source':<{width}}  {heads}"]
        for load in self.loads:
            number = "skipped" if load.skipped else str(load.load_id)
            lines.append(
                f"{load.source:<{width}}  {number:>8}  {load.rows_read:>12,}  "
                f"{load.rows_written:>12,}  {load.rows_rejected:>9,}"
            )
        rate = self.rows_written / self.seconds if self.seconds else 0.0
        lines.append(
            f"{self.view}: {self.rows_written:,} rows in {self.seconds:.2f} s ({rate:,.0f} rows/s)"
        )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class PushReport:
    """What a push did: the rows are durable, and readable online unless in ``rows_future``."""

    view: str
    load_id: int
    rows_written: int
    rows_future: int = 0


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


@dataclass(frozen=True)
class UndoReport:
    """What undoing a load did: rows taken from history, keys whose online row changed."""

    load_id: int
    view: str
    rows_removed: int
    keys_changed: int


@dataclass(frozen=True)
class QuarantinedRow:
    """A rejected row that was set aside: where it stood, why, and its values as text."""

    load_id: int
    view: str
    source: str
    row: int
    reason: str
    values: dict[str, object]
