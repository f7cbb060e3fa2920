"""The rows of `online.py` and `server.py`: views, keys, the peers' tables of the same values."""

from __future__ import annotations

import datetime as dt
import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import asyncpg
import numpy as np
import pyarrow as pa

import featurestore as fs
from featurestore.storage.tables import EVENT, table_names

KEYS = 100_000
FEATURES = [f"f{i}" for i in range(8)]
VIEWS = 5
DAY = 86_400_000_000

driver = fs.Entity("driver", join_keys={"driver_id": fs.Int64})


def view_of(name: str, features: Sequence[str]) -> fs.FeatureView:
    """A view of doubles with a ttl: each read of ours checks it, and no peer does."""
    return fs.FeatureView(
        name,
        entities=[driver],
        fields=[fs.Field(feature, fs.Float64) for feature in features],
        timestamp_field="event_timestamp",
        ttl=dt.timedelta(days=30),
    )


def names_of(view: fs.FeatureView) -> list[str]:
    return [field.name for field in view.fields]


def asked_of(views: Iterable[fs.FeatureView]) -> list[str]:
    """All features of the views, as a request names them."""
    return [f"{view.name}:{name}" for view in views for name in names_of(view)]


READ = view_of("bench", FEATURES)
SEVERAL = [view_of(f"part{n}", [f"p{n}_{name}" for name in FEATURES]) for n in range(VIEWS)]
WRITTEN = view_of("written", FEATURES)
"""What pushes write to: the others stay as they were loaded."""


def rows_of(view: fs.FeatureView, seed: int) -> pa.Table:
    """A row for each key, at some moment of the last day, in no order."""
    generator = np.random.default_rng(seed)
    now = int(dt.datetime.now(dt.UTC).timestamp() * 1e6)
    times = pa.array(now - generator.integers(0, DAY, KEYS))
    return pa.table(
        {
            "driver_id": generator.permutation(KEYS),
            "event_timestamp": times.cast(pa.timestamp("us", tz="UTC")),
            **{name: generator.random(KEYS) for name in names_of(view)},
        }
    )


def random_keys(seed: int) -> Iterator[int]:
    """Keys at random, without end."""
    numbers = random.Random(seed)
    while True:
        yield from numbers.choices(range(KEYS), k=10_000)


async def fill(url: str, views: Iterable[fs.FeatureView]) -> None:
    """Make the views in the store at ``url``, and load a row for each key."""
    async with fs.FeatureStore(url) as store:
        views = list(views)
        await store.apply(views)
        for seed, view in enumerate(views):
            await store.ingest(view, rows_of(view, seed))


def bare(view: fs.FeatureView) -> str:
    """The name of the peers' table that has the view's online rows."""
    return f"bare_{view.name}"


def _columns(view: fs.FeatureView, kind: str) -> str:
    return ", ".join(f"{name} {kind}" for name in names_of(view))


async def fill_bare(url: str, views: Iterable[fs.FeatureView]) -> None:
    """Make the peers' tables beside the store's, of the values that the store has online: a row
    for each key, the key primary. For pushes, a history and a ledger, too."""
    connection = await asyncpg.connect(url)
    try:
        for view in views:
            await connection.execute(
                f"CREATE TABLE {bare(view)} (driver_id bigint PRIMARY KEY,"
                f" event_timestamp timestamptz NOT NULL, {_columns(view, 'double precision')})"
            )
            await connection.execute(_copied(view))
        history = f"{bare(WRITTEN)}_history"
        await connection.execute(
            f"CREATE TABLE {history} (driver_id bigint NOT NULL,"
            f" event_timestamp timestamptz NOT NULL, {_columns(WRITTEN, 'double precision')},"
            " load_id bigint, created_at timestamptz NOT NULL DEFAULT now())"
        )
        names = ", ".join(["driver_id", "event_timestamp", *names_of(WRITTEN)])
        await connection.execute(
            f"INSERT INTO {history} ({names}) SELECT {names} FROM {bare(WRITTEN)}"  # noqa: S608
        )
        await connection.execute(f"CREATE INDEX ON {history} (driver_id, event_timestamp)")
        await connection.execute(
            f"CREATE TABLE {bare(WRITTEN)}_ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY"
            " KEY, row_count integer NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"
        )
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def fill_bare_sqlite(store: Path, peer: Path) -> None:
    """The same in a SQLite file of the peer's own, set as ours: a write-ahead log."""
    connection = sqlite3.connect(peer, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("ATTACH ? AS ours", [str(store)])
        connection.execute(
            f"CREATE TABLE {bare(READ)} (driver_id INTEGER PRIMARY KEY,"
            f" event_timestamp INTEGER NOT NULL, {_columns(READ, 'REAL')})"
        )
        connection.execute(_copied(READ, "ours."))
        connection.execute("ANALYZE main")
    finally:
        connection.close()


def _copied(view: fs.FeatureView, where: str = "") -> str:
    _, online = table_names("default", view.name)
    names = ", ".join(names_of(view))
    return (
        f"INSERT INTO {bare(view)} (driver_id, event_timestamp, {names})"  # noqa: S608 - our names
        f' SELECT driver_id, "{EVENT}", {names} FROM {where}"{online}"'
    )
