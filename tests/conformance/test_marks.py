"""Marks: what a store knew at a moment is what ``as_of`` gives later, whatever happened since."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from builders import (
    UTC,
    driver_stats,
    entity_rows,
    hour,
    parquet,
    small_blocks,
    stats,
    training,
    write,
)
from cases import kinds, next_example
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Draft, Oracle
from strategies import BASE, FEATURES, NOW, TTL, UNIT, WAYS, Batch, batches, grid_times, keys_of

import featurestore as fs
from featurestore.storage.marks import without

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

VIEW = driver_stats()
KINDS = kinds(TTL)
DRIVERS = range(1, 6)


@pytest.fixture
async def trips(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([VIEW])
    return store


async def push(store: Any, driver: int, trips: int) -> int:
    """One more row of a driver: all are of one time, so that the last to arrive wins."""
    return int((await store.push(VIEW, [stats(driver, hour(0), trips=trips)])).load_id)


async def known(store: Any, as_of: Any = None, **options: Any) -> list[Any]:
    """The trips of drivers 1 to 5."""
    asked = entity_rows(*((driver, hour(1)) for driver in DRIVERS))
    rows = await training(store, asked, ["driver_stats:trips"], as_of=as_of, **options)
    return [row["trips"] for row in rows]


async def warned(store: fs.FeatureStore, as_of: Any) -> tuple[str, ...]:
    asked = entity_rows((1, hour(1)))
    found = await store.get_historical_features(asked, ["driver_stats:trips"], as_of=as_of)
    return found.warnings


# --- what a mark is ---------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**63 - 1)


@st.composite
def marks(draw: st.DrawFn) -> fs.Mark:
    zone = st.sampled_from([UTC, dt.timezone(dt.timedelta(hours=5, minutes=30))])
    first = draw(st.integers(0, 2**62))
    last = first + draw(st.integers(0, 100))
    running = ",".join(map(str, draw(st.lists(st.integers(first, last), max_size=3))))
    return fs.Mark(
        draw(NUMBERS),
        draw(st.datetimes(timezones=zone)),
        draw(st.sampled_from([None, f"{first}:{last}:{running}"])),
        tuple(draw(st.lists(NUMBERS, max_size=3))),
        tuple(draw(st.lists(st.tuples(NUMBERS, st.integers(-1, 2**63 - 1)), max_size=2))),
        draw(st.sampled_from([0, 0, 7])),
        draw(st.none() | st.tuples(NUMBERS, NUMBERS)),
    )


@given(mark=marks())
def test_a_mark_is_the_same_after_its_way_through_text(mark: fs.Mark):
    assert fs.Mark.parse(str(mark)) == mark
    assert fs.Mark.parse(f" {mark}\n") == mark


AT = "@2024-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "7", AT, f"x{AT}", f"-1{AT}", f"1_0{AT}", f"{2**63}{AT}", f"\u0661{AT}",
        "7@2024-01-01T00:00:00", "7@never", f"7{AT};", f"7{AT};more=1", f"7{AT};since=x",
        f"7{AT};since=1;since=2", f"7{AT};snapshot=", f"7{AT};snapshot=1:2",
        f"7{AT};snapshot=2:1:", f"7{AT};snapshot=1:2:x", f"7{AT};snapshot=1:{10**30}:",
        f"7{AT};in_flight=a", f"7{AT};partial=1", f"7{AT};partial=1:", f"7{AT};partial=1:-2",
        f"7{AT};newest=1",
    ],
)  # fmt: skip
def test_what_is_no_mark_is_told_so(text: str):
    with pytest.raises(fs.DefinitionError, match="is no mark"):
        fs.Mark.parse(text)


SPANS = st.lists(
    st.builds(lambda first, more: (first, first + more), st.integers(0, 30), st.integers(0, 9)),
    max_size=4,
)


@given(ranges=SPANS, hidden=SPANS)
def test_ranges_less_others(ranges: list[tuple[int, int]], hidden: list[tuple[int, int]]):
    def members(spans: Sequence[tuple[int, int]]) -> list[int]:
        return [number for first, last in spans for number in range(first, last + 1)]

    wanted = [number for number in members(ranges) if number not in members(hidden)]
    assert sorted(members(without(ranges, hidden))) == sorted(wanted)


# --- asking by one ----------------------------------------------------------------------------


async def test_a_mark_and_its_text_give_what_was_known_then(trips: fs.FeatureStore):
    empty = await trips.mark()
    await push(trips, 1, 10)
    mark = await trips.mark()
    await push(trips, 1, 11)  # a correction, which wins from now on
    await push(trips, 2, 20)
    assert await known(trips) == [11, 20, None, None, None]
    for as_of in (mark, str(mark), fs.Mark.parse(str(mark))):
        for engine in ("sql", "duckdb", "auto"):
            assert await known(trips, as_of, engine=engine) == [10, None, None, None, None]
    assert await known(trips, empty) == [None] * 5
    assert await warned(trips, mark) == ()
    streamed = trips.stream_historical_features(
        entity_rows((1, hour(1))), ["driver_stats:trips"], as_of=mark
    )
    assert [batch["trips"].to_pylist() async for batch in streamed] == [[10]]
    async with trips.transaction() as tx:
        await push(tx, 1, 12)
        assert await known(tx, mark) == [10, None, None, None, None]
        assert await known(tx) == [12, 20, None, None, None]


class StopError(Exception):
    """Raised where work is to be broken off."""


async def _broken_off(trips: fs.FeatureStore) -> None:
    async with trips.transaction() as tx:
        await push(tx, 1, 12)
        await tx.repository(VIEW).delete(driver_id=1)
        raise StopError


async def test_what_is_rolled_back_was_never_there(trips: fs.FeatureStore):
    await push(trips, 1, 10)
    with pytest.raises(fs.InvalidRowsError):
        await trips.push(VIEW, [stats(1, hour(0), trips=11), stats(1, None)])
    with pytest.raises(StopError):
        await _broken_off(trips)
    mark = await trips.mark()
    assert await known(trips, mark) == [10, None, None, None, None]
    await push(trips, 2, 20)  # it may get the numbers that were let go
    assert await known(trips, mark) == [10, None, None, None, None]
    assert await warned(trips, mark) == ()


async def test_a_load_in_flight_at_the_mark_is_not_seen_by_it(
    trips: fs.FeatureStore, open_store: OpenStore
):
    other = await open_store()
    await push(trips, 1, 10)
    async with trips.transaction() as tx:
        await push(tx, 1, 11)
        mark = await other.mark()
        assert await known(other, mark) == [10, None, None, None, None]
    assert await known(other, mark) == [10, None, None, None, None]
    assert await known(other) == [11, None, None, None, None]


@pytest.mark.parametrize("block_bits", [20, 2])
async def test_a_mark_between_two_steps_of_a_load(
    trips: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bits: int
):
    small_blocks(monkeypatch, block_bits)
    rows = [stats(1, hour(0), trips=number) for number in range(40)]
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, rows)

    def progress(now: Any) -> None:
        if now.rows_done >= 20:
            raise StopError

    with pytest.raises(StopError):
        await trips.ingest(VIEW, path, commit_every=10, progress=progress)
    [broken] = await trips.loads()
    reached = broken.rows_read - 1
    assert 0 < reached < 39
    mark, asked = await trips.mark(), entity_rows((1, hour(1)))
    made = await trips.get_historical_features(asked, ["driver_stats:trips"])
    for as_of in (None, mark):
        assert await known(trips, as_of) == [reached, None, None, None, None]
    await push(trips, 2, 20)
    await trips.ingest(VIEW, path, commit_every=10)
    assert await known(trips) == [39, 20, None, None, None]
    assert await known(trips, mark) == [reached, None, None, None, None]
    assert (await trips.replay(made.manifest)).to_arrow().equals(made.to_arrow())

    await trips.undo_load(broken.load_id)
    [warning] = await warned(trips, mark)
    assert f"undoing load {broken.load_id} has since taken {reached + 1} rows out" in warning
    with pytest.raises(fs.NotFoundError, match=f"load {broken.load_id}"):
        await trips.replay(made.manifest)


async def test_a_skipped_file_changes_nothing_of_a_mark(trips: fs.FeatureStore, tmp_path: Path):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, [stats(1, hour(0), trips=10)])
    await trips.ingest(VIEW, path)
    before = await trips.mark()
    assert (await trips.ingest(VIEW, path)).loads[0].skipped
    after = await trips.mark()
    assert before.arrival == after.arrival
    await trips.ingest(VIEW, path, force=True)
    assert await known(trips, before) == await known(trips, after) == [10, None, None, None, None]


# --- what was taken out -----------------------------------------------------------------------


async def test_undo_before_the_mark_is_of_no_concern_to_it(trips: fs.FeatureStore):
    await push(trips, 1, 10)
    await trips.undo_load(await push(trips, 1, 11))
    mark = await trips.mark()
    assert await known(trips, mark) == [10, None, None, None, None]
    assert await warned(trips, mark) == ()


async def test_undo_after_the_mark_is_told(trips: fs.FeatureStore):
    await push(trips, 1, 10)
    number = await push(trips, 1, 11)
    mark = await trips.mark()
    await trips.undo_load(number)
    assert await known(trips, mark) == [10, None, None, None, None]
    [warning] = await warned(trips, mark)
    told = f"driver_stats: undoing load {number} has since taken 1 rows out that were there"
    assert warning.startswith(told)


async def test_a_file_undone_and_loaded_again_is_another_load(
    trips: fs.FeatureStore, tmp_path: Path
):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, [stats(1, hour(0), trips=10)])
    number = (await trips.ingest(VIEW, path)).loads[0].load_id
    before = await trips.mark()
    await trips.undo_load(number)
    between = await trips.mark()
    await trips.ingest(VIEW, path)
    assert await known(trips, before) == await known(trips, between) == [None] * 5
    assert await known(trips, await trips.mark()) == [10, None, None, None, None]
    assert len(await warned(trips, before)) == 1
    assert await warned(trips, between) == ()


async def test_an_erasure_after_the_mark_is_told_and_names_nobody(trips: fs.FeatureStore):
    for driver in (1, 2, 1):
        await push(trips, driver, driver)
    mark = await trips.mark()
    await push(trips, 1, 3)
    await trips.repository(VIEW).delete(driver_id=1)
    await trips.repository(VIEW).delete(driver_id=77)
    assert await known(trips, mark) == [None, 2, None, None, None]
    [warning] = await warned(trips, mark)
    # Of the three rows two were there at the mark.
    assert warning.startswith("driver_stats: an erasure has since taken 2 rows out")
    assert "driver_id" not in warning
    assert await warned(trips, await trips.mark()) == ()


async def test_what_was_not_there_at_the_mark_is_no_loss_to_it(
    trips: fs.FeatureStore, open_store: OpenStore
):
    other = await open_store()
    async with trips.transaction() as tx:
        number = await push(tx, 1, 10)
        mark = await other.mark()
    late = await push(trips, 1, 11)
    for load in (number, late):
        await trips.undo_load(load)
    assert await warned(trips, mark) == ()


async def test_projects_share_a_database_and_no_marks_warnings(
    trips: fs.FeatureStore, open_store: OpenStore
):
    other = await open_store(project=f"{trips.project}_other")
    await other.apply([VIEW])
    await push(trips, 1, 10)
    number = await push(other, 1, 100)
    mark = await trips.mark()
    await push(other, 1, 101)
    await other.undo_load(number)
    await push(trips, 1, 11)
    assert await known(trips, mark) == [10, None, None, None, None]
    assert await warned(trips, mark) == ()
    assert await known(other, mark) == [None] * 5
    assert len(await warned(other, mark)) == 1


async def test_values_lost_with_a_field_are_told(trips: fs.FeatureStore):
    await push(trips, 1, 10)
    mark = await trips.mark()
    await trips.apply([replace_fields(fs.Field("conv_rate", fs.Float64))], allow={"drop"})
    await trips.apply([VIEW])
    assert await known(trips, mark) == [None] * 5
    [warning] = await warned(trips, mark)
    assert "field trips" in warning
    assert await warned(trips, await trips.mark()) == ()
    asked = entity_rows((1, hour(1)))
    rates = await trips.get_historical_features(asked, ["driver_stats:conv_rate"], as_of=mark)
    assert rates.warnings == ()


def replace_fields(*fields: fs.Field) -> fs.FeatureView:
    return driver_stats(fields=list(fields))


async def test_a_view_that_is_not_online_is_marked_as_well(store: fs.FeatureStore):
    await store.apply([driver_stats(online=False)])
    number = await push(store, 1, 10)
    mark = await store.mark()
    await push(store, 1, 11)
    assert await known(store, mark) == [10, None, None, None, None]
    await store.undo_load(number)
    assert len(await warned(store, mark)) == 1


# --- times ------------------------------------------------------------------------------------


async def test_a_time_gives_what_was_finished_by_then(trips: fs.FeatureStore):
    await push(trips, 1, 10)
    await push(trips, 2, 20)
    first, second = await trips.loads()
    for when, wanted in (
        (first.finished_at - dt.timedelta(microseconds=1), [None, None]),
        (first.finished_at, [10, None]),
        (second.finished_at - dt.timedelta(microseconds=1), [10, None]),
        (second.finished_at, [10, 20]),
        (dt.datetime(1, 1, 1, tzinfo=UTC), [None, None]),
        (dt.datetime(9999, 12, 31, tzinfo=UTC), [10, 20]),
        (second.finished_at.astimezone(dt.timezone(dt.timedelta(hours=-9))), [10, 20]),
        (second.finished_at.replace(tzinfo=None), [10, 20]),  # without a zone: UTC
    ):
        assert (await known(trips, when))[:2] == wanted, when


async def test_a_time_is_warned_of_what_was_taken_out_after_it_alone(trips: fs.FeatureStore):
    await push(trips, 1, 10)
    gone = await push(trips, 1, 11)
    before = (await trips.loads())[-1].finished_at
    await trips.undo_load(gone)
    later = dt.datetime.now(UTC)
    assert len(await warned(trips, before)) == 1
    assert await warned(trips, later) == ()
    await push(trips, 2, 20)
    assert await warned(trips, later) == ()
    assert await warned(trips, dt.datetime(9999, 12, 31, tzinfo=UTC)) == ()


async def test_a_set_as_of_a_time_is_replayed_to_what_was_seen_of_it(
    trips: fs.FeatureStore, open_store: OpenStore
):
    """A load that has finished by then, and is committed after it was asked for."""
    other = await open_store()
    await push(trips, 1, 10)
    asked = entity_rows(*((driver, hour(1)) for driver in DRIVERS))
    ahead = dt.datetime.now(UTC) + dt.timedelta(hours=1)
    async with trips.transaction() as tx:
        await push(tx, 1, 11)
        await push(tx, 2, 20)
        made = await other.get_historical_features(asked, [VIEW], as_of=ahead)
        assert made.to_arrow()["trips"].to_pylist()[:2] == [10, None]
    await push(trips, 3, 30)
    again = await other.replay(made.manifest)
    assert again.to_arrow().equals(made.to_arrow())
    number = (await trips.loads())[0].load_id
    await trips.undo_load(number)
    with pytest.raises(fs.NotFoundError, match=f"load {number} "):
        await other.replay(made.manifest)


async def test_a_time_is_given_as_its_text_as_well(trips: fs.FeatureStore):
    mark = await trips.mark()
    for moment in (mark.at, mark.at.astimezone(dt.timezone(dt.timedelta(hours=5)))):
        assert await known(trips, moment.isoformat()) == await known(trips, mark.at)
    assert await known(trips, "2001-01-01T00:00:00Z") == await known(
        trips, dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    )


async def test_what_is_no_time_is_refused(trips: fs.FeatureStore):
    for text, words in {
        "2024-01-01T00:00:00": "is a time without a zone",
        "2024-01-01": "is a time without a zone",
        "soon": "is no time and no mark; it is a datetime with a zone, a mark",
        "": "is no time and no mark",
        "17@noon": "is no mark",
    }.items():
        with pytest.raises(fs.DefinitionError, match=words):
            await known(trips, text)
    for wrong in (7, "yesterday", dt.date(2024, 1, 1), True):
        with pytest.raises(fs.DefinitionError, match="mark"):
            await known(trips, wrong)


# --- of another database ----------------------------------------------------------------------


async def test_a_mark_ahead_of_the_store_is_refused(trips: fs.FeatureStore):
    mark = await trips.mark()
    ahead = replace(mark, arrival=mark.arrival + (1000 << 20))
    with pytest.raises(fs.DefinitionError, match="ahead of this store"):
        await known(trips, ahead)
    with pytest.raises(fs.DefinitionError, match="ahead of this store"):
        await known(trips, replace(mark, arrival=2**63 - 1))


async def test_a_mark_of_a_database_with_as_many_loads_is_refused(trips: fs.FeatureStore):
    """Another one, or this one before it was set back to a backup and written to again."""
    await push(trips, 1, 10)
    mark = await trips.mark()
    assert mark.newest is not None
    number, began = mark.newest
    for newest in ((number, began + 1), (number - 1, began), (2**62, began)):
        with pytest.raises(fs.DefinitionError, match=f"another database.*load {newest[0]} "):
            await known(trips, replace(mark, newest=newest))
    for as_of in (mark, (await trips.loads())[-1].finished_at):
        made = await trips.get_historical_features(entity_rows((1, hour(1))), [VIEW], as_of=as_of)
        other = replace(made.manifest, mark=replace(made.manifest.mark, newest=(number, began + 1)))
        with pytest.raises(fs.DefinitionError, match="another database"):
            await trips.replay(other)


async def test_a_mark_of_the_other_kind_of_database_is_refused(trips: fs.FeatureStore):
    mark = await trips.mark()
    turned = replace(mark, snapshot=None if mark.snapshot else "1:1:")
    with pytest.raises(fs.DefinitionError, match=r"SQLite.*PostgreSQL|PostgreSQL.*SQLite"):
        await known(trips, turned)


# --- all of it, at random ---------------------------------------------------------------------


@dataclass(frozen=True)
class Undo:
    choice: int


@dataclass(frozen=True)
class Erase:
    keys: tuple[Any, ...]


@dataclass(frozen=True)
class Remember:
    pass


_NUMBER = "number"
_ERASE = st.builds(Erase, keys_of(_NUMBER))
STEPS = st.lists(
    st.one_of(
        batches(_NUMBER, grid_times),
        batches(_NUMBER, grid_times),
        st.builds(Remember),
        st.builds(Undo, st.integers(0, 5)),
        _ERASE,
    ),
    min_size=3,
    max_size=10,
)


@dataclass
class Memory:
    """A mark, the oracle's rows then, and what was taken out of them since."""

    mark: fs.Mark
    oracle: Oracle
    removed: int = 0

    def drop(self, gone: Callable[[Any], bool]) -> None:
        kept = [row for row in self.oracle.rows if not gone(row)]
        self.removed += len(kept) < len(self.oracle.rows)
        self.oracle.rows = kept


