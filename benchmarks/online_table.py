"""What `online.py` and `server.py` print: what was measured, and what comes of it against the
targets."""

from __future__ import annotations

import asyncio
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import asyncpg
from ingest import DURABLE, SHOWN
from ingest_table import Table
from online_data import FEATURES, KEYS
from online_load import Measured

from featurestore.testing import PostgresServer


@dataclass(frozen=True)
class Line:
    """A way in some circumstances: what it is called, and by how many callers it was asked."""

    group: str
    title: str
    callers: int = 1


@dataclass(frozen=True)
class Target:
    """How ``of`` is to stand to ``to``, two lines by name.

    ``rate`` is how many times as many calls it answers per second, ``faster`` how many times as
    fast the median call is, ``time`` how many times as long it takes. Without a ``bound`` it is
    told, and no more.
    """

    title: str
    of: str
    to: str
    figure: Literal["rate", "faster", "time"]
    bound: float | None

    def ratio(self, of: Measured, to: Measured) -> float:
        match self.figure:
            case "rate":
                return of.rate / to.rate
            case "faster":
                return to.p50 / of.p50
            case "time":
                return of.p50 / to.p50

    def row(self, of: Measured | str | None, to: Measured | str | None) -> list[str]:
        most = self.figure == "time"
        bound = self.bound
        wanted = "–" if bound is None else f"{'at most' if most else 'at least'} {bound:g}"
        for one in (of, to):
            if not isinstance(one, Measured):
                reason = one or "not measured"
                short = "failed" if reason.startswith("failed") else reason  # the line says why
                return [self.title, "–", wanted, short]
        assert isinstance(of, Measured)
        assert isinstance(to, Measured)
        ratio = self.ratio(of, to)
        met = bound is None or (ratio <= bound if most else ratio >= bound)
        verdict = "–" if bound is None else "yes" if met else "NO"
        # To the side that does not flatter: 7.996 is not 8.
        shown = (math.ceil if most else math.floor)(ratio * 100) / 100
        return [self.title, f"{shown:.2f}", wanted, verdict]


Found = Mapping[str, Measured | str]
"""By name of the line: what was measured, or why nothing was."""


def measured_table(lines: Mapping[str, Line], found: Found) -> Table:
    """A row for each line that was tried, those of a group together."""
    head = ["way", "callers", "calls/s", "p50 ms", "p99 ms"]
    return head, list(_measured_rows(lines, found))


def _measured_rows(lines: Mapping[str, Line], found: Found) -> Iterator[list[str]]:
    for name, one in found.items():
        line = lines[name]
        title = f"{line.group}: {line.title}"
        if isinstance(one, str):
            yield [title, one, "", "", ""]
            continue
        times = [f"{seconds * 1e3:,.3f}" for seconds in (one.p50, one.p99)]
        yield [title, f"{line.callers:,}", f"{one.rate:,.0f}", *times]


def target_table(targets: Sequence[Target], found: Found) -> Table:
    """A row for each target of which something was tried."""
    head = ["target", "measured", "wanted", "met"]
    rows = [
        target.row(found.get(target.of), found.get(target.to))
        for target in targets
        if {target.of, target.to} & set(found)
    ]
    return head, rows


def arrivals_table(ways: Mapping[str, Mapping[int, Measured | None]]) -> Table:
    """A row for each rate of arrival: each way's median and 99th percentile in milliseconds."""
    head = ["arrivals/s", *(f"{title}: p50 / p99 ms" for title in ways)]
    rates = sorted({rate for found in ways.values() for rate in found})
    rows = []
    for rate in rates:
        cells = []
        for found in ways.values():
            one = found.get(rate)
            if one is not None:
                cells.append(f"{one.p50 * 1e3:,.2f} / {one.p99 * 1e3:,.2f}")
            else:
                cells.append("falls behind" if rate in found else "–")
        rows.append([f"{rate:,}", *cells])
    return head, rows


def setting(server: PostgresServer, libraries: Sequence[str]) -> str:
    """Some lines on where this ran: figures mean little without."""
    shown = ", ".join(f"{name} {version(name)}" for name in libraries)
    names = ["server_version", *SHOWN]
    values = asyncio.run(_settings(server.url(), names))
    settings = ", ".join(f"{name}={value}" for name, value in zip(SHOWN, values[1:], strict=True))
    return (
        f"{KEYS:,} keys, {len(FEATURES)} features; {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}\n{shown}\nPostgreSQL {values[0]}: {settings}"
    )


async def _settings(url: str, names: Sequence[str]) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [await connection.fetchval(f"SHOW {name}") for name in names]
    finally:
        await connection.close()


__all__ = [
    "DURABLE",
    "Found",
    "Line",
    "Target",
    "arrivals_table",
    "measured_table",
    "setting",
    "target_table",
]
