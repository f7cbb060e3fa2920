"""How fast `ingest` is, against everything that could be used instead, in one run.

    uv run --group bench python benchmarks/ingest.py

A generated Parquet file (2 million rows of 11 columns: bigint key of 100,000, two timestamps, six
doubles, int, dictionary text; zstd, row groups of 131,072) is loaded the whole way: validation,
history with its indexes, online, ledger, commit. The peers put the same rows into a table and do
nothing more. Each measurement has a process and a database of its own.

Absolute times say little on shared machines; the ratios are what to read. docs/performance.md says
what is measured and holds the figures of a quiet run.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import importlib.util
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
from ingest_data import Files
from ingest_table import Measured, as_markdown, as_text, measured_table, target_table

from featurestore.testing import PostgresServer

DATABASE = "featurestore_bench"
FEAST = Path(__file__).with_name("ingest_feast.py")
PARTS = ("postgresql", "sqlite", "files", "memory")

SECONDS = 600.0
LONG_SECONDS = 3_600.0
"""How long one measurement may take."""

DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
"""PostgreSQL as it comes. The launcher, which is made for tests, switches these off."""

SHOWN = (*DURABLE, "wal_level", "shared_buffers", "max_wal_size", "maintenance_work_mem")
LIBRARIES = ("pyarrow", "asyncpg", "pgpq", "adbc-driver-postgresql", "sqlalchemy", "pandas")


@dataclass(frozen=True)
class Way:
    """One way in: the children's function for it, its file, and the parts that it belongs to.

    ``after`` are loads of the store into the same database that come before, unmeasured.
    """

    name: str
    title: str
    function: str = ""
    file: str = "first"
    parts: tuple[str, ...] = ("postgresql",)
    after: tuple[str, ...] = ()

    @property
    def sqlite(self) -> bool:
        return "sqlite" in self.parts


# Ours stand next to what they are compared with: a machine's speed drifts in the course of a run.
WAYS = (
    Way("copy_then_index", "pgpq + asyncpg COPY, then index"),
    Way("first", "featurestore, first load", "ingest", parts=("postgresql", "memory")),
    Way("adbc_indexed", "ADBC into an indexed table"),
    Way("adbc_primary_key", "ADBC into a table with primary key"),
    Way("server_copy", "COPY FROM on the server", file="copy_bytes"),
    Way("server_copy_then_index", "COPY FROM on the server, then index", file="copy_bytes"),
    Way("copy_records", "asyncpg copy_records_to_table"),
    Way("insert_list", "SQLAlchemy insert(), a list of rows"),
    Way("insert_values", "SQLAlchemy insert().values(rows)"),
    Way("pandas_postgresql", "pandas to_sql"),
    Way("pandas_multi", 'pandas to_sql, method="multi"'),
    Way("feast_postgresql", "Feast materialize, online only", "feast"),
    Way("copy_beside", "COPY beside a load of ours", file="second", after=("first",)),
    Way(
        "second",
        "featurestore, second load",
        "ingest",
        file="second",
        parts=("postgresql", "memory"),
        after=("first",),
    ),
    Way("files_1", "featurestore, 8 files, one at a time", "ingest_1", "several", ("files",)),
    Way("files_2", "featurestore, 8 files, two at a time", "ingest_2", "several", ("files",)),
    Way("cold", "featurestore, first call of a process", "ingest_cold", parts=("memory",)),
    Way("one_group", "featurestore, one row group", "ingest", "one_group", ("memory",)),
    Way("long", "featurestore, a file ten times as long", "ingest", "long", ("memory",)),
    Way("sqlite_adbc", "SQLite: ADBC into a bare table", parts=("sqlite",)),
    Way("sqlite", "SQLite: featurestore", "ingest", parts=("sqlite", "memory")),
    Way("sqlite_executemany", "SQLite: executemany, then index", parts=("sqlite",)),
    Way("pandas_sqlite", "SQLite: pandas to_sql", parts=("sqlite",)),
    Way("feast_sqlite", "SQLite: Feast materialize, online only", "feast", parts=("sqlite",)),
)


class Failed(Exception):
    """A measurement that came to nothing; the message says why."""


# --- the child: one measurement ----------------------------------------------------------------


def child() -> None:
    """Carry out the order on stdin; what was measured goes to stdout as JSON."""
    order = json.load(sys.stdin)
    function, url, path = order["function"], order["url"], Path(order["path"])
    # Only what it needs: the peers' libraries would count as the idle memory of a load of ours.
    if function.startswith("ingest"):
        if function != "ingest_cold":
            import pandas  # noqa: F401 - as pyarrow does at its first Python value, if it is there
        from ingest_ours import load

        measured = asyncio.run(load(function, url, path))
    else:
        from ingest_peers import PEERS

        measured = asyncio.run(_peer(PEERS[function], url, path))
    print(json.dumps(measured))


async def _peer(peer: Any, url: str, path: Path) -> dict[str, float]:
    if inspect.iscoroutinefunction(peer):
        rows, seconds = await peer(url, path)
    else:
        rows, seconds = await asyncio.to_thread(peer, url, path)
    return {"rows": rows, "seconds": seconds}


# --- the parent: databases, order, table --------------------------------------------------------


@dataclass
class Bench:
    """What all measurements of a run share."""

    files: Files
    server: PostgresServer | None
    feast: str | None

    def measure(self, way: Way) -> Measured:
        """One measurement in a fresh database, which is gone afterwards; or :class:`Failed`."""
        if way.function == "feast" and self.feast is None:
            raise Failed("skipped: not installed; see --feast-python")
        path = getattr(self.files, way.file)()
        with self._database(way) as url:
            for before in way.after:
                self._child("ingest", url, getattr(self.files, before)())
            self._settle(way, url)
            deadline = LONG_SECONDS if way.name == "long" else SECONDS
            return self._child(way.function or way.name, url, path, deadline)

    @contextmanager
    def _database(self, way: Way) -> Iterator[str]:
        if way.sqlite:
            folder = self.files.folder / "sqlite"
            folder.mkdir()
            try:
                yield f"sqlite:///{folder / 'bench.db'}"
            finally:
                shutil.rmtree(folder)
            return
        assert self.server is not None
        self.server.create_database(DATABASE)
        try:
            yield self.server.url(DATABASE)
        finally:
            self.server.drop_database(DATABASE)

    def _settle(self, way: Way, url: str) -> None:
        """What others have left to be written is no measurement's to wait for."""
        if not way.sqlite:
            asyncio.run(ask(url, "CHECKPOINT"))
        os.sync()

    def _child(self, function: str, url: str, path: Path, seconds: float = SECONDS) -> Measured:
        command = [sys.executable, str(Path(__file__).resolve()), "--child"]
        if function == "feast":
            command = [str(self.feast), str(FEAST)]
        with tempfile.TemporaryDirectory(dir=self.files.folder) as folder:
            order = {"function": function, "url": url, "path": str(path), "folder": folder}
            return Measured(**carried_out(command, order, seconds))