@pytest.fixture
async def kinds_store(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([KINDS[_NUMBER, limited].view for limited in (False, True)])
    return store


@settings(max_examples=25)
@given(steps=STEPS, limited=st.booleans())
async def test_each_mark_gives_what_was_there_less_what_was_taken_out_since(
    kinds_store: fs.FeatureStore, tmp_path: Path, steps: Sequence[Any], limited: bool
):
    store, example, kind = kinds_store, next_example(), KINDS[_NUMBER, limited]
    ttl = TTL if limited else None
    oracle, numbers, memories = Oracle(FEATURES, ttl=ttl), {}, []
    for step in [*steps, Batch(WAYS[0], (Draft((1,), BASE, dict.fromkeys(FEATURES)),))]:
        match step:
            case Batch(way, drafts):
                rows = [kind.row(example, draft) for draft in drafts]
                number = await write(store, kind.view, rows, way, tmp_path)
                numbers[oracle.write(drafts, NOW)] = number
            case Undo(choice) if oracle.loads:
                load = oracle.loads[choice % len(oracle.loads)]
                await store.undo_load(numbers[load])
                oracle.undo(load, NOW)
                for one in memories:
                    one.drop(lambda row, load=load: row.load == load)
            case Erase(keys):
                await store.repository(kind.view).delete(**kind.key_row(example, keys))
                oracle.delete(keys)
                for one in memories:
                    one.drop(lambda row, keys=keys: row.keys == keys)
            case Remember():
                memories.append(Memory(await store.mark(), oracle.snapshot()))

    times = [BASE + n * UNIT for n in range(0, 8, 2)]
    questions = list(itertools.product([(1,), (2,), (2**53 + 1,)], times))
    entities = kind.entity_table(example, questions)
    for one in memories:
        found = await store.get_historical_features(entities, [kind.view], as_of=one.mark)
        answers = found.to_arrow().select(FEATURES).to_pylist()
        assert answers == [one.oracle.values_at(keys, when) for keys, when in questions]
        assert len(found.warnings) == one.removed
