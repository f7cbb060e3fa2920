"""What `training.py` prints: what was measured, and what comes of it against the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ingest_table import Table


@dataclass(frozen=True)
class Measured:
    """A training set: its entity rows, the seconds until it was there, the process's greatest
    resident size (MB), and what is in it, in hashes by column: in all rows, and in those alone
    that have found a value."""

    rows: int
    seconds: float
    megabytes: float
    digests: Mapping[Literal["all", "found"], Mapping[str, str]]

    def better(self, other: Measured | str | None) -> Measured:
        """The faster of two, with the greater memory: noise makes slow, and takes no memory."""
        if not isinstance(other, Measured):
            return self
        fastest = min(self, other, key=lambda one: one.seconds)
        return replace(fastest, megabytes=max(self.megabytes, other.megabytes))


@dataclass(frozen=True)
class Line:
    """A measurement among the others: what was joined with what, and how."""

    group: str
    title: str


@dataclass(frozen=True)
class Target:
    """How ``of`` is to stand to the fastest of ``to``, lines by name.

    ``time`` is how many times as long it takes, ``faster`` how many times as fast it is,
    ``share`` its part of the other's memory, and ``memory`` its own peak in MB.
    """

    title: str
    of: str
    to: tuple[str, ...]
    figure: Literal["time", "faster", "share", "memory"]
    bound: float

    def row(self, found: Found) -> list[str]:
        of = found.get(self.of)
        others = [one for one in map(found.get, self.to) if isinstance(one, Measured)]
        if not isinstance(of, Measured) or (self.to and not others):
            return [self.title, "–", self._wanted(), "not measured"]
        value = self._value(of, min(others, key=lambda one: one.seconds, default=of))
        met = value >= self.bound if self.figure == "faster" else value <= self.bound
        return [self.title, self._shown(value), self._wanted(), "yes" if met else "NO"]

    def _value(self, of: Measured, to: Measured) -> float:
        match self.figure:
            case "time":
                return of.seconds / to.seconds
            case "faster":
                return to.seconds / of.seconds
            case "share":
                return of.megabytes / to.megabytes
            case "memory":
                return of.megabytes

    def _wanted(self) -> str:
        bound = f"{self.bound:,.0f} MB" if self.figure == "memory" else f"{self.bound:.3g}"
        return f"{'at least' if self.figure == 'faster' else 'at most'} {bound}"

    def _shown(self, value: float) -> str:
        if self.figure == "memory":
            return f"{math.ceil(value):,} MB"
        # To the side that does not flatter: 5.996 is not 6.
        whole = math.floor if self.figure == "faster" else math.ceil
        return f"{whole(value * 100) / 100:.2f}"


Found = Mapping[str, Measured | str]
"""By name of the line: what was measured, or why nothing was."""


def measured_table(lines: Mapping[str, Line], found: Found) -> Table:
    """A row for each line that was tried."""
    head = ["way", "entity rows", "seconds", "rows/s", "peak MB"]
    rows = []
    for name, one in found.items():
        title = f"{lines[name].group}: {lines[name].title}"
        if isinstance(one, str):
            rows.append([title, one, "", "", ""])
            continue
        rate = f"{one.rows / one.seconds:,.0f}"
        rows.append([title, f"{one.rows:,}", seconds(one), rate, f"{one.megabytes:,.0f}"])
    return head, rows


def target_table(targets: Sequence[Target], found: Found) -> Table:
    """A row for each target of which all was tried."""
    head = ["target", "measured", "wanted", "met"]
    return head, [one.row(found) for one in targets if {one.of, *one.to} <= set(found)]


Cells = Mapping[tuple[str, int], Mapping[str, Measured]]
"""By database and size of the entity table, then by engine."""


def engines_table(engines: Sequence[str], cells: Cells) -> Table:
    """A row for each size of entity table on each database: the seconds of each engine."""
    head = ["database", "entity rows", *engines]
    rows = []
    for (database, size), by_engine in cells.items():
        ours = [by_engine.get(engine) for engine in engines]
        rows.append(
            [database, f"{size:,}", *("–" if one is None else seconds(one) for one in ours)]
        )
    return head, rows


def engines_json(cells: Cells) -> list[dict[str, Any]]:
    """The same for a program: what a model of the engines' costs is fitted to."""
    return [
        {"database": database, "entity_rows": size, "engine": engine, **_figures(one)}
        for (database, size), by_engine in cells.items()
        for engine, one in by_engine.items()
    ]


def found_json(lines: Mapping[str, Line], found: Found) -> list[dict[str, Any]]:
    """All that was measured, for a program."""
    return [
        {"name": name, **asdict(lines[name]), **figures}
        for name, one in found.items()
        for figures in [{"reason": one} if isinstance(one, str) else _figures(one)]
    ]


def _figures(one: Measured) -> dict[str, float]:
    return {"rows": one.rows, "seconds": one.seconds, "megabytes": one.megabytes}


def seconds(one: Measured) -> str:
    return f"{one.seconds:.4f}" if one.seconds < 0.1 else f"{one.seconds:.2f}"
