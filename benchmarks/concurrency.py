"""What the loop, threads and processes each cost and gain, in one run of about a minute.

    uv run python benchmarks/concurrency.py [--quick]

Each group does one job in several ways; `of first` compares with the group's first way (more is
faster). `p99` and `worst` say how late a task that sleeps a millisecond wakes up meanwhile: what
every other caller of the loop has to wait. Absolute times say little on shared machines.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import multiprocessing
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pgpq
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web

import featurestore as fs
from featurestore.ingest.conform import conform_arrow, conform_rows
from featurestore.ingest.layout import Layout

WORKERS = 2
ANSWER_SECONDS = 0.1

FLOATS = [f"f{i}" for i in range(6)]
VIEW = fs.FeatureView(
    "bench",
    entities=[fs.Entity("item", join_keys={"item_id": fs.Int64})],
    fields=[*(fs.Field(name, fs.Float64) for name in FLOATS), fs.Field("label", fs.String)],
    timestamp_field="event_timestamp",
)
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)

Way = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Cost:
    """Seconds of wall time, and the loop's delays meanwhile."""

    seconds: float
    delays: Sequence[float]

    def delay(self, share: float) -> float:
        return sorted(self.delays)[int((len(self.delays) - 1) * share)] if self.delays else 0.0


async def watched(way: Way) -> Cost:
    """Run `way` beside a task that sleeps a millisecond again and again."""
    delays: list[float] = []

    async def sleeper() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            delays.append(time.perf_counter() - began - 0.001)

    watcher = asyncio.create_task(sleeper())
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await way()
    seconds = time.perf_counter() - began
    await asyncio.sleep(0.002)  # the delay of the last step is noted, too
    watcher.cancel()
    return Cost(seconds, delays)


async def compare(
    title: str, ways: dict[str, Way], *, work: float, unit: str, rounds: int = 3
) -> None:
    """Do the same ``work`` in each of the ways by turns, and print the fastest round of each."""
    costs: dict[str, Cost] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            cost = await watched(way)
            if name not in costs or cost.seconds < costs[name].seconds:
                costs[name] = cost
    show(title, unit, {name: (work, cost) for name, cost in costs.items()})


def show(title: str, unit: str, costs: dict[str, tuple[float, Cost]]) -> None:
    """A group of the table: by name how much work was done, and at what cost."""
    print(f"\n{title:<50} {unit:>12} {'of first':>9} {'p99 ms':>8} {'worst ms':>9}")
    speeds = {name: work / cost.seconds for name, (work, cost) in costs.items()}
    first = next(iter(speeds.values()))
    for name, (_, cost) in costs.items():
        print(
            f"  {name:<48} {speeds[name]:>12,.0f} {speeds[name] / first:>9.2f} "
            f"{cost.delay(0.99) * 1e3:>8.1f} {cost.delay(1) * 1e3:>9.1f}",
            flush=True,
        )


async def in_thread(work: Callable[[], object]) -> object:
    return await asyncio.to_thread(work)


# --- Parquet, Arrow, COPY ---------------------------------------------------------------------


def table_of(rows: int) -> pa.Table:
    random = np.random.default_rng(7)
    times = np.sort(random.integers(0, 30 * 86_400_000_000, rows)) + 1_700_000_000_000_000
    return pa.table(
        {
            "item_id": random.integers(0, 100_000, rows),
            "event_timestamp": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
            **{name: random.random(rows) for name in FLOATS},
            "label": pa.array([f"label-{i % 1000}" for i in range(rows)]),
        }
    )


async def each(steps: Iterator[object], *, threaded: bool) -> None:
    """All steps of an iterator, the loop having its turn between them."""
    end = object()
    while True:
        step = await asyncio.to_thread(next, steps, end) if threaded else next(steps, end)
        if step is end:
            return
        await asyncio.sleep(0)


async def parquet(rows: int, folder: Path) -> None:
    path = folder / "bench.parquet"
    table = table_of(rows)
    pq.write_table(table, path, compression="zstd", row_group_size=131_072)

    def decoded() -> Iterator[object]:
        yield from pq.ParquetFile(path).iter_batches(65_536)

    def checked() -> Iterator[object]:
        layout = Layout(VIEW)
        columns = {name: name for name in table.column_names}
        for batch in table.to_batches(max_chunksize=65_536):
            yield conform_arrow(batch, layout, columns, 0, "the table")

    def encoded(size: int) -> Iterator[object]:
        encoder = pgpq.ArrowToPostgresBinaryEncoder(table.schema)
        encoder.write_header()
        for batch in table.to_batches(max_chunksize=size):
            yield encoder.write_batch(batch)

    def ways(steps: Callable[[], Iterator[object]]) -> dict[str, Way]:
        return {
            "on the loop": lambda: each(steps(), threaded=False),
            "in a thread": lambda: each(steps(), threaded=True),
        }

    await each(decoded(), threaded=True)  # into the cache of the file system
    count = f"{rows:,} rows of {table.num_columns} columns"
    await compare(f"Decode Parquet: {count}", ways(decoded), work=rows, unit="rows/s")
    await compare("Check and cast them", ways(checked), work=rows, unit="rows/s")
    await compare(
        "Encode them for COPY (pgpq holds the GIL)",
        {
            "on the loop, 65,536 rows at a time": lambda: each(encoded(65_536), threaded=False),
            "in a thread, 65,536 rows at a time": lambda: each(encoded(65_536), threaded=True),
            "in a thread, 8,192 rows at a time": lambda: each(encoded(8_192), threaded=True),
        },
        work=rows,
        unit="rows/s",
    )


# --- computing in Python ----------------------------------------------------------------------


