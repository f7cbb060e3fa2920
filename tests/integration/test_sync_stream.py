"""push_stream without ``await``: an ordinary iterator, read in the caller's thread."""

from __future__ import annotations

import datetime as dt
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import featurestore as fs

# Waiting for the portal's thread is what these calls are for.
pytestmark = pytest.mark.allow_blocking

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
DEADLINE = 60.0

view = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int32)],
    timestamp_field="event_timestamp",
)


def row(driver: int, trips: int) -> dict[str, object]:
    when = NOON + dt.timedelta(hours=trips)
    return {"driver_id": driver, "event_timestamp": when, "trips": trips}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[fs.sync.FeatureStore]:
    with fs.sync.FeatureStore(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        opened.apply(view)
        yield opened


def trips(store: Any) -> list[int]:
    batches = store.repository(view).scan()
    return [value for batch in batches for value in batch.column("trips").to_pylist()]


def test_any_iterable_of_rows_lists_and_batches(store: fs.sync.FeatureStore):
    table = pa.Table.from_pylist([row(1, 3), row(1, 4)], schema=pa.schema(
        {"driver_id": pa.int64(), "event_timestamp": pa.timestamp("us", "UTC"), "trips": pa.int32()}
    ))  # fmt: skip
    report = store.push_stream(view, [row(1, 0), [row(1, 1), row(1, 2)], table])
    assert report.rows_written == 5
    assert store.push_stream(view, (row(1, n) for n in range(5, 3000)), max_rows=400).batches == 8
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    assert store.push_stream(view, reader).rows_written == 2
    assert store.push_stream(view, []).batches == 0
    assert trips(store) == [*range(3000), 3, 4]


def test_it_is_read_in_the_thread_of_the_caller(store: fs.sync.FeatureStore):
    """A sqlite3 connection refuses other threads, as much else does."""
    threads = set()
    with sqlite3.connect(":memory:") as connection:

        def rows() -> Iterator[dict[str, object]]:
            for (number,) in connection.execute("VALUES (0), (1), (2)"):
                threads.add(threading.get_ident())
                yield row(1, number)

        assert store.push_stream(view, rows()).rows_written == 3
    connection.close()
    assert threads == {threading.get_ident()}


def test_rows_are_written_while_the_source_takes_its_time(store: fs.sync.FeatureStore):
    """The source itself waits until its row can be read online."""

    def rows() -> Iterator[dict[str, object]]:
        for number in range(3):
            yield row(1, number)
            until = time.monotonic() + DEADLINE
            while store.repository(view).get(driver_id=1) != {"driver_id": 1, "trips": number}:
                assert time.monotonic() < until
                time.sleep(0.005)

    assert store.push_stream(view, rows(), max_seconds=0.01).batches == 3


def test_the_source_is_not_read_far_ahead_of_a_database_that_is_busy(
    store: fs.sync.FeatureStore,
):
    taken: list[int] = []
    reports: list[fs.StreamReport] = []

    def lists() -> Iterator[list[dict[str, object]]]:
        for number in range(100):
            taken.append(number)
            yield [row(1, number)]

    def push() -> None:
        reports.append(store.push_stream(view, lists(), max_rows=4))

    with store.transaction() as tx:
        tx.push(view, [row(2, 0)])
        thread = threading.Thread(target=push)
        thread.start()
        until = time.monotonic() + DEADLINE
        while len(taken) < 10 and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.1)
        # Four on their way and four that wait; one at the door, and one that the thread holds.
        assert len(taken) == 10
    thread.join(DEADLINE)
    assert reports[0].rows_written == 100


class Broken(Exception):
    pass


def test_an_error_of_the_source_comes_after_its_rows(store: fs.sync.FeatureStore):
    closed = []

    def rows() -> Iterator[dict[str, object]]:
        try:
            yield from (row(1, number) for number in range(5))
            raise Broken
        finally:
            closed.append(True)

    with pytest.raises(Broken) as caught:
        store.push_stream(view, rows())
    assert "5 rows of the stream" in caught.value.__notes__[0]
    assert len(trips(store)) == 5
    assert closed == [True]


def test_an_error_of_the_store_ends_the_source(store: fs.sync.FeatureStore):
    closed = []

    def rows() -> Iterator[Any]:
        try:
            number = 0
            while True:
                yield row(1, number) if number != 1000 else {"driver_id": None}
                number += 1
        finally:
            closed.append(True)

    with pytest.raises(fs.SchemaMismatchError):
        store.push_stream(view, rows(), max_rows=1000)
    assert closed == [True]
    assert len(trips(store)) == 1000
    with pytest.raises(fs.NotFoundError):
        store.push_stream("nowhere", rows())


def test_in_a_transaction(store: fs.sync.FeatureStore):
    def fail() -> None:
        with store.transaction() as tx:
            assert tx.push_stream(view, (row(1, n) for n in range(5)), max_rows=2).batches == 3
            raise Broken

    with pytest.raises(Broken):
        fail()
    assert trips(store) == []


async def numbers() -> Any:
    yield {}


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(pa.table({"driver_id": [1]}), id="table"),
        pytest.param({"driver_id": 1}, id="row"),
        pytest.param("rows.json", id="text"),
        pytest.param(numbers(), id="async generator"),
        pytest.param(None, id="nothing"),
    ],
)
def test_what_is_no_iterator_of_rows(store: fs.sync.FeatureStore, source: Any):
    with pytest.raises(fs.SourceError, match="reads an iterator"):
        store.push_stream(view, source)


PROGRAM = """
import sys, time
import featurestore as fs
from test_sync_stream import row, view

def rows():
    yield from (row(1, number) for number in range(10))
    time.sleep(60)

with fs.sync.FeatureStore(sys.argv[1]) as store:
    store.apply(view)
    try:
        store.push_stream(
            view, rows(), max_rows=4, max_seconds=30,
            progress=lambda report: print(report.rows_written, flush=True),
        )
    except KeyboardInterrupt:
        print("interrupted", store.repository(view).count())
"""


def test_ctrl_c_keeps_what_was_written(tmp_path: Path):
    """Eight rows are written, and two wait for others."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path / 'store.db'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["4", "8"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out.strip(), err) == ("interrupted 8", "")
