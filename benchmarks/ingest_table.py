"""What `ingest.py` prints: what was measured, and what comes of it against the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LAG_P99 = 8.0
LAG_WORST = 30.0
MEMORY = 300.0
"""The limits of each load: milliseconds, milliseconds, megabytes over the idle process."""

WIDTH = 100


@dataclass(frozen=True)
class Measured:
    """One way in: rows and seconds, and for the store's loads the loop's lag (ms) and the peak of
    memory over the idle process (MB)."""

    rows: int
    seconds: float
    p99: float | None = None
    worst: float | None = None
    megabytes: float | None = None

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


@dataclass(frozen=True)
class Ratio:
    """A target: the rate of ``of`` is at least so many times that of ``to``."""

    title: str
    of: str
    to: str
    least: float


RATIOS = (
    Ratio("first load / COPY, then index", "first", "copy_then_index", 0.6),
    Ratio("first load / ADBC into the indexed table", "first", "adbc_indexed", 1.5),
    Ratio("first load / copy_records_to_table", "first", "copy_records", 5.0),
    Ratio("second load / COPY into the same table", "second", "copy_beside", 0.7),
    Ratio("SQLite load / ADBC into a bare table", "sqlite", "sqlite_adbc", 0.5),
    Ratio("8 files, two at a time / one at a time", "files_2", "files_1", 1.2),
)

Found = Mapping[str, Measured | str]
"""By name of the way: what was measured, or why nothing was."""

Table = tuple[Sequence[str], list[list[str]]]


def measured_table(titles: Mapping[str, str], found: Found) -> Table:
    """A row for each way that was tried."""
    head = ["way in", "rows", "seconds", "rows/s", "lag p99 ms", "worst ms", "memory MB"]
    rows = []
    for name, one in found.items():
        if isinstance(one, str):
            rows.append([titles[name], one, "", "", "", "", ""])
            continue
        lag = [_number(one.p99, 1), _number(one.worst, 1)]
        memory = "" if one.megabytes is None else f"+{one.megabytes:,.0f}"
        rows.append(
            [
                titles[name],
                f"{one.rows:,}",
                f"{one.seconds:.2f}",
                f"{one.rate:,.0f}",
                *lag,
                memory,
            ]
        )
    return head, rows


def target_table(titles: Mapping[str, str], found: Found) -> Table:
    """A row for each target of which something was measured."""
    head = ["target", "measured", "wanted", "met"]
    rows = [_ratio_row(target, found) for target in RATIOS if {target.of, target.to} & set(found)]
    ours = {name: one for name, one in found.items() if _is_ours(one)}
    for title, field, limit in (
        ("loop lag, p99 of any load", "p99", LAG_P99),
        ("loop lag, worst of any load", "worst", LAG_WORST),
    ):
        values = [getattr(one, field) for one in ours.values()]
        if values:
            rows.append(_limit_row(title, max(values), limit, "ms"))
    for name, one in ours.items():
        assert isinstance(one, Measured)
        rows.append(_limit_row(f"memory, {titles[name]}", one.megabytes or 0.0, MEMORY, "MB"))
    return head, rows


def _is_ours(one: Measured | str) -> bool:
    return isinstance(one, Measured) and one.p99 is not None


def _ratio_row(target: Ratio, found: Found) -> list[str]:
    of, to = found.get(target.of), found.get(target.to)
    wanted = f"at least {target.least:.1f}"
    if not isinstance(of, Measured) or not isinstance(to, Measured):
        return [target.title, "–", wanted, "not measured"]
    ratio = of.rate / to.rate
    shown = math.floor(ratio * 100) / 100  # 0.597 is not 0.6
    return [target.title, f"{shown:.2f}", wanted, "yes" if ratio >= target.least else "NO"]


def _limit_row(title: str, value: float, limit: float, unit: str) -> list[str]:
    met = "yes" if value < limit else "NO"
    return [
        title,
        f"{value:,.{0 if unit == 'MB' else 1}f} {unit}",
        f"below {limit:,.0f} {unit}",
        met,
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def as_text(table: Table) -> str:
    """For a terminal of 100 columns: numbers to the right, a reason across the row."""
    head, rows = table
    full = [row for row in rows if row[2]]
    widths = [max(len(row[i]) for row in [head, *full]) for i in range(len(head))]
    widths[0] = max(len(row[0]) for row in [head, *rows])
    lines = []
    for row in [head, *rows]:
        if not row[2]:
            lines.append(f"{row[0]:<{widths[0]}}  {row[1]}"[:WIDTH])
            continue
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *cells[1:]]).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    head, rows = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *rows])
