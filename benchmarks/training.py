"""How fast training sets are made, against the same done by hand and by Feast, in one run.

    uv run --group bench python benchmarks/training.py --feast-python …/bin/python

Two million rows of history (100,000 keys, 8 features, a month) are in a PostgreSQL that it starts,
in SQLite, and in a Parquet file; entity tables of 1,000 to 5 million rows are joined to them with
a ttl of 30 days. Each measurement has a process of its own, and the answers of all are compared.

Absolute times say little on shared machines; the ratios are what to read.
docs/training-performance.md says what is measured and holds the figures of a quiet run.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import importlib.util
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ingest import DURABLE, Failed, ask, carried_out, setting
from ingest_table import as_markdown, as_text
from training_data import TTL, TrainingFiles
from training_table import (
    Cells,
    Line,
    Measured,
    Target,
    engines_json,
    engines_table,
    found_json,
    measured_table,
    target_table,
)

from featurestore.testing import PostgresServer

DATABASE = "featurestore_bench_training"
FEAST = Path(__file__).with_name("training_feast.py")
LIBRARIES = ("pyarrow", "duckdb", "asyncpg", "adbc-driver-postgresql", "sqlalchemy", "pandas")

SECONDS = 900.0
LONG_SECONDS = 3_600.0
"""How long one measurement may take, and one of the long history or the loading of a history."""

ROWS = 2_000_000
LEAST = 1_000
"""Entity rows at the least, of a run with fewer rows of history."""

Database = Literal["postgresql", "sqlite", "files"]
TITLES: dict[Database, str] = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "files": "Parquet"}
ENGINES = ("sql", "duckdb", "auto")
SIZES = (1_000, 10_000, 100_000, 1_000_000)
MILLION = 1_000_000


@dataclass(frozen=True)
class Measure:
    """One measurement: the children's function for it, where the history is, how many entity rows
    there are, and the options of the call."""

    title: str
    function: str
    database: Database
    size: int
    parts: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    history: Literal["month", "long"] = "month"

    @property
    def ours(self) -> bool:
        return self.function in ("ours", "streamed")

    @property
    def line(self) -> Line:
        months = ", ten months" if self.history == "long" else ""
        return Line(TITLES[self.database] + months, self.title)


def _ours(database: Database, engine: str, size: int, *parts: str) -> Measure:
    title = f'featurestore, engine="{engine}"'
    return Measure(title, "ours", database, size, parts, {"engine": engine})


def _source(title: str, part: str, **options: Any) -> Measure:
    read = {"read_from": "source", **options}
    return Measure(title, "ours", "files", MILLION, (part,), read)


GIGABYTE = {"memory_limit": "1GB"}

# Ours stand next to what they are compared with: a machine's speed drifts in the course of a run.
MEASURES: dict[str, Measure] = {
    "lateral_unnest": Measure(
        "asyncpg, LATERAL, two arrays", "lateral_unnest", "postgresql", 1_000, ("thousand",)
    ),
    "postgresql_auto_1000": _ours("postgresql", "auto", 1_000, "thousand", "engines"),
    "lateral_copy": Measure(
        "asyncpg, LATERAL, COPY before", "lateral_copy", "postgresql", 1_000, ("thousand",)
    ),
    "fetched": Measure(
        "ADBC fetch and DuckDB ASOF", "fetched", "postgresql", MILLION, ("million",)
    ),
    "postgresql_auto_1000000": _ours(
        "postgresql", "auto", MILLION, "million", "growth", "feast", "engines"
    ),
    "postgresql_auto_5000000": _ours("postgresql", "auto", 5 * MILLION, "growth"),
    "fetched_5000000": Measure(
        "ADBC fetch and DuckDB ASOF", "fetched", "postgresql", 5 * MILLION, ("growth",)
    ),
    "feast": Measure("Feast, FileSource, to_df()", "feast", "files", MILLION, ("feast",)),
    "on_file": Measure("DuckDB ASOF on the file", "on_file", "files", MILLION, ("source",)),
    "source": _source('featurestore, read_from="source"', "source"),
    "merge_asof": Measure("pandas.merge_asof", "merge_asof", "files", MILLION, ("source",)),
    "daft": _source('featurestore, read_from="source", engine="daft"', "daft", engine="daft"),
    **{
        f"{database}_{engine}_{size}": _ours(database, engine, size, "engines")
        for database in ("postgresql", "sqlite")
        for size in SIZES
        for engine in ENGINES
        if (database, engine, size) not in {("postgresql", "auto", n) for n in (1_000, MILLION)}
    },
    "large": Measure(
        "featurestore, to Parquet, 1 GB for DuckDB",
        "streamed",
        "postgresql",
        5 * MILLION,
        ("large",),
        {"engine": "duckdb", **GIGABYTE},
        history="long",
    ),
    "file_to_file": Measure(
        "DuckDB ASOF, to Parquet, 1 GB",
        "file_to_file",
        "files",
        5 * MILLION,
        ("large",),
        GIGABYTE,
        history="long",
    ),
}
PARTS = ("thousand", "million", "feast", "growth", "source", "engines", "daft", "large")

BEST = "postgresql_auto_1000000"
TARGETS = (
    Target("1 million rows: time / ADBC fetch + DuckDB ASOF", BEST, ("fetched",), "time", 1.3),
    Target("1 million rows: times as fast as Feast", BEST, ("feast",), "faster", 6),
    Target("1 million rows: part of Feast's memory", BEST, ("feast",), "share", 1 / 3),
    Target(
        "1,000 rows: time / bare LATERAL",
        "postgresql_auto_1000",
        ("lateral_unnest", "lateral_copy"),
        "time",
        2,
    ),
    Target("from Parquet: time / DuckDB ASOF on the file", "source", ("on_file",), "time", 1.5),
    Target("long history, 5 million rows: peak memory", "large", (), "memory", 2_000),
    Target("5 million rows: time / 1 million", "postgresql_auto_5000000", (BEST,), "time", 5),
)


# --- the child: one measurement ----------------------------------------------------------------


def child() -> None:
    """Carry out the order on stdin; what was measured goes to stdout as JSON."""
    order = json.load(sys.stdin)
    print(json.dumps(asyncio.run(_child(order))))


async def _child(order: dict[str, Any]) -> dict[str, Any]:
    function, url, history = order["function"], order["url"], Path(order["history"])
    from training_ours import OURS, load
    from training_ways import NotAvailable, measured

    if function == "load":
        await load(url, history)
        return {}
    ways = OURS
    if function not in OURS:
        from training_peers import PEERS

        ways = PEERS
    way = ways[function](
        url, history, Path(order["entities"]), Path(order["folder"]), order["options"]
    )
    try:
        return await measured(way)
    except NotAvailable as error:
        return {"reason": str(error)}


# --- the parent: histories, order, tables ------------------------------------------------------


@dataclass
class Bench:
    """What all measurements of a run share: histories are loaded when they are first asked for,
    and stay."""

    files: TrainingFiles
    server: PostgresServer | None
    feast: str | None
    share: float
    loaded: dict[tuple[str, str], str | Failed] = field(default_factory=dict)

    def measure(self, one: Measure) -> Measured:
        """One measurement; or :class:`Failed`."""
        if one.function == "feast" and self.feast is None:
            raise Failed("skipped: Feast is not installed; see --feast-python")
        if one.options.get("engine") == "daft" and importlib.util.find_spec("daft") is None:
            raise Failed("skipped: Daft is not installed")
        size = one.size if self.share == 1 else max(int(one.size * self.share), LEAST)
        entities = self.files.entities(size, one.history)
        url = self._url(one)
        self._settle()
        with tempfile.TemporaryDirectory(dir=self.files.folder) as folder:
            order = {
                "function": one.function,
                "url": url or f"sqlite:///{folder}/empty.db",
                "history": str(self.files.history(one.history)),
                "entities": str(entities),
                "folder": folder,
                "options": one.options,
                "ttl": TTL.total_seconds(),
            }
            answer = self._carried_out(order, SECONDS if one.history == "month" else LONG_SECONDS)
        if "reason" in answer:
            raise Failed(f"not available: {answer['reason']}")
        return Measured(**answer)

    def _carried_out(self, order: dict[str, Any], seconds: float) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).resolve()), "--child"]
        if order["function"] == "feast":
            command = [str(self.feast), str(FEAST)]
        return carried_out(command, order, seconds)

    def _url(self, one: Measure) -> str:
        """The database that has the history, which is loaded where it is not there yet; none for
        what reads files."""
        if one.database == "files":
            return ""
        key = (one.database, one.history)
        known = self.loaded.get(key)
        if known is None:
            known = self.loaded[key] = self._load(one)
        if isinstance(known, Failed):
            raise known
        return known

    def _load(self, one: Measure) -> str | Failed:
        url = self._created(one)
        say(f"loading the history into {one.line.group} …")
        history = str(self.files.history(one.history))
        try:
            self._carried_out({"function": "load", "url": url, "history": history}, LONG_SECONDS)
        except Failed as error:
            return error
        if one.database == "postgresql":
            # As autovacuum would soon: or the first to read has the pages to mark.
            asyncio.run(ask(url, "VACUUM (ANALYZE)"))
        return url

    def _created(self, one: Measure) -> str:
        if one.database == "sqlite":
            return f"sqlite:///{self.files.folder / 'bench.db'}"
        assert self.server is not None
        name = f"{DATABASE}_{one.history}"
        self.server.create_database(name)
        return self.server.url(name)

    def _settle(self) -> None:
        """What others have left to be written is no measurement's to wait for."""
        if self.server is not None:
            asyncio.run(ask(self.server.url(), "CHECKPOINT"))
        os.sync()

    def close(self) -> None:
        """Drop the databases that were made."""
        for database, history in self.loaded:
            if database == "postgresql" and self.server is not None:
                self.server.drop_database(f"{DATABASE}_{history}")