def carried_out(command: list[str], order: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What a child answers to an order, or :class:`Failed`."""
    # The order goes by stdin: a command line shows a URL's password to everybody.
    try:
        done = subprocess.run(
            command,
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"failed: not done after {seconds:,.0f} s") from None
    except OSError as error:  # of a Python that was named
        raise Failed(f"failed: {error}") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(f"failed: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


async def ask(url: str, *statements: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [await connection.fetchval(statement) for statement in statements]
    finally:
        await connection.close()


def chosen(options: argparse.Namespace) -> list[Way]:
    """The ways of the parts that were asked for."""
    parts = set(options.only or PARTS)
    return [way for way in WAYS if parts & set(way.parts) and (options.long or way.name != "long")]


def measure_all(bench: Bench, ways: list[Way], rounds: int) -> dict[str, Measured | str]:
    """Each way once per round, one after the other; the fastest of the rounds counts."""
    found: dict[str, Measured | str] = {}
    for turn in range(rounds):
        for way in ways:
            print(f"{turn + 1}/{rounds} {way.title} …", file=sys.stderr, flush=True)
            try:
                measured = bench.measure(way)
            except Failed as error:
                print(f"    {error}", file=sys.stderr)
                found.setdefault(way.name, str(error))
                continue
            print(f"    {measured.seconds:.2f} s, {measured.rate:,.0f} rows/s", file=sys.stderr)
            found[way.name] = better(found.get(way.name), measured)
    return found


def better(known: Measured | str | None, new: Measured) -> Measured:
    """The faster of two, with the greater memory: noise makes slow, and takes no memory."""
    if not isinstance(known, Measured):
        return new
    fastest = min(known, new, key=lambda one: one.seconds)
    if known.megabytes is None or new.megabytes is None:
        return fastest
    return replace(fastest, megabytes=max(known.megabytes, new.megabytes))


def setting(
    server: PostgresServer | None, files: Files, libraries: Sequence[str] = LIBRARIES
) -> str:
    """A line or two on where this ran: figures mean little without."""
    shown = ", ".join(f"{name} {version(name)}" for name in libraries)
    lines = [
        f"{files.rows:,} rows, {files.first().stat().st_size / 1e6:.0f} MB of Parquet; "
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        shown,
    ]
    if server is not None:
        names = ["server_version", *SHOWN]
        values = asyncio.run(ask(server.url(), *(f"SHOW {name}" for name in names)))
        pairs = zip(SHOWN, values[1:], strict=True)
        told = ", ".join(f"{name}={value}" for name, value in pairs)
        lines.append(f"PostgreSQL {values[0]}: {told}")
    return "\n".join(lines)


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Measure and print; whether nothing failed."""
    began = time.perf_counter()
    ways = chosen(options)
    files = Files(folder, options.rows)
    feast = options.feast_python
    if feast is None and importlib.util.find_spec("feast") is not None:
        feast = sys.executable
    if all(way.sqlite for way in ways):
        where = setting(None, files)
        found = measure_all(Bench(files, None, feast), ways, options.rounds)
    else:
        with PostgresServer(options.url, settings=DURABLE) as server:
            where = setting(server, files)
            found = measure_all(Bench(files, server, feast), ways, options.rounds)
    titles = {way.name: way.title for way in ways}
    form = as_markdown if options.markdown else as_text
    minutes = (time.perf_counter() - began) / 60
    rounds = "1 round" if options.rounds == 1 else f"the best of {options.rounds} rounds"
    print(f"{where}\n{dt.date.today()}, {rounds}, {minutes:.1f} minutes\n")
    print(form(measured_table(titles, found)), end="\n\n")
    print(form(target_table(titles, found)))
    return not any(isinstance(one, str) and one.startswith("failed") for one in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the file (2,000,000)")
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many counts (1)")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; can be repeated")
    parser.add_argument("--long", action="store_true", help="a file ten times as long, too")
    parser.add_argument("--markdown", action="store_true", help="tables as docs/ has them")
    parser.add_argument("--url", help="a PostgreSQL to use instead of one from the wheel")
    parser.add_argument("--feast-python", help="the Python of an environment with feast[postgres]")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child()
    if importlib.util.find_spec("adbc_driver_postgresql") is None:
        parser.error("the peers are missing: uv run --group bench python benchmarks/ingest.py")
    if options.rows < 1_000 or options.rounds < 1:
        parser.error("it takes at least 1,000 rows and 1 round")
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server, another user's perhaps, reads a file in it
        sys.exit(0 if run(options, folder) else 1)


if __name__ == "__main__":
    main()