def features_of(seed: int) -> dict[str, float]:
    """Features of one item by pure Python: some 25 ms of it."""
    total = squares = 0.0
    value = seed + 1
    for _ in range(100_000):
        value = (value * 1_103_515_245 + 12_345) % 2_147_483_648
        total += value
        squares += value * value
    return {"mean": total / 100_000, "squares": squares / 100_000}


async def python(items: int) -> None:
    async def pooled(pool: Executor) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(pool, features_of, n) for n in range(items)))

    async def inline() -> None:
        for number in range(items):
            features_of(number)
            await asyncio.sleep(0)

    # Not fork: a copy of a process whose threads hold locks may wait for them for ever.
    context = multiprocessing.get_context("spawn")
    with (
        ThreadPoolExecutor(WORKERS) as threads,
        ProcessPoolExecutor(WORKERS, mp_context=context) as processes,
    ):
        began = time.perf_counter()
        await pooled(processes)
        started = time.perf_counter() - began
        await compare(
            f"Compute in Python: {items} items of some 25 ms",
            {
                "on the loop": inline,
                f"in {WORKERS} threads": lambda: pooled(threads),
                f"in {WORKERS} processes": lambda: pooled(processes),
            },
            work=items,
            unit="items/s",
            rounds=2,
        )
        again = time.perf_counter()
        await pooled(processes)
        started -= time.perf_counter() - again
        print(f"  ({WORKERS} processes take {started:.1f} s to start, once)")


# --- waiting for others -----------------------------------------------------------------------


def serve(port: Connection) -> None:
    """An API in a process of its own, which answers after a tenth of a second."""

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(ANSWER_SECONDS)
        return web.json_response({"value": 1})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "localhost", 0)
        await site.start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


async def http(requests: int) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        if not await asyncio.to_thread(ours.poll, 60):
            raise TimeoutError("the server of the benchmark does not start")
        async with httpx.AsyncClient(base_url=f"http://localhost:{ours.recv()}") as client:

            async def fetch(at_once: int) -> None:
                places = asyncio.Semaphore(at_once)

                async def one() -> None:
                    async with places:
                        (await client.get("/")).raise_for_status()

                async with asyncio.TaskGroup() as group:
                    for _ in range(requests):
                        group.create_task(one())

            await fetch(16)  # opens the connections
            await compare(
                f"Fetch {requests} answers that take 100 ms each",
                {
                    "one after the other": lambda: fetch(1),
                    "4 at once": lambda: fetch(4),
                    "16 at once": lambda: fetch(16),
                    "in 4 threads, each with a client of its own": lambda: in_threads(
                        str(client.base_url), requests
                    ),
                },
                work=requests,
                unit="answers/s",
                rounds=1,
            )
    finally:
        server.terminate()
        await asyncio.to_thread(server.join)


async def in_threads(url: str, requests: int) -> None:
    def some() -> None:
        with httpx.Client(base_url=url) as client:
            for _ in range(requests // 4):
                client.get("/").raise_for_status()

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(in_thread(some))


# --- when a thread costs more than the work ---------------------------------------------------


def mappings(count: int) -> list[dict[str, Any]]:
    return [
        {
            "item_id": number % 5_000,
            "event_timestamp": NOON + dt.timedelta(seconds=number),
            **dict.fromkeys(FLOATS, 0.5),
            "label": "label",
        }
        for number in range(count)
    ]


async def small(repeats: int) -> None:
    layout = Layout(VIEW)
    await in_thread(lambda: conform_rows(mappings(1), layout))

    async def check(rows: list[dict[str, Any]], times: int, *, threaded: bool) -> None:
        for _ in range(times):
            if threaded:
                await asyncio.to_thread(conform_rows, rows, layout)
            else:
                conform_rows(rows, layout)
                await asyncio.sleep(0)

    for size in (1, 10, 200, 2_000):
        rows, times = mappings(size), max(repeats // size, 5)
        await compare(
            f"Check pushed rows, {size:,} at a time",
            {
                "on the loop": lambda r=rows, t=times: check(r, t, threaded=False),  # type: ignore[misc]
                "in a thread": lambda r=rows, t=times: check(r, t, threaded=True),  # type: ignore[misc]
            },
            work=times,
            unit="pushes/s",
        )


# --- streams ----------------------------------------------------------------------------------


async def streams(rows: int, folder: Path) -> None:
    given = mappings(rows)

    async def source() -> AsyncIterator[dict[str, Any]]:
        for row in given:
            yield row

    async with fs.FeatureStore(f"sqlite:///{folder / 'store.db'}") as store:
        await store.apply(VIEW)
        await store.push(VIEW, given[:1])
        await store.push_stream(VIEW, source())  # what is imported and compiled once

        async def pushes() -> None:
            for row in given[: rows // 100]:
                await store.push(VIEW, [row])

        async def stream() -> None:
            await store.push_stream(VIEW, source())

        alone = await watched(pushes)
        together = await watched(stream)
    show(
        "Write rows that come one by one, SQLite",
        "rows/s",
        {"a push for each": (rows // 100, alone), "push_stream": (rows, together)},
    )


async def run(scale: int, folder: Path) -> None:
    idle = await watched(lambda: asyncio.sleep(1))
    print(
        f"{os.cpu_count()} cores; an idle loop is late by {idle.delay(0.99) * 1e3:.1f} ms (p99), "
        f"{idle.delay(1) * 1e3:.1f} ms (worst)"
    )
    await parquet(131_072 * 10 // scale, folder)
    await python(60 // scale)
    await http(80 // scale)
    await small(1_000 // scale)
    await streams(20_000 // scale, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the work")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(5 if options.quick else 1, Path(folder)))
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
