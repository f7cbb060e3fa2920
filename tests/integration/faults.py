"""What the fault tests share: a view, a file for it, and the whole of what a store holds.

The file has several row groups, keys that come again and again, values that are null, and rows
that do not fit: a load of it touches history, its index, online, the ledger and quarantine.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import featurestore as fs
from featurestore.testing import PostgresServer

VIEW = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[
        fs.Field("conv_rate", fs.Float64),
        fs.Field("trips", fs.Int32),
        fs.Field("city", fs.String),
    ],
    timestamp_field="event_timestamp",
)
NAME = VIEW.name
DRIVERS = 150
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)

_PROJECTS = itertools.count(1)


def new_project() -> str:
    """A project that no other test has: projects share a database and nothing else."""
    return f"faults_{next(_PROJECTS)}"


def rows_table(rows: int, *, first: int = 0, bad_every: int = 997, stride: int = 7) -> pa.Table:
    """``rows`` rows, numbered from ``first``, each with an event time of its own; the driver is
    null in every ``bad_every``-th. ``stride`` mixes the drivers: it decides their order."""
    numbers = range(first, first + rows)
    return pa.table(
        {
            "driver_id": pa.array(
                [None if n % bad_every == bad_every - 1 else n * stride % DRIVERS for n in numbers],
                pa.int64(),
            ),
            "event_timestamp": pa.array(
                [START + dt.timedelta(seconds=n) for n in numbers], fs.Timestamp.arrow
            ),
            "conv_rate": pa.array([None if n % 11 == 0 else n / 8 for n in numbers]),
            "trips": pa.array([n % 1000 for n in numbers], pa.int32()),
            "city": pa.array([f"città {n % 40}" for n in numbers]),
        }
    )


def write_file(path: Path, table: pa.Table, groups: int = 4) -> Path:
    """``table`` as a Parquet file of so many row groups."""
    pq.write_table(table, path, row_group_size=-(-table.num_rows // groups))
    return path


@dataclass(frozen=True)
class State:
    """All that a project holds, without what may differ between two ways to the same state."""

    history: pa.Table
    online: list[Any]
    ledger: list[Any]
    rejected: list[Any]

    @property
    def empty(self) -> bool:
        """Whether nothing was kept."""
        found = any(row is not None for row, _ in self.online)
        return not (self.history.num_rows or found or self.ledger or self.rejected)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and not self.difference(other)

    def difference(self, other: State) -> str:
        """In what two states differ; empty where they do not."""
        parts = []
        if not self.history.equals(other.history):
            parts.append(f"history: {self.history.num_rows} and {other.history.num_rows} rows")
        for name in ("online", "ledger", "rejected"):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                differing = next((p for p in zip(one, two, strict=False) if p[0] != p[1]), None)
                parts.append(f"{name}: {len(one)} and {len(two)}, first {differing}")
        return "; ".join(parts)


async def state(store: fs.FeatureStore) -> State:
    """What the store's project holds."""
    repository = store.repository(NAME)
    batches = [batch async for batch in repository.scan()]
    table = pa.Table.from_batches(batches) if batches else pa.table({"event_timestamp": []})
    history = await asyncio.to_thread(table.sort_by, "event_timestamp")
    asked = [{"driver_id": driver} for driver in range(DRIVERS)]
    answer = await store.get_online_features([f"{NAME}:*"], asked)
    times = answer.event_timestamps
    online = [
        (None if at[NAME] is None else row, at[NAME])
        for row, at in zip(answer.to_dicts(), times, strict=True)
    ]
    ledger = [
        (
            load.kind,
            Path(load.source).name,
            load.rows_read,
            load.rows_written,
            load.rows_rejected,
            load.rows_future,
            None if load.first_arrival is None else load.last_arrival - load.first_arrival,
            load.complete,
        )
        for load in await store.loads()
        if load.undone_at is None
    ]
    rejected = [
        (Path(row.source).name, row.row, row.reason, row.values) for row in await store.rejected()
    ]
    return State(history.combine_chunks(), online, ledger, rejected)


@asynccontextmanager
async def opened(url: str, project: str | None = None) -> AsyncIterator[fs.FeatureStore]:
    """A store on a project, by default a new one that has the view; checks that it gave every
    connection back."""
    async with fs.FeatureStore(url, project=project or new_project()) as store:
        if project is None:
            await store.apply([VIEW])
        yield store
        assert checked_out(store) == 0, "connections were left checked out"


def checked_out(store: fs.FeatureStore) -> int:
    """How many connections are out of the pool."""
    return int(getattr(store.engine.pool, "checkedout", int)())


async def busy(server: PostgresServer, url: str) -> list[str]:
    """What backends of a database do that are not idle."""
    lines = await asyncio.to_thread(server.activity, url.rpartition("/")[2])
    return [line for line in lines if " idle: " not in line]


async def becomes_idle(server: PostgresServer, url: str, seconds: float = 5.0) -> None:
    """Check that soon no backend of a database works or holds a transaction."""
    deadline = time.monotonic() + seconds
    while left := await busy(server, url):
        assert time.monotonic() < deadline, f"still busy: {left}"
        await asyncio.sleep(0.02)


class Complaints:
    """What a loop reports as nobody's: exceptions never retrieved, tasks destroyed."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __enter__(self) -> Complaints:
        asyncio.get_running_loop().set_exception_handler(self._note)
        return self

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.messages.append(f"{context['message']}: {context.get('exception')!r}")

    def __exit__(self, *error: object) -> None:
        import gc

        gc.collect()
        asyncio.get_running_loop().set_exception_handler(None)
        if error[0] is None:
            assert not self.messages, self.messages


ALL_POINTS = False
"""Whether :func:`spread` gives as many as it is asked for: pytest --all-points."""


def spread(points: int, last: int) -> list[int]:
    """``points`` numbers from 1 to ``last``, the first and the last among them; by default a third
    of that, but five at least, as each takes a test as long as an unbroken load or two."""
    if not ALL_POINTS:
        points = min(points, max(5, points // 3))
    if last <= points:
        return list(range(1, last + 1))
    return sorted({1 + round(index * (last - 1) / (points - 1)) for index in range(points)})


class SmallDisk:
    """A folder on a file system of 4 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def grow(self) -> None:
        """Make room on it."""
        self._remount("size=64m")

    def lock(self) -> None:
        """Let nothing be written to it."""
        self._remount("ro")

    def _remount(self, options: str) -> None:
        command = ["mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)