def chosen(options: argparse.Namespace) -> dict[str, Measure]:
    """The measurements of the parts that were asked for."""
    parts = set(options.only or PARTS)
    return {name: one for name, one in MEASURES.items() if parts & set(one.parts)}


def measure_all(
    bench: Bench, measures: dict[str, Measure], rounds: int
) -> dict[str, Measured | str]:
    """Each once per round, one after the other; the fastest of the rounds counts."""
    found: dict[str, Measured | str] = {}
    for turn in range(rounds):
        for name, one in measures.items():
            say(f"{turn + 1}/{rounds} {one.line.group}: {one.title}, {one.size:,} …")
            try:
                measured = bench.measure(one)
            except Failed as error:
                say(f"    {error}")
                found.setdefault(name, str(error))
                continue
            say(f"    {measured.seconds:.3f} s, {measured.megabytes:,.0f} MB")
            found[name] = measured.better(found.get(name))
    return found


def compared(
    measures: dict[str, Measure], found: dict[str, Measured | str]
) -> dict[str, Measured | str]:
    """What was measured; a failure where the answer is not that of the first of ours for the same
    entity rows: nobody is fast by being wrong."""
    right: dict[tuple[str, int], Measured] = {}
    checked = dict(found)
    for name in sorted(found, key=lambda name: not measures[name].ours):
        one, measure = found[name], measures[name]
        if not isinstance(one, Measured):
            continue
        expected = right.setdefault((measure.history, measure.size), one)
        # Feast drops an entity row whose key has history, but none of the ttl before its time.
        rows: Literal["all", "found"] = "found" if measure.function == "feast" else "all"
        mine, theirs = expected.digests[rows], one.digests[rows]
        other = [column for column in mine if mine[column] != theirs[column]]
        if other:
            checked[name] = f"failed: answers otherwise in {', '.join(other)}"
    return checked


