"""How fast online reads and pushes are, against the same done by hand, in one run.

    uv run --group bench python benchmarks/online.py

100,000 keys with 8 features each, in a PostgreSQL that it starts, or in SQLite: one caller, many
callers at once, many keys, several views, pushes, a cache, and latency at fixed rates of arrival,
which it plots. Store and peers take turns in one process, on one plain asyncio loop.

Absolute figures say little on shared machines; the ratios are what to read.
docs/online-performance.md says what is measured and holds the figures of a quiet run.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import importlib.util
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import asyncpg
import online_ours as ours
import online_peers as peers
from ingest_table import as_markdown, as_text
from online_data import (
    KEYS,
    READ,
    SEVERAL,
    WRITTEN,
    fill,
    fill_bare,
    fill_bare_sqlite,
    random_keys,
)
from online_load import (
    Call,
    FellBehind,
    Measured,
    Turn,
    alone,
    arriving,
    by_turns,
    median_turn,
    pooled,
    together,
)
from online_peers import Opened
from online_table import (
    DURABLE,
    Line,
    Target,
    arrivals_table,
    measured_table,
    setting,
    target_table,
)
from sqlalchemy.exc import SQLAlchemyError

import featurestore as fs
from featurestore.testing import PostgresServer

DATABASE = "featurestore_bench_online"
LIBRARIES = ("asyncpg", "sqlalchemy", "aiosqlite", "pyarrow")
MANY = 1_000
"""Keys of one request."""

CALLERS = {200: 1.5, 50: 0.7, 1_000: 0.7}
"""How many callers for how many seconds. The first has a target, the others show the way there."""

TURNS_ALONE = 5
"""Turns of a lone caller in each round."""

CHECKED = (0, 7, 99_999)
"""Keys for which all must answer the same."""

RATES = (500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 45_000, 60_000)


class Different(Exception):
    """Two ways to read the same do not answer the same."""


FAILURES = (
    Different,
    fs.FeatureStoreError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    SQLAlchemyError,
    TimeoutError,
    OSError,
)

LINES = {
    "lone": Line("1 key", "featurestore"),
    "prepared": Line("1 key", "asyncpg, prepared, a connection of its own"),
    **{
        f"{name}_{callers}": Line("1 key each", title, callers)
        for callers in CALLERS
        for name, title in {
            "ours": "featurestore",
            "pool": "asyncpg.Pool.fetchrow",
            "sqlalchemy": "SQLAlchemy, a checkout each",
            "autocommit": "SQLAlchemy, a checkout each, AUTOCOMMIT",
        }.items()
        if name != "autocommit" or callers == 200
    },
    "many": Line(f"{MANY:,} keys", "featurestore"),
    "any": Line(f"{MANY:,} keys", "asyncpg, = ANY($1), prepared, dicts"),
    "views": Line("5 views, 1 key", "featurestore"),
    "one_by_one": Line("5 views, 1 key", "asyncpg, five prepared reads"),
    "sqlite": Line("SQLite, 1 key each", "featurestore", 200),
    "aiosqlite": Line("SQLite, 1 key each", "SQLAlchemy + aiosqlite, a checkout each", 200),
    "pushes": Line("push of 1 row", "featurestore", 1_000),
    "transactions": Line("push of 1 row", "asyncpg's pool, a transaction each", 1_000),
    "push": Line("push of 1 row", "featurestore"),
    "transaction": Line("push of 1 row", "asyncpg, a transaction, a connection of its own"),
    "cached": Line("1 key", "featurestore, cached"),
    "uncached": Line("1 key", "featurestore, beside the cached"),
}

TARGETS = (
    Target("1 caller, 1 key: time / prepared read", "lone", "prepared", "time", 1.7),
    Target("200 callers: reads / asyncpg.Pool.fetchrow", "ours_200", "pool_200", "rate", 8),
    Target("200 callers: reads / SQLAlchemy checkout", "ours_200", "sqlalchemy_200", "rate", 15),
    Target("1,000 keys: time / = ANY($1) and dicts", "many", "any", "time", 1.3),
    Target("5 views: times as fast as five reads", "views", "one_by_one", "faster", 1.5),
    Target("SQLite, 200 callers: reads / aiosqlite", "sqlite", "aiosqlite", "rate", 20),
    Target("1,000 callers: pushes / transaction each", "pushes", "transactions", "rate", 10),
    Target("1 caller: time of push / transaction", "push", "transaction", "time", 1.3),
    Target("cached: times as fast as the lone read", "cached", "uncached", "faster", 20),
)

ARRIVING = {
    "featurestore": ours.reading,
    "asyncpg pool": peers.pool,
    "SQLAlchemy": peers.sqlalchemy,
}


@dataclass
class Bench:
    """What all parts of a run share. ``share`` makes each shorter; ``rounds`` is how often those
    that are compared take turns."""

    url: str
    folder: Path
    share: float
    rounds: int
    failed: bool = False
    found: dict[str, Measured | str] = field(default_factory=dict)
    latencies: dict[str, dict[int, Measured | None]] = field(default_factory=dict)

    async def alone(
        self,
        opened: Mapping[str, Opened[Any]],
        calls: int,
        keys: Iterator[Any] | None = None,
        check: Iterable[Any] = CHECKED,
    ) -> None:
        """Compare what a lone caller has of some ways: short turns, and many of them."""
        calls = max(int(calls * self.share), 5)
        once = partial(alone, keys=keys or random_keys(1), calls=calls)
        found = await self._by_turns(opened, once, TURNS_ALONE * self.rounds, check)
        self.found.update({name: pooled(turns) for name, turns in found.items()})

    async def together(
        self, opened: Mapping[str, Opened[Any]], callers: int, seconds: float
    ) -> None:
        """Compare what so many callers have of some ways in a closed loop."""
        seconds *= self.share
        once = partial(together, keys=random_keys(2), callers=callers, seconds=seconds)
        found = await self._by_turns(opened, once, self.rounds, CHECKED)
        self.found.update({name: median_turn(turns) for name, turns in found.items()})

    async def _by_turns(
        self,
        opened: Mapping[str, Opened[Any]],
        once: Callable[[Call], Awaitable[Turn]],
        turns: int,
        check: Iterable[Any],
    ) -> dict[str, list[Turn]]:
        async with AsyncExitStack() as stack:
            ways = {name: await stack.enter_async_context(way) for name, way in opened.items()}
            for key in check:
                await check_same(ways, key)
            return await by_turns(ways, once, turns)


async def check_same(ways: Mapping[str, Call], key: Any) -> None:
    """What answers differently is not to be compared. The order of many rows may differ."""
    answers = {}
    for name, call in ways.items():
        answer: Any = await call(key)
        if isinstance(answer, list):
            answer = sorted(answer, key=lambda row: row["driver_id"])
        answers[name] = answer
    first = next(iter(answers.values()))
    for name, answer in answers.items():
        if answer != first:
            raise Different(f"{LINES[name].title} answers {answer} where {first} is expected")


# --- the parts ----------------------------------------------------------------------------------


async def lone(bench: Bench) -> None:
    ways = {"lone": ours.reading(bench.url), "prepared": peers.prepared(bench.url)}
    await bench.alone(ways, 200)


async def callers(bench: Bench) -> None:
    url = bench.url
    for callers, seconds in CALLERS.items():
        ways = {
            "pool": peers.pool(url),
            "ours": ours.reading(url),
            "sqlalchemy": peers.sqlalchemy(url),
        }
        if callers == 200:
            ways["autocommit"] = peers.autocommit(url)
        ways = {f"{name}_{callers}": way for name, way in ways.items()}
        await bench.together(ways, callers, seconds)


async def many(bench: Bench) -> None:
    numbers = random_keys(3)
    requests = [list(dict.fromkeys(islice(numbers, 2 * MANY)))[:MANY] for _ in range(20)]
    ways = {"many": ours.reading_many(bench.url), "any": peers.any_of(bench.url)}
    await bench.alone(ways, 10, cycle(requests), check=requests[:1])


async def views(bench: Bench) -> None:
    ways = {"views": ours.reading_several(bench.url), "one_by_one": peers.one_by_one(bench.url)}
    await bench.alone(ways, 100)


async def sqlite(bench: Bench) -> None:
    mine, theirs = bench.folder / "store.db", bench.folder / "peer.db"
    url = f"sqlite:///{mine}"
    await fill(url, [READ])
    await asyncio.to_thread(fill_bare_sqlite, mine, theirs)
    ways = {"sqlite": ours.reading(url), "aiosqlite": peers.aiosqlite(theirs)}
    await bench.together(ways, 200, 1.5)


async def pushes(bench: Bench) -> None:
    url = bench.url
    lone = {"push": ours.pushing(url), "transaction": peers.transaction_alone(url)}
    await bench.alone(lone, 40)
    crowd = {"pushes": ours.pushing(url), "transactions": peers.transaction_each(url)}
    await bench.together(crowd, 1_000, 2)


async def cache(bench: Bench) -> None:
    hot = range(0, KEYS, KEYS // 100)
    ways = {"cached": ours.cached(bench.url), "uncached": ours.reading(bench.url)}
    await bench.alone(ways, 200, cycle(hot), check=hot)


async def arrivals(bench: Bench) -> None:
    """Each way at higher and higher rates, until it falls behind."""
    keys = random_keys(4)
    async with AsyncExitStack() as stack:
        ways: dict[str, Call] = {}
        for title, opened in ARRIVING.items():
            ways[title] = await stack.enter_async_context(opened(bench.url))
            await together(ways[title], keys, 50, 0.5)
            bench.latencies[title] = {}
        for rate in RATES:
            for title in list(ways):
                one = await kept_up(ways[title], keys, rate, 2 * bench.share)
                bench.latencies[title][rate] = one
                if one is None:
                    del ways[title]


async def kept_up(call: Call, keys: Iterator[int], rate: int, seconds: float) -> Measured | None:
    """What is measured at this rate of arrival; None for a way that falls behind, twice: once may
    be the machine."""
    for _ in range(2):
        try:
            return await arriving(call, keys, rate, seconds)
        except FellBehind:
            await together(call, keys, 10, 0.2)  # it has time to recover
    return None


PARTS: dict[str, tuple[Callable[[Bench], Awaitable[None]], Sequence[str]]] = {
    "lone": (lone, ["lone", "prepared"]),
    "callers": (callers, [name for name in LINES if name.rpartition("_")[2].isdigit()]),
    "many": (many, ["many", "any"]),
    "views": (views, ["views", "one_by_one"]),
    "sqlite": (sqlite, ["sqlite", "aiosqlite"]),
    "pushes": (pushes, ["push", "transaction", "pushes", "transactions"]),
    "cache": (cache, ["cached", "uncached"]),
    "arrivals": (arrivals, []),
}
"""By name: what it does, and the lines that it measures."""


# --- the run ------------------------------------------------------------------------------------


async def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Fill the tables, and do the parts; what fails says so in its lines."""
    say("filling the tables …")
    await fill(bench.url, [READ, WRITTEN, *SEVERAL])
    await fill_bare(bench.url, [READ, WRITTEN, *SEVERAL])
    for name in parts:
        part, lines = PARTS[name]
        say(f"{name} …")
        began = time.perf_counter()
        reason = ""
        try:
            await part(bench)
        except ours.NotThere as error:
            reason = str(error)
        except FAILURES as error:
            reason = f"failed: {type(error).__name__}: {error}"
        except ExceptionGroup as errors:
            _, others = errors.split(FAILURES)
            if others is not None:
                raise
            reason = f"failed: {len(errors.exceptions)} callers, {errors.exceptions[0]!r}"
        if reason:
            say(f"    {reason}")
            bench.failed = True
        for line in lines if reason else ():
            bench.found.setdefault(line, reason)
        say(f"    {time.perf_counter() - began:.1f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Measure, print and plot; whether nothing failed."""
    began = time.perf_counter()
    parts = [name for name in PARTS if name in (options.only or PARTS)]
    with PostgresServer(options.url, settings=DURABLE) as server:
        where = setting(server, LIBRARIES)
        server.create_database(DATABASE)
        try:
            bench = Bench(server.url(DATABASE), folder, options.share, options.rounds)
            asyncio.run(measure(bench, parts))
        finally:
            server.drop_database(DATABASE)
    form = as_markdown if options.markdown else as_text
    minutes = (time.perf_counter() - began) / 60
    rounds = "1 round" if options.rounds == 1 else f"medians of {options.rounds} rounds"
    print(f"{where}\n{dt.date.today()}, {rounds}, {minutes:.1f} minutes\n")
    if bench.found:
        print(form(measured_table(LINES, bench.found)), end="\n\n")
        print(form(target_table(TARGETS, bench.found)), end="\n\n")
    if bench.latencies:
        print(form(arrivals_table(bench.latencies)))
        if options.plot is not None:
            from online_plot import plot

            plot(bench.latencies, options.plot)
    return not bench.failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; can be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many counts (5)")
    parser.add_argument("--share", type=float, default=1.0, help="of each round's length (1)")
    parser.add_argument("--plot", type=Path, help="where the plot of the latencies goes (.svg)")
    parser.add_argument("--markdown", action="store_true", help="tables as docs/ has them")
    parser.add_argument("--url", help="a PostgreSQL to use instead of one from the wheel")
    options = parser.parse_args()
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is missing: uv run --group bench python benchmarks/online.py")
    if options.rounds < 1 or not 0 < options.share <= 10:
        parser.error("it takes at least 1 round, and a share of more than 0 and at most 10")
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-") as name:
        sys.exit(0 if run(options, Path(name)) else 1)


if __name__ == "__main__":
    main()
