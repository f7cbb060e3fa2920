"""What came of an engine's choice, and what the engine did: told by ``TrainingSet.explain()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HistoryRead:
    """Rows that left a view's history, or its files, for an engine beside the database."""

    view: str
    rows: int
    seconds: float


@dataclass(frozen=True)
class EngineChoice:
    """Which engine was chosen, and why: ``estimates`` are seconds by engine, as far as both were
    considered."""

    engine: str
    reason: str
    estimates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training set is: ``stage`` is ``"history"``, rows on their way out of the history
    of ``view`` (``total`` None: how many is not known), or ``"rows"``, those of the set."""

    stage: str
    rows: int
    total: int | None = None
    view: str | None = None


OnTraining = Callable[[TrainingProgress], None]


@dataclass
class Report:
    """Filled in while a training set is read."""

    choice: EngineChoice
    progress: OnTraining | None = None
    reads: list[HistoryRead] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0

    def history_read(self, view: str, rows: int, seconds: float) -> None:
        self.reads.append(HistoryRead(view, rows, seconds))

    def tell(
        self, stage: str, rows: int, total: int | None = None, *, view: str | None = None
    ) -> None:
        """Say how far it is, to who wants to know."""
        if self.progress is not None:
            self.progress(TrainingProgress(stage, rows, total, view))


@dataclass(frozen=True)
class TrainingPlan:
    """What :meth:`TrainingSet.explain` gives: the engine, why it was chosen, and what it did.

    ``estimates`` (seconds by engine) is empty where nothing was to be weighed. ``reads`` tells
    which views' history was brought to an engine beside the database. ``seconds`` is wall time.
    """

    engine: str
    reason: str
    estimates: Mapping[str, float]
    reads: tuple[HistoryRead, ...]
    rows: int
    seconds: float

    def __str__(self) -> str:
        lines = [f"engine {self.engine}: {self.reason}"]
        lines += [f"  {name:<8} estimated at {cost:.2f} s" for name, cost in self.estimates.items()]
        lines += [
            f"  {read.view}: {read.rows:,} rows of history read in {read.seconds:.2f} s"
            for read in self.reads
        ]
        lines.append(f"{self.rows:,} entity rows in {self.seconds:.2f} s")
        return "\n".join(lines)
