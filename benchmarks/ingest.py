"""How fast `ingest` is, against what it is made of, in one run.

    uv run --group bench python benchmarks/ingest.py [--rows 2000000] [--url postgresql://…]

A generated Parquet file (bigint key of 100,000, two timestamps, six doubles, int, dictionary
text; zstd, row groups of 131,072) is loaded the whole way: validation, history with its index,
online, ledger, commit. The peers do less: they put the same rows into a bare table, and index it.
Absolute times say little on shared machines; the ratios are what to read.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import resource
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pgpq
import pyarrow as pa
import pyarrow.parquet as pq

import featurestore as fs
from featurestore.testing import PostgresServer

KEYS = 100_000
FLOATS = [f"f{i}" for i in range(6)]
EPOCH = 1_700_000_000_000_000

view = fs.FeatureView(
    "bench",
    entities=[fs.Entity("item", join_keys={"item_id": fs.Int64})],
    fields=[
        *(fs.Field(name, fs.Float64) for name in FLOATS),
        fs.Field("n", fs.Int32),
        fs.Field("label", fs.String),
    ],
    timestamp_field="event_timestamp",
    created_timestamp_field="created",
)


def generate(path: Path, rows: int) -> None:
    """Write the benchmark's file."""
    random = np.random.default_rng(7)
    times = np.sort(random.integers(0, 30 * 86_400_000_000, rows)) + EPOCH
    stamp = pa.timestamp("us", tz="UTC")
    words = pa.array([f"label-{i}" for i in range(1000)])
    table = pa.table(
        {
            "item_id": random.integers(0, KEYS, rows),
            "event_timestamp": pa.array(times).cast(stamp),
            "created": pa.array(times + 1_000_000).cast(stamp),
            **{name: random.random(rows) for name in FLOATS},
            "n": random.integers(0, 1000, rows).astype("int32"),
            "label": pa.DictionaryArray.from_arrays(
                pa.array(random.integers(0, 1000, rows).astype("int32")), words
            ),
        }
    )
    pq.write_table(table, path, compression="zstd", row_group_size=131_072)


async def lag(worst: list[float]) -> None:
    """Sleep a millisecond again and again, and note how late each wake-up was."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        worst.append(time.perf_counter() - began - 0.001)


async def load(url: str, path: Path) -> tuple[float, list[float]]:
    """Ingest the file into an empty view: seconds, and the loop's lags meanwhile."""
    lags: list[float] = []
    async with fs.FeatureStore(url) as store:
        await store.apply(view)
        watcher = asyncio.create_task(lag(lags))
        report = await store.ingest(view, path)
        watcher.cancel()
    return report.seconds, lags


async def copy_then_index(url: str, path: Path) -> float:
    """pgpq into asyncpg's COPY, then CREATE INDEX: the practical limit for these rows."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "CREATE TABLE bare (item_id bigint, event_timestamp timestamptz, created timestamptz, "
            + ", ".join(f"{name} double precision" for name in FLOATS)
            + ", n integer, label text)"
        )
        began = time.perf_counter()
        await connection.copy_to_table("bare", source=encoded(path), format="binary")
        await connection.execute("CREATE INDEX ON bare (item_id, event_timestamp)")
        return time.perf_counter() - began
    finally:
        await connection.close()


async def encoded(path: Path) -> AsyncIterator[bytes]:
    batches = pq.ParquetFile(path).iter_batches(65_536)
    plain = pa.schema(
        [
            pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type)
            for f in pq.read_schema(path)
        ]
    )
    encoder = pgpq.ArrowToPostgresBinaryEncoder(plain)
    yield encoder.write_header()
    while (batch := await asyncio.to_thread(next, batches, None)) is not None:
        plain_batch = pa.Table.from_batches([batch]).cast(plain).combine_chunks().to_batches()[0]
        yield await asyncio.to_thread(encoder.write_batch, plain_batch)
    yield encoder.finish()


def executemany_then_index(file: Path, path: Path) -> float:
    """sqlite3's executemany into a bare table, then the index."""
    connection = sqlite3.connect(file, isolation_level=None)
    names = pq.read_schema(path).names
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"CREATE TABLE bare ({', '.join(names)})")
    began = time.perf_counter()
    connection.execute("BEGIN")
    insert = f"INSERT INTO bare VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our names
    for batch in pq.ParquetFile(path).iter_batches(65_536):
        columns = [
            (c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c).to_pylist()
            for c in batch.columns
        ]
        connection.executemany(insert, zip(*columns, strict=True))
    connection.execute("CREATE INDEX bare_key ON bare (item_id, event_timestamp)")
    connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


def show(name: str, rows: int, seconds: float, peer: float | None, lags: list[float]) -> None:
    ratio = "" if peer is None else f"{peer / seconds:6.2f}"
    ordered = sorted(lags)
    stalls = [ordered[int(len(ordered) * 0.99)], ordered[-1]] if lags else []
    stall = " ".join(f"{late * 1e3:7.1f}" for late in stalls)
    print(f"{name:<44} {rows / seconds:>12,.0f} {seconds:>8.2f} {ratio:>8} {stall}")


async def run(rows: int, url: str | None, folder: Path) -> None:
    path = folder / "bench.parquet"
    await asyncio.to_thread(generate, path, rows)
    print(f"{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB of Parquet")
    print(f"{'':<44} {'rows/s':>12} {'seconds':>8} {'of peer':>8} {'p99 ms':>7} {'max ms':>7}")
    await sqlite(rows, folder, path)
    await postgresql(rows, url, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:,.0f} MB")


async def sqlite(rows: int, folder: Path, path: Path) -> None:
    seconds, lags = await load(f"sqlite:///{folder / 'store.db'}", path)
    peer = await asyncio.to_thread(executemany_then_index, folder / "bare.db", path)
    show("SQLite: executemany, then the index", rows, peer, None, [])
    show("SQLite: ingest", rows, seconds, peer, lags)


async def postgresql(rows: int, url: str | None, path: Path) -> None:
    server = await asyncio.to_thread(lambda: PostgresServer(url).__enter__())
    try:
        await asyncio.to_thread(server.create_database, "featurestore_bench")
        target = server.url("featurestore_bench")
        measure: Callable[[], Awaitable[Any]] = lambda: copy_then_index(target, path)  # noqa: E731
        peer = await measure()
        seconds, lags = await load(target, path)
        show("PostgreSQL: pgpq, COPY, then the index", rows, peer, None, [])
        show("PostgreSQL: ingest", rows, seconds, peer, lags)
    finally:
        await asyncio.to_thread(server.drop_database, "featurestore_bench")
        await asyncio.to_thread(server.__exit__, None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--url", help="a PostgreSQL to use instead of one from the wheel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(dt.datetime.now().isoformat(timespec="seconds"))
        asyncio.run(run(options.rows, options.url, Path(folder)))


if __name__ == "__main__":
    main()