def cells_of(measures: dict[str, Measure], found: dict[str, Measured | str]) -> Cells:
    """Ours by database, size and engine."""
    cells: dict[tuple[str, int], dict[str, Measured]] = {}
    for name, measure in measures.items():
        one = found[name]
        if "engines" in measure.parts and isinstance(one, Measured):
            key = (TITLES[measure.database], one.rows)
            cells.setdefault(key, {})[measure.options["engine"]] = one
    return dict(sorted(cells.items()))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Measure and print; whether nothing failed."""
    began = time.perf_counter()
    measures = chosen(options)
    files = TrainingFiles(folder, options.rows)
    feast = options.feast_python
    if feast is None and importlib.util.find_spec("feast") is not None:
        feast = sys.executable
    with ExitStack() as stack:
        server = None
        if any(one.database == "postgresql" for one in measures.values()):
            server = stack.enter_context(PostgresServer(options.url, settings=DURABLE))
        where = setting(server, files, LIBRARIES)
        bench = Bench(files, server, feast, options.rows / ROWS)
        stack.callback(bench.close)
        found = compared(measures, measure_all(bench, measures, options.rounds))
    minutes = (time.perf_counter() - began) / 60
    rounds = "1 round" if options.rounds == 1 else f"the best of {options.rounds} rounds"
    where += f"\n{dt.date.today()}, {rounds}, {minutes:.1f} minutes"
    if bench.share != 1:
        where += (
            f"\nA quick look: entity tables have {bench.share:g} times the rows that lines name"
        )
    print(f"{where}\n")
    tell(options, where, measures, found)
    return not any(isinstance(one, str) and one.startswith("failed") for one in found.values())


def tell(
    options: argparse.Namespace,
    where: str,
    measures: dict[str, Measure],
    found: dict[str, Measured | str],
) -> None:
    form = as_markdown if options.markdown else as_text
    lines = {name: one.line for name, one in measures.items()}
    cells = cells_of(measures, found)
    print(form(measured_table(lines, found)), end="\n\n")
    if "engines" in (options.only or PARTS):
        print(form(engines_table(ENGINES, cells)), end="\n\n")
    targets = target_table(TARGETS, found)
    print(form(targets))
    if options.json is not None:
        told = {
            "setting": where.splitlines(),
            "measured": found_json(lines, found),
            "engines": engines_json(cells),
            "targets": [dict(zip(targets[0], row, strict=True)) for row in targets[1]],
        }
        options.json.write_text(json.dumps(told, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=ROWS,
        help="of history (2,000,000); the entity tables grow and shrink with it",
    )
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many counts (1)")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; can be repeated")
    parser.add_argument("--markdown", action="store_true", help="tables as docs/ has them")
    parser.add_argument("--json", type=Path, help="a file for all figures as JSON, too")
    parser.add_argument("--url", help="a PostgreSQL to use instead of one from the wheel")
    parser.add_argument("--feast-python", help="the Python of an environment with feast")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child()
    if importlib.util.find_spec("duckdb") is None:
        parser.error("the peers are missing: uv run --group bench python benchmarks/training.py")
    if options.rows < 1_000 or options.rounds < 1:
        parser.error("it takes at least 1,000 rows and 1 round")
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-") as name:
        folder = Path(name)
        sys.exit(0 if run(options, folder) else 1)


if __name__ == "__main__":
    main()
