"""push_stream: micro-batches by size and age, backpressure, and what is kept when it breaks off."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from builders import (
    DRIVER,
    Row,
    ago,
    calendar,
    driver_stats,
    hour,
    online,
    online_column,
    scanned,
    stats,
    table_of,
    training,
)
from hypothesis import given
from hypothesis import strategies as st

import featurestore as fs

VIEW = driver_stats()
FEATURE = "driver_stats:trips"
DEADLINE = 60.0
"""Seconds after which a wait for an event has failed. Nothing here takes a second."""


async def each(items: Iterable[Any]) -> AsyncIterator[Any]:
    """The items as a source that never suspends."""
    for item in items:
        yield item


def some(count: int, driver: int | None = None) -> list[dict[str, Any]]:
    """Rows an hour apart, of one driver or of a driver each."""
    return [stats(number if driver is None else driver, hour(number)) for number in range(count)]


async def trips(store: fs.FeatureStore, view: str = "driver_stats") -> list[Any]:
    """The feature of all stored rows, in order of arrival."""
    return [row["trips"] for row in await scanned(store.repository(view))]


class Source:
    """A source that counts what it is asked for, and notes its end."""

    def __init__(self, items: Iterable[Any], *, then: BaseException | None = None) -> None:
        self._items = iter(items)
        self._then = then
        self.asked = 0
        self.closed = 0
        self.task: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> Any:
        self.task = asyncio.current_task()
        self.asked += 1
        for item in self._items:
            return item
        if self._then is not None:
            raise self._then
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


class Endless(Source):
    """Gives its items and then hangs."""

    async def __anext__(self) -> Any:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await asyncio.Event().wait()


@asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before, "tasks are left"


async def becomes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - the library has no event for it
            await asyncio.sleep(0.005)


async def stays(condition: Callable[[], bool]) -> None:
    """Something that is to hold for as long as nothing else happens."""
    for _ in range(20):
        assert condition()
        await asyncio.sleep(0.005)


# --- what may come ----------------------------------------------------------------------------


async def test_rows_lists_and_arrow_of_any_kind_come_in_order(store: fs.FeatureStore):
    await store.apply([VIEW])
    rows = [stats(number, hour(0), trips=number) for number in range(16)]
    table = table_of(VIEW, rows)
    batch = table.combine_chunks().to_batches()[0]
    items = [
        rows[0],
        rows[1:3],
        tuple(rows[3:4]),
        [],
        table.slice(4, 2),
        batch.slice(6, 1),
        batch.slice(7, 0),
        {row["driver_id"]: row for row in rows[7:9]}.values(),
        pa.RecordBatchReader.from_batches(table.schema, [batch.slice(9, 1), batch.slice(10, 1)]),
        pl.from_arrow(table.slice(11, 2)),
        await asyncio.to_thread(lambda: pd.DataFrame(rows[13:15]).convert_dtypes()),
        rows[15],
    ]
    report = await store.push_stream(VIEW, each(items), max_seconds=DEADLINE)
    assert (report.view, report.rows_written, report.rows_rejected) == ("driver_stats", 16, 0)
    assert await trips(store) == list(range(16))
    assert await online_column(store, FEATURE, [{"driver_id": n} for n in range(16)]) == list(
        range(16)
    )
    loads = await store.loads("driver_stats")
    assert report.batches == len(loads) > 1  # rows and Arrow are written apart
    assert (report.first_load_id, report.last_load_id) == (loads[0].load_id, loads[-1].load_id)
    assert {load.kind for load in loads} == {"push"}


async def test_micro_batches_have_the_size_that_was_asked_for(store: fs.FeatureStore):
    await store.apply([VIEW])
    for items in (some(7), [some(7)], [table_of(VIEW, some(7))]):
        before = len(await store.loads())
        report = await store.push_stream("driver_stats", each(items), max_rows=3)
        sizes = [load.rows_written for load in (await store.loads())[before:]]
        assert sizes == [3, 3, 1]
        assert report.batches == 3


async def test_arrow_of_several_schemas_and_dictionaries(store: fs.FeatureStore):
    view = driver_stats(fields=[fs.Field("grade", fs.String)])
    await store.apply([view])

    def batch(driver: int, grade: str | None, kind: pa.DataType) -> pa.RecordBatch:
        return pa.record_batch(
            {
                "driver_id": pa.array([driver], pa.int32()),
                "event_timestamp": pa.array([hour(0)], pa.timestamp("s", "UTC")),
                "grade": pa.array([grade]).cast(kind),
            }
        )

    coded = pa.dictionary(pa.int8(), pa.string())
    batches = [batch(0, "a", coded), batch(1, "b", coded), batch(2, None, coded)]
    batches += [batch(3, "c", pa.string()), batch(4, "d", pa.large_string())]
    report = await store.push_stream(view, each(batches))
    assert (report.rows_written, report.batches) == (5, 3)
    found = [row["grade"] for row in await scanned(store.repository(view))]
    assert found == ["a", "b", None, "c", "d"]


async def test_a_source_may_use_one_mapping_for_all_its_rows(store: fs.FeatureStore):
    await store.apply([VIEW])

    async def source(*, listed: bool) -> AsyncIterator[Any]:
        row = stats(1, hour(0))
        for number in range(3):
            row["trips"] = number
            yield [row] if listed else row

    await store.push_stream(VIEW, source(listed=False))
    await store.push_stream(VIEW, source(listed=True))
    assert await trips(store) == [0, 1, 2, 0, 1, 2]


async def test_one_view_is_streamed_into_another(store: fs.FeatureStore):
    copy = driver_stats("copied", fields=[fs.Field("trips", fs.Int64)])
    await store.apply([VIEW, copy])
    await store.push(VIEW, some(10))
    scan = store.repository(VIEW).scan(batch_size=4)
    report = await store.push_stream(copy, scan, max_rows=5)
    assert report.rows_written == 10
    assert await trips(store, "copied") == await trips(store)


async def test_an_empty_stream_is_no_error(store: fs.FeatureStore):
    await store.apply([VIEW])
    for items in ([], [[]], [table_of(VIEW, [])]):
        source = Source(items)
        report = await store.push_stream(VIEW, source)
        assert (report.batches, report.rows_written, report.first_load_id) == (0, 0, None)
        assert source.closed == 1
    assert await store.loads() == []


async def test_a_global_view_takes_a_stream(store: fs.FeatureStore):
    await store.apply([calendar()])
    rows = [{"event_timestamp": hour(n), "holiday": n == 1} for n in range(3)]
    await store.push_stream("calendar", each(rows))
    assert await online(store, ["calendar:holiday"], [{}]) == [{"holiday": False}]


async def test_training_sets_see_what_was_streamed(store: fs.FeatureStore):
    await store.apply([VIEW])
    await store.push_stream(VIEW, each([stats(1, hour(n), trips=n) for n in range(5)]), max_rows=2)
    entities = pa.table({"driver_id": [1, 1], "event_timestamp": [hour(2), hour(3.5)]})
    found = await training(store, entities, [FEATURE])
    assert [row["trips"] for row in found] == [2, 3]


# --- the same state, however it is cut --------------------------------------------------------


@st.composite
def cut(draw: st.DrawFn, count: int) -> list[tuple[int, int, str]]:
    """A way to cut ``count`` rows into items: (first, one past the last, kind)."""
    edges = sorted(
        draw(st.sets(st.integers(1, max(count - 1, 1)), max_size=count)) & {*range(count)}
    )
    pieces = zip([0, *edges], [*edges, count], strict=True)
    kinds = st.sampled_from(["rows", "list", "table", "batch"])
    return [(first, last, draw(kinds)) for first, last in pieces]


def as_items(rows: Sequence[Row], pieces: list[tuple[int, int, str]]) -> list[Any]:
    items: list[Any] = []
    for first, last, kind in pieces:
        piece = rows[first:last]
        if kind == "rows":
            items += piece
        elif kind == "list":
            items.append(list(piece))
        elif kind == "table":
            items.append(table_of(VIEW, piece))
        else:
            items += table_of(VIEW, piece).to_batches()
    return items


_EXAMPLES = iter(range(1, 1_000_000))


@given(data=st.data())
async def test_the_cut_changes_neither_the_state_nor_the_order(store: fs.FeatureStore, data: Any):
    """Event times are tied more often than not: among them the last of the stream wins."""
    if not await store.list_views():
        await store.apply([VIEW])
    begin = hour(100 * next(_EXAMPLES) - 1_000_000)  # a span of time of the example's own
    drawn = data.draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)
    )
    key = int((begin - dt.datetime(1800, 1, 1, tzinfo=dt.UTC)).total_seconds())
    rows = [
        stats(key + driver, begin + dt.timedelta(hours=later), trips=number)
        for number, (driver, later) in enumerate(drawn)
    ]
    report = await store.push_stream(
        VIEW,
        each(as_items(rows, data.draw(cut(len(rows))))),
        max_rows=data.draw(st.integers(1, 12)),
        max_seconds=data.draw(st.sampled_from([0, 0.001, DEADLINE])),
    )
    assert report.rows_written == len(rows)

    repository = store.repository(VIEW)
    span = {"start": begin, "end": begin + dt.timedelta(hours=2)}
    assert [row["trips"] for row in await scanned(repository, **span)] == list(range(len(rows)))
    newest: dict[int, Row] = {}
    for row in rows:
        known = newest.get(row["driver_id"])
        if known is None or row["event_timestamp"] >= known["event_timestamp"]:
            newest[row["driver_id"]] = row
    wanted = {driver: row["trips"] for driver, row in newest.items()}
    keys = [{"driver_id": driver} for driver in wanted]
    assert await online_column(store, FEATURE, keys) == list(wanted.values())


# --- size, age and room -----------------------------------------------------------------------


@pytest.mark.parametrize("max_seconds", [0, 0.01])
async def test_a_row_is_written_although_no_other_follows(
    store: fs.FeatureStore, max_seconds: float
):
    """The source waits for its own row to be readable online before it gives the next."""
    await store.apply([VIEW])

    async def source() -> AsyncIterator[Any]:
        for number in range(3):
            yield stats(1, hour(number), trips=number)
            async with asyncio.timeout(DEADLINE):
                while await online_column(store, FEATURE, [{"driver_id": 1}]) != [number]:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    report = await store.push_stream(VIEW, source(), max_rows=1000, max_seconds=max_seconds)
    assert (report.batches, report.rows_written) == (3, 3)


async def test_rows_that_may_wait_are_written_together(store: fs.FeatureStore):
    await store.apply([VIEW])

    async def source() -> AsyncIterator[Any]:
        for row in some(20):
            yield row
            await asyncio.sleep(0.001)

    report = await store.push_stream(VIEW, source(), max_seconds=DEADLINE)
    assert (report.batches, report.rows_written) == (1, 20)


@asynccontextmanager
async def busy(store: fs.FeatureStore, driver: int) -> AsyncIterator[None]:
    """A transaction that holds up other writers of a driver."""
    async with store.transaction() as tx:
        await tx.push(VIEW, [stats(driver, hour(-1), trips=-1)])
        yield


async def test_the_source_is_not_asked_for_more_than_there_is_room_for(store: fs.FeatureStore):
    await store.apply([VIEW])
    source = Source(some(100, driver=1))
    async with busy(store, driver=1):
        task = asyncio.create_task(store.push_stream(VIEW, source, max_rows=4))
        # Four rows on their way to the database, and four that wait.
        await becomes(lambda: source.asked == 8)
        await stays(lambda: source.asked == 8)
    report = await task
    assert (report.rows_written, source.asked) == (100, 101)
    assert report.batches == 25
    assert len(await trips(store)) == 101


@pytest.mark.parametrize("kind", ["list", "table", "reader"])
async def test_large_items_are_taken_piece_by_piece(store: fs.FeatureStore, kind: str):
    await store.apply([VIEW])
    pulled = []

    def batches() -> Iterable[pa.RecordBatch]:
        for number, row in enumerate(some(50, driver=1)):
            pulled.append(number)
            yield table_of(VIEW, [row]).to_batches()[0]

    schema = table_of(VIEW, []).schema
    items = {
        "list": [some(50, driver=1), some(50, driver=1)],
        "table": [table_of(VIEW, some(50, driver=1))] * 2,
        "reader": [pa.RecordBatchReader.from_batches(schema, batches()), some(50, driver=1)],
    }[kind]
    source = Source(items)
    async with busy(store, driver=1):
        task = asyncio.create_task(store.push_stream(VIEW, source, max_rows=10))
        await becomes(lambda: source.asked == 1 and (kind != "reader" or len(pulled) == 20))
        await stays(lambda: source.asked == 1 and (kind != "reader" or len(pulled) == 20))
    report = await task
    assert (report.rows_written, report.batches) == (100, 10)


async def test_a_source_that_never_suspends_leaves_the_loop_to_others(store: fs.FeatureStore):
    """20,000 rows without an await in between would be a stall that the loop guard finds."""
    await store.apply([VIEW])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    busy_others = asyncio.create_task(others())
    report = await store.push_stream(
        VIEW, each(stats(n % 5, hour(0), trips=n) for n in range(20_000)), max_rows=20_000
    )
    busy_others.cancel()
    assert report.batches == 1
    assert turns > 20


# --- errors -----------------------------------------------------------------------------------


def note(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize("max_rows", [2, 3, 100])
async def test_what_came_before_an_error_of_the_source_is_written(
    store: fs.FeatureStore, max_rows: int
):
    await store.apply([VIEW])
    failure = ConnectionResetError("the broker has gone")
    source = Source(some(5), then=failure)
    async with no_task_left():
        with pytest.raises(ConnectionResetError) as caught:
            await store.push_stream(VIEW, source, max_rows=max_rows, max_seconds=DEADLINE)
    assert caught.value is failure
    assert "5 rows of the stream" in note(failure)
    assert "they stay" in note(failure)
    assert len(await trips(store)) == 5
    assert source.closed == 1


async def test_a_source_that_fails_at_once(store: fs.FeatureStore):
    await store.apply([VIEW])
    with pytest.raises(ZeroDivisionError) as caught:
        await store.push_stream(VIEW, Source([], then=ZeroDivisionError()))
    assert "Nothing of the stream into 'driver_stats' was written" in note(caught.value)


async def test_a_source_that_cannot_begin(store: fs.FeatureStore):
    class Broken:
        def __aiter__(self) -> AsyncIterator[Any]:
            raise ZeroDivisionError

    await store.apply([VIEW])
    with pytest.raises(ZeroDivisionError):
        await store.push_stream(VIEW, Broken())


async def test_a_source_that_is_cancelled_from_within_is_an_error(store: fs.FeatureStore):
    """What it waits for was cancelled by somebody: a stream must not end in silence for that."""
    await store.apply([VIEW])

    async def source() -> AsyncIterator[Any]:
        yield stats(1, hour(0))
        inner = asyncio.create_task(asyncio.sleep(DEADLINE))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    async with no_task_left(), asyncio.timeout(DEADLINE):
        with pytest.raises(fs.SourceError, match="cancelled from within") as caught:
            await store.push_stream(VIEW, source())
    assert "1 row of the stream into 'driver_stats', in 1 micro-batch;" in note(caught.value)
    assert len(await trips(store)) == 1


@pytest.mark.parametrize("way", ["rows", "Arrow"])
@pytest.mark.parametrize("max_rows", [1, 3, 100])
async def test_an_invalid_row_is_named_by_its_number_and_those_before_it_stay(
    store: fs.FeatureStore, max_rows: int, way: str
):
    """However the stream was cut, it stops at the same row."""
    await store.apply([VIEW])
    rows = [stats(number, hour(0), trips=number) for number in range(10)]
    rows[4] = stats(None, hour(0))
    items = rows if way == "rows" else table_of(VIEW, rows).to_batches(max_chunksize=2)
    source = Source(items)
    async with no_task_left():
        with pytest.raises(fs.InvalidRowsError) as caught:
            await store.push_stream(VIEW, source, max_rows=max_rows, max_seconds=DEADLINE)
    assert [bad.row for bad in caught.value.rows] == [4]
    assert "driver_id" in caught.value.rows[0].reason
    assert "of the stream" in str(caught.value)
    assert "4 rows of the stream" in note(caught.value)
    assert await trips(store) == [0, 1, 2, 3]
    assert source.closed == 1


async def test_several_invalid_rows_of_a_micro_batch_are_named_together(store: fs.FeatureStore):
    await store.apply([VIEW])
    rows = [stats(None if n in (2, 4, 5) else n, hour(0)) for n in range(6)]
    with pytest.raises(fs.InvalidRowsError) as caught:
        await store.push_stream(VIEW, each(rows), max_rows=3, max_seconds=DEADLINE)
    assert [bad.row for bad in caught.value.rows] == [2]
    with pytest.raises(fs.InvalidRowsError) as caught:
        await store.push_stream(VIEW, each([some(3), rows[3:]]), max_rows=3, max_seconds=DEADLINE)
    assert ([bad.row for bad in caught.value.rows], caught.value.count) == ([4, 5], 2)
    assert "rows 4 to 5 of the stream" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"driver_id": 1, "event_timestamp": hour(0), "speed": 1}, id="unknown name"),
        pytest.param({"driver_id": 1, "trips": 1}, id="missing name"),
        pytest.param([1, 2], id="a list of no rows"),
        pytest.param(17, id="no row"),
        pytest.param("text", id="text"),
        pytest.param(pa.table({"driver_id": ["x"]}), id="another table"),
        pytest.param((row for row in ()), id="a generator"),
    ],
)
async def test_what_can_never_fit_stops_the_stream(store: fs.FeatureStore, wrong: Any):
    await store.apply([VIEW])
    with pytest.raises(fs.SchemaMismatchError) as caught:
        await store.push_stream(VIEW, each([*some(4), wrong]), max_rows=4, max_seconds=DEADLINE)
    assert "4 rows of the stream" in note(caught.value)
    assert len(await trips(store)) == 4


async def test_an_arrow_stream_that_breaks_off(store: fs.FeatureStore):
    await store.apply([VIEW])

    def batches() -> Iterable[pa.RecordBatch]:
        yield from table_of(VIEW, some(2)).to_batches()
        raise OSError("cut")

    reader = pa.RecordBatchReader.from_batches(table_of(VIEW, []).schema, batches())
    with pytest.raises(fs.SourceError, match="broke off"):
        await store.push_stream(VIEW, each([reader]))
    assert len(await trips(store)) == 2


async def test_progress_that_fails_ends_the_stream(store: fs.FeatureStore):
    await store.apply([VIEW])
    source = Source(some(3))
    seen: list[fs.StreamReport] = []

    def failing(report: fs.StreamReport) -> None:
        seen.append(report)
        raise ZeroDivisionError

    async with no_task_left():
        with pytest.raises(ZeroDivisionError) as caught:
            await store.push_stream(VIEW, source, max_rows=1, progress=failing)
    assert "1 row of the stream" in note(caught.value)
    assert [report.rows_written for report in seen] == [1]
    assert source.closed == 1
    assert len(await trips(store)) == 1


async def test_an_error_in_closing_the_source_hides_nothing(store: fs.FeatureStore):
    await store.apply([VIEW])
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    class Clumsy(Source):
        async def aclose(self) -> None:
            raise ZeroDivisionError("while closing")

    with pytest.raises(ConnectionResetError):
        await store.push_stream(VIEW, Clumsy(some(1), then=ConnectionResetError()))
    assert (await store.push_stream(VIEW, Clumsy(some(1)))).rows_written == 1
    assert [str(context["exception"]) for context in told] == ["while closing"] * 2


# --- quarantine -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 3, 100])
async def test_quarantine_sets_rows_aside_and_goes_on(store: fs.FeatureStore, max_rows: int):
    """Whether a row is alone in its micro-batch or not: each is judged by itself."""
    await store.apply([VIEW])
    wrong = [
        stats(None, hour(0)),
        stats(2, None),
        stats(3, hour(0), trips=2**40),
        stats(4, hour(0), conv_rate="fast"),  # type: ignore[arg-type]
        stats(5, hour(0), speed=1),
        {"driver_id": 6, "event_timestamp": hour(0), "trips": 1},
        17,
    ]
    good = [stats(10 + number, hour(0), trips=number) for number in range(8)]
    items = [item for pair in zip(good, [*wrong, None], strict=True) for item in pair][:-1]
    listed = [[item] for item in items]  # what is no mapping can stand in a list
    report = await store.push_stream(VIEW, each(listed), max_rows=max_rows, on_invalid="quarantine")
    assert (report.rows_written, report.rows_rejected, report.rows_read) == (8, 7, 15)
    assert await trips(store) == list(range(8))
    rejected = await store.rejected(view=VIEW)
    reasons = [row.reason for row in rejected]
    wanted = ["driver_id", "event_timestamp", "trips", "conv_rate", "'speed'", "'conv_rate'", "int"]
    for reason, word in zip(reasons, wanted, strict=True):
        assert word in reason
    assert rejected[2].values["trips"] == 2**40
    assert rejected[-1].values == {"row": 17}
    assert "7 invalid rows were set aside" in str(report)


async def test_erasure_finds_what_a_stream_has_set_aside(store: fs.FeatureStore):
    await store.apply([VIEW])
    rows = [stats(1, hour(0)), stats(1, None), stats(2, None)]
    await store.push_stream(VIEW, each(rows), on_invalid="quarantine")
    await store.repository(VIEW).delete(driver_id=1)
    assert [row.values["driver_id"] for row in await store.rejected()] == [2]


# --- cancelling -------------------------------------------------------------------------------


async def test_cancelled_while_a_micro_batch_is_written(store: fs.FeatureStore):
    """On PostgreSQL the rows of another driver are written beside the transaction that holds up
    the rest; SQLite has one writer at a time."""
    await store.apply([VIEW])
    await store.push(VIEW, some(1, driver=3))
    single_writer = store.engine.name == "sqlite"
    source = Endless([*some(4, driver=1), *some(6, driver=2)])
    written: list[int] = []
    async with no_task_left():
        async with busy(store, driver=2):
            task = asyncio.create_task(
                store.push_stream(
                    VIEW, source, max_rows=4, progress=lambda r: written.append(r.rows_written)
                )
            )
            await becomes(lambda: source.asked == (8 if single_writer else 11))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert source.task is not None
        assert source.task.done()
    assert source.closed == 1
    assert written == ([] if single_writer else [4])
    assert len(await trips(store)) == 2 + sum(written)
    # And everything is free again.
    assert (await store.push_stream(VIEW, each(some(4, driver=2)))).rows_written == 4


async def test_a_timeout_around_a_stream_that_hangs(store: fs.FeatureStore):
    """What was written by age stays; the rows that still wait are dropped."""
    await store.apply([VIEW])
    source = Endless(some(5))

    async def hurried() -> None:
        async with asyncio.timeout(None) as limit:

            def written(report: fs.StreamReport) -> None:
                limit.reschedule(asyncio.get_running_loop().time())

            await store.push_stream(VIEW, source, max_rows=4, progress=written)

    async with no_task_left():
        with pytest.raises(TimeoutError):
            await hurried()
    assert source.closed == 1
    assert len(await trips(store)) == 4


async def test_cancelled_while_its_own_code_runs(store: fs.FeatureStore):
    """As Ctrl-C does: the cancellation is delivered at the next await, whichever that is."""
    await store.apply([VIEW])

    async def source() -> AsyncIterator[Any]:
        yield some(1)
        for _ in range(10):
            await asyncio.sleep(0)
        yield some(10)  # they wait, and are not full, when the first is written
        await asyncio.Event().wait()

    def cancel(report: fs.StreamReport) -> None:
        written.append(report.rows_written)
        task.cancel()

    written: list[int] = []
    async with no_task_left():
        task = asyncio.create_task(
            store.push_stream(VIEW, source(), max_seconds=0, progress=cancel)
        )
        with pytest.raises(asyncio.CancelledError):
            await task
    assert written == [1]
    assert len(await trips(store)) == 1


async def test_timeouts_and_groups_inside_a_source_belong_to_one_task(store: fs.FeatureStore):
    await store.apply([VIEW])
    ended: list[bool] = []

    async def source() -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
                for row in some(100, driver=1):
                    yield row
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async with no_task_left():
        assert (await store.push_stream(VIEW, source(), max_rows=10)).rows_written == 100
        async with busy(store, driver=1):
            task = asyncio.create_task(store.push_stream(VIEW, source(), max_rows=10))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert ended == [True, True]


async def test_a_source_that_does_not_hear_of_its_cancellation(store: fs.FeatureStore):
    await store.apply([VIEW])

    async def source() -> AsyncIterator[Any]:
        while True:
            try:
                yield stats(1, hour(0))
                await asyncio.sleep(DEADLINE)
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(store.push_stream(VIEW, source(), max_seconds=0))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(DEADLINE):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- transactions -----------------------------------------------------------------------------


async def test_in_a_transaction_a_stream_is_all_or_nothing(store: fs.FeatureStore):
    await store.apply([VIEW])

    async def fail() -> None:
        async with store.transaction() as tx:
            assert (await tx.push_stream(VIEW, each(some(5)), max_rows=2)).batches == 3
            assert await online_column(tx, FEATURE, [{"driver_id": 4}]) == [1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await trips(store) == []
    async with store.transaction() as tx:
        await tx.push_stream(VIEW, each(some(5)), max_rows=2)
    assert len(await trips(store)) == 5


async def test_an_error_in_a_transaction_says_what_the_rows_hang_on(store: fs.FeatureStore):
    await store.apply([VIEW])
    async with store.transaction() as tx:
        with pytest.raises(ZeroDivisionError) as caught:
            await tx.push_stream(VIEW, Source(some(3), then=ZeroDivisionError()))
    assert "if the transaction around it commits" in note(caught.value)
    assert len(await trips(store)) == 3


async def test_streams_into_several_views_at_once(store: fs.FeatureStore):
    names = ("one", "two", "three")
    await store.apply([driver_stats(name) for name in names])
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(store.push_stream(name, each(some(50)), max_rows=7))
    for name in names:
        assert len(await trips(store, name)) == 50


# --- the report, and arguments ----------------------------------------------------------------


async def test_progress_tells_what_is_durable(store: fs.FeatureStore):
    await store.apply([VIEW])
    told: list[fs.StreamReport] = []
    report = await store.push_stream(VIEW, each(some(7)), max_rows=3, progress=told.append)
    assert [one.rows_written for one in told] == [3, 6, 7]
    assert [one.batches for one in told] == [1, 2, 3]
    assert report.seconds >= told[-1].seconds
    assert report.rows_written == 7


async def test_the_report_prints_as_a_short_table(store: fs.FeatureStore):
    await store.apply([VIEW])
    rows = [*some(5), stats(7, ago(days=-1))]
    lines = str(await store.push_stream(VIEW, each(rows), max_rows=4)).splitlines()
    assert lines[0].split() == ["batches", "read", "written", "rejected", "loads"]
    assert lines[1].split()[:4] == ["2", "6", "6", "0"]
    assert lines[2].startswith("driver_stats: 6 rows in ")
    assert lines[3].startswith("warning: 1 rows lie ahead")
    assert str(await store.push_stream(VIEW, each([]))).splitlines()[1].split()[-1] == "-"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(some(2), id="list"),
        pytest.param(iter(some(2)), id="iterator"),
        pytest.param(some(2)[0], id="row"),
        pytest.param(pa.table({"driver_id": [1]}), id="table"),
        pytest.param(None, id="nothing"),
    ],
)
async def test_a_source_that_is_no_async_iterator(store: fs.FeatureStore, source: Any):
    await store.apply([VIEW])
    with pytest.raises(fs.SourceError, match="async iterator"):
        await store.push_stream(VIEW, source)


@pytest.mark.parametrize(
    "options",
    [
        {"max_rows": 0},
        {"max_rows": 2.5},
        {"max_rows": True},
        {"max_seconds": -1},
        {"max_seconds": float("nan")},
        {"max_seconds": float("inf")},
        {"max_seconds": "1"},
        {"on_invalid": "ignore"},
    ],
    ids=str,
)
async def test_arguments_that_cannot_be(store: fs.FeatureStore, options: dict[str, Any]):
    await store.apply([VIEW])
    source = Source(some(1))
    (name,) = options
    with pytest.raises(fs.DefinitionError, match=name):
        await store.push_stream(VIEW, source, **options)
    assert source.asked == 0


async def test_an_unknown_view_is_told_before_the_source_is_asked(store: fs.FeatureStore):
    await store.apply([VIEW])
    source = Source(some(1))
    with pytest.raises(fs.NotFoundError, match="driver_stats"):
        await store.push_stream("driver_stat", source)
    with pytest.raises(fs.NotFoundError):
        await store.push_stream(driver_stats("other", entities=[DRIVER]), source)
    assert source.asked == 0
