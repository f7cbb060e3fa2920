"""How many requests `featurestore serve` answers, against Feast's feature server, in one run.

    uv run --group bench python benchmarks/server.py --feast-python …/bin/python

100,000 keys with 8 features each in a PostgreSQL that it starts; one worker each; every request
asks for the 8 features of one random key. `wrk` makes the load (Debian: apt-get install wrk).
The servers take turns; those that are not measured at the moment wait.

Feast wants other versions than this project: it has an environment of its own, named by
--feast-python or FEAST_PYTHON, or made for the run with --install-feast.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from ingest_table import as_markdown, as_text
from online_data import FEATURES, KEYS, READ, rows_of
from online_load import Measured, median
from online_table import DURABLE, Line, Target, measured_table, setting, target_table

import featurestore as fs
from featurestore.testing import PostgresServer

HERE = Path(__file__).parent
LIBRARIES = ("fastapi", "uvicorn", "asyncpg", "sqlalchemy", "pyarrow")

CLIENTS = {32: 5.0, 1: 2.0, 128: 3.0}
"""Connections of wrk for how many seconds. The first has a target, and counts the median of the
rounds; one round is enough for the others."""

WARM_SECONDS = 2
START_SECONDS = 60.0
STOP_SECONDS = 20.0
PREPARE_SECONDS = 300.0
INSTALL_SECONDS = 900.0

T = TypeVar("T")
Kind = Literal["ours", "feast", "endless"]
TITLES: dict[Kind, str] = {
    "ours": "featurestore serve",
    "feast": "Feast, as it comes",
    "endless": "Feast, --max-requests 0 --no-access-log",
}
FLAGS: dict[Kind, list[str]] = {
    "feast": [],
    # By default it writes a line for each request, and begins its worker anew after 1,000 of them.
    "endless": ["--max-requests", "0", "--no-access-log"],
}

LINES = {
    f"{kind}_{clients}": Line("1 entity", title, clients)
    for clients in CLIENTS
    for kind, title in TITLES.items()
}
TARGETS = (
    Target("32 clients: requests / Feast as it comes", "ours_32", "feast_32", "rate", 10),
    Target("32 clients: requests / Feast, no restarts", "ours_32", "endless_32", "rate", None),
)


class Failed(Exception):
    """A server that cannot be measured; the message says why."""


@dataclass
class Bench:
    """What a run shares: the database server, the folder for files, the rows, Feast's Python
    (None: left out)."""

    server: PostgresServer
    folder: Path
    rows: pa.Table
    feast: str | None

    def database(self, kind: Kind) -> str:
        return f"featurestore_bench_server_{'ours' if kind == 'ours' else 'feast'}"

    def prepare(self) -> None:
        """The rows into the store, in a database of its own."""
        database = self.database("ours")
        self.server.create_database(database)
        asyncio.run(_fill(self.server.url(database), self.rows))

    def prepare_feast(self) -> None:
        """The rows into Feast's online store, likewise, by a repository in the folder."""
        database = self.database("feast")
        self.server.create_database(database)
        path, repository = self.folder / "rows.parquet", self.folder / "feast"
        pq.write_table(self.rows, path)
        repository.mkdir(mode=0o700)
        order = {
            "url": self.server.url(database),
            "path": str(path),
            "folder": str(repository),
            "view": READ.name,
            "features": FEATURES,
        }
        # The order goes by stdin: a command line shows a URL's password to everybody.
        command = [str(self.feast), str(HERE / "server_feast.py")]
        _run(command, PREPARE_SECONDS, input=json.dumps(order), env=_environment())

    def command(self, kind: Kind, port: int) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        if kind == "ours":
            return [sys.executable, "-m", "featurestore.cli", "serve", *where]
        program = Path(str(self.feast)).with_name("feast")
        return [str(program), "-c", str(self.folder / "feast"), "serve", *where, *FLAGS[kind]]

    @contextmanager
    def running(self, kind: Kind) -> Iterator[str]:
        """The server at work; the URL that features are asked for at."""
        port = _free_port()
        log = self.folder / f"{kind}.log"
        environment = _environment(FEATURESTORE_URL=self.server.url(self.database("ours")))
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(kind, port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment if kind == "ours" else _environment(),
            )
        path = "/v1/online-features" if kind == "ours" else "/get-online-features"
        url = f"http://127.0.0.1:{port}{path}"
        try:
            self._wait(kind, url, process, log)
            yield url
        finally:
            _stop(process)

    def _wait(self, kind: Kind, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        last = ""
        while process.poll() is None and time.monotonic() < deadline:
            try:
                return self.check(kind, url)
            except OSError as error:  # urllib's are, too
                last = str(error)
            time.sleep(0.1)
        lines = log.read_text(errors="replace").strip().splitlines()[-3:]
        reason = " | ".join([last, *lines])
        raise Failed(f"failed: {TITLES[kind]} does not start: {reason}")

    def check(self, kind: Kind, url: str) -> None:
        """Whether it answers with the features of a key; :class:`Failed` where it does not."""
        row = self.rows.slice(7, 1).to_pylist()[0]
        expected = {name: row[name] for name in ["driver_id", *FEATURES]}
        found = _ask(kind, url, row["driver_id"])
        if not all(
            math.isclose(found.get(name, math.nan), value) for name, value in expected.items()
        ):
            raise Failed(f"failed: {TITLES[kind]} answers {found}, not {expected}")

    def load(self, kind: Kind, url: str, clients: int, seconds: float) -> Measured:
        """Let wrk ask for random keys on so many connections, each at once again when answered."""
        whole = max(round(seconds), 1)
        command = ["wrk", "-t1", f"-c{clients}", f"-d{whole}s", "--timeout", "10s"]
        script = ["-s", str(HERE / "server.lua"), url, "--"]
        asked = [kind, str(KEYS), READ.name, *FEATURES]
        done = _run([*command, *script, *asked], whole + 60)
        counted = json.loads(done.strip().splitlines()[-1])
        right = counted["requests"] - counted["refused"]
        errors = counted["refused"] + counted["broken"]
        if errors:
            say(f"    {errors:,} errors beside {right:,} answers")
        # Feast drops connections when its worker is begun anew.
        if not right or (errors and kind != "feast"):
            raise Failed(f"failed: {TITLES[kind]}: {errors:,} errors beside {right:,} answers")
        return Measured(right / counted["seconds"], counted["p50"], counted["p99"])


async def _fill(url: str, rows: pa.Table) -> None:
    async with fs.FeatureStore(url) as store:
        await store.apply(READ)
        await store.ingest(READ, rows)


def _ask(kind: Kind, url: str, key: int) -> dict[str, Any]:
    """The features of a key as the server tells them, by name."""
    names = [f"{READ.name}:{name}" for name in FEATURES]
    entities: Any = [{"driver_id": key}] if kind == "ours" else {"driver_id": [key]}
    request = urllib.request.Request(
        url,
        json.dumps({"features": names, "entities": entities}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
    if kind == "ours":
        return dict(zip([*answer["keys"], *answer["features"]], answer["rows"][0], strict=True))
    columns = answer["metadata"]["feature_names"]
    values = [result["values"][0] for result in answer["results"]]
    return dict(zip(columns, values, strict=True))


def _environment(**more: str) -> dict[str, str]:
    """This process's, without what would say to Feast or the store what to do."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("FEAST", "FEATURESTORE"))}
    return {**kept, "FEAST_USAGE": "False", **more}


def _run(command: list[str], seconds: float, **options: Any) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, **options
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"failed: {Path(command[0]).name} is not done after {seconds:g} s") from None
    except OSError as error:
        raise Failed(f"failed: {error}") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(f"failed: {Path(command[0]).name}: {lines[-1]}")
    return str(done.stdout)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- the run ------------------------------------------------------------------------------------


def measure(
    bench: Bench, kinds: list[Kind], rounds: int, share: float
) -> dict[str, Measured | str]:
    """Each server once per round, side by side; the medians of the rounds."""
    found: dict[str, list[Measured]] = {}
    failed: dict[Kind, str] = {}

    def attempt(kind: Kind, step: Callable[[], T]) -> T | None:
        if kind in failed:
            return None
        try:
            return step()
        except Failed as error:
            failed[kind] = str(error)
            say(f"    {error}")
            return None

    with ExitStack() as stack:
        urls: dict[Kind, str | None] = {}
        for kind in kinds:
            say(f"starting {TITLES[kind]} …")
            urls[kind] = attempt(kind, partial(stack.enter_context, bench.running(kind)))
            attempt(kind, partial(bench.load, kind, str(urls[kind]), 32, WARM_SECONDS))
        for turn in range(rounds):
            for clients, seconds in CLIENTS.items():
                for kind in kinds if clients == 32 or turn == 0 else ():
                    say(f"{turn + 1}/{rounds} {TITLES[kind]}, {clients} clients …")
                    load = partial(bench.load, kind, str(urls[kind]), clients, seconds * share)
                    one = attempt(kind, load)
                    if one is not None:
                        found.setdefault(f"{kind}_{clients}", []).append(one)
                        say(f"    {one.rate:,.0f} requests/s")
        for kind in kinds:  # they still answer, and still with what is right
            attempt(kind, partial(bench.check, kind, str(urls[kind])))
    return {
        f"{kind}_{clients}": failed.get(kind) or median(found[f"{kind}_{clients}"])
        for clients in CLIENTS
        for kind in kinds
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Measure and print; whether nothing failed."""
    began = time.perf_counter()
    kinds: list[Kind] = ["ours"] if options.without_feast else list(TITLES)
    feast = options.feast_python
    if options.install_feast:
        feast = installed_feast(folder)
    with PostgresServer(options.url, settings=DURABLE) as server:
        where = setting(server, LIBRARIES)
        bench = Bench(server, folder, rows_of(READ, 0), feast)
        try:
            say("filling the tables …")
            bench.prepare()
            if feast is not None and not options.without_feast:
                bench.prepare_feast()
            found = measure(bench, kinds, options.rounds, options.share)
        finally:
            for kind in kinds:
                server.drop_database(bench.database(kind))
    form = as_markdown if options.markdown else as_text
    minutes = (time.perf_counter() - began) / 60
    if not options.without_feast and feast is not None:
        where += f"\nFeast {feast_version(feast)}"
    rounds = "1 round" if options.rounds == 1 else f"medians of {options.rounds} rounds"
    print(f"{where}\n{dt.date.today()}, {rounds}, {minutes:.1f} minutes\n")
    print(form(measured_table(LINES, found)), end="\n\n")
    print(form(target_table(TARGETS, found)))
    return not any(isinstance(one, str) for one in found.values())


def installed_feast(folder: Path) -> str:
    """The Python of an environment with Feast, made for this run by uv."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise Failed("failed: --install-feast takes uv: run this by `uv run`")
    say("installing Feast …")
    home = folder / "environment"
    _run([uv, "venv", "--no-project", "--python", sys.executable, str(home)], INSTALL_SECONDS)
    python = str(home / "bin" / "python")
    _run([uv, "pip", "install", "--python", python, "feast[postgres]"], INSTALL_SECONDS)
    return python


def feast_version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('feast'))"
    return _run([python, "-c", code], 60).strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    feast = parser.add_mutually_exclusive_group()
    feast.add_argument(
        "--feast-python",
        default=os.environ.get("FEAST_PYTHON"),
        help="the Python of an environment with feast[postgres] (FEAST_PYTHON)",
    )
    feast.add_argument("--install-feast", action="store_true", help="make one for this run")
    feast.add_argument("--without-feast", action="store_true", help="compare with nothing")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts (3)")
    parser.add_argument("--share", type=float, default=1.0, help="of each round's length (1)")
    parser.add_argument("--markdown", action="store_true", help="tables as docs/ has them")
    parser.add_argument("--url", help="a PostgreSQL to use instead of one from the wheel")
    options = parser.parse_args()
    if not (options.feast_python or options.install_feast or options.without_feast):
        parser.error(
            "Feast is what it is compared with: name the Python of an environment that has it "
            "(--feast-python), have one made (--install-feast), or go --without-feast"
        )
    if shutil.which("wrk") is None:
        parser.error("wrk is missing, which makes the load: apt-get install wrk")
    if options.rounds < 1 or not 0 < options.share <= 10:
        parser.error("it takes at least 1 round, and a share of more than 0 and at most 10")
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-") as name:
        try:
            sys.exit(0 if run(options, Path(name)) else 1)
        except Failed as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
