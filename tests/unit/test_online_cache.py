"""The cache of online reads against an oracle: whatever comes between, and in whatever order."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import featurestore as fs
from featurestore.online import cache as cache_module
from featurestore.online.cache import CachedRows, Shelf
from featurestore.selection import Request, resolve
from featurestore.storage.registry import Catalog, RegisteredView

STALENESS = 10.0
ENTRIES = 5


def view(name: str, *keys: str) -> fs.FeatureView:
    entities = [fs.Entity(key, join_keys={key: fs.Int64}) for key in keys]
    fields = [fs.Field(f"of_{name}", fs.Int64)]
    return fs.FeatureView(name, entities=entities, fields=fields, timestamp_field="at")


VIEWS = [view("one", "k"), view("same", "k"), view("pair", "k", "j"), view("turned", "j", "k")]
CATALOG = Catalog(
    "project", 1, views={one.name: RegisteredView(1, one, None, None) for one in VIEWS}
)

PLANS: list[list[str]] = [
    ["one:*"],
    ["one:*", "same:*"],
    ["pair:*", "turned:*"],  # whose keys are in another order
    ["one:*", "pair:*"],  # one of which has only some of the keys
]


def request_of(features: Any) -> Request:
    return resolve(features, CATALOG, full_feature_names=True)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Version:
    """A value of one entity of a view: since which of all writes, and until when."""

    number: int
    since: float


@dataclass
class World:
    """A database: each entity's versions, the newest last."""

    clock: Clock
    writes: int = 0
    versions: dict[tuple[str, tuple[int, ...]], list[Version]] = field(default_factory=dict)

    def of(self, name: str, key: tuple[int, ...]) -> list[Version]:
        return self.versions.setdefault((name, key), [Version(0, 0.0)])

    def write(self, name: str, keys: Iterable[tuple[int, ...]]) -> None:
        self.writes += 1
        for key in keys:
            self.of(name, key).append(Version(self.writes, self.clock.now))

    def row(self, plan: Plan, key: tuple[int, ...]) -> tuple[int, ...]:
        return (0, *(self.of(name, own)[-1].number for name, own in plan.parts(key)))


class Plan:
    """A request, and which entity of each of its views belongs to its keys."""

    def __init__(self, features: list[str]) -> None:
        request = request_of(features)
        self.shelf = Shelf(request)
        self.columns = list(request.key_columns)
        self.joins = [(join.view.name, [column for _, column in join.columns]) for join in
                      request.joins]  # fmt: skip

    def parts(self, key: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, columns in self.joins:
            yield name, tuple(key[self.columns.index(column)] for column in columns)


@dataclass
class Call:
    """One call of a reader: when it began, and the least that it must see."""

    plan: Plan
    keys: list[tuple[int, ...]]
    began: float
    least: dict[tuple[str, tuple[int, ...]], int]
    task: asyncio.Task[Any] | None = None


@dataclass
class Query:
    """A query under way: what it has seen, once it has."""

    plan: Plan
    keys: Sequence[tuple[int, ...]]
    answer: asyncio.Future[Any]
    rows: list[tuple[int, ...]] | None = None


@dataclass
class Write:
    """A write of this process that is committed and has not returned."""

    name: str
    keys: list[tuple[int, ...]]
    told: list[tuple[int, ...]] | None
    number: int


class Interleaved:
    """Readers and writers, each of whose steps may come at any moment: those of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.world = World(self.clock)
        options = fs.Cache(
            max_staleness=dt.timedelta(seconds=STALENESS), max_entries=ENTRIES, clock=self.clock
        )
        self.cache = CachedRows(options)
        self.plans = [Plan(features) for features in PLANS]
        self.calls: list[Call] = []
        self.queries: list[Query] = []
        self.writes: list[Write] = []
        self.least: dict[tuple[str, tuple[int, ...]], int] = {}
        self.answered = 0

    async def run(self, steps: int) -> None:
        weighted = {
            self.read: 8, self.see: 5, self.answer: 8, self.cancel: 0.5, self.write: 3,
            self.return_: 3, self.apply: 0.2, self.pass_time: 0.5,
        }  # fmt: skip
        kinds, weights = list(weighted), list(weighted.values())
        for _ in range(steps):
            self.random.choices(kinds, weights)[0]()
            for _ in range(4):  # until all tasks wait again
                await asyncio.sleep(0)
            for call in [one for one in self.calls if one.task.done()]:
                self.calls.remove(call)
                if not call.task.cancelled():
                    self.check(call, call.task.result())
            assert self.cache.stats().entries <= ENTRIES
        for call in self.calls:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in self.calls), return_exceptions=True)

    def check(self, call: Call, rows: Any) -> None:
        """No row is older than a write that had returned, nor than allowed, nor of two moments."""
        assert len(rows) == len(call.keys)
        self.answered += 1
        earliest = min(call.began, self.clock.now - STALENESS)
        for key, row in zip(call.keys, rows, strict=True):
            since, until = 0, float("inf")  # the writes between which all of the row was so
            for (name, own), number in zip(call.plan.parts(key), row[1:], strict=True):
                assert number >= call.least.get((name, own), 0), "older than a write that returned"
                later = [one for one in self.world.of(name, own) if one.number > number]
                assert not later or later[0].since >= earliest, "older than it may be"
                since = max(since, number)
                until = min(until, later[0].number if later else until)
            assert since < until, "a row of two moments"

    def entity(self, size: int) -> tuple[int, ...]:
        return tuple(self.random.choices((0, 1), k=size))

    # --- readers --------------------------------------------------------------------------

    def read(self) -> None:
        plan = self.random.choice(self.plans)
        keys = [self.entity(len(plan.columns)) for _ in range(self.random.choice((1, 1, 2, 3)))]
        call = Call(plan, keys, self.clock.now, dict(self.least))
        kept = self.cache.look(plan.shelf, keys)
        if kept is not None:
            self.check(call, kept)
            return

        def query(wanted: Sequence[tuple[int, ...]]) -> asyncio.Future[Any]:
            self.queries.append(Query(plan, wanted, asyncio.get_running_loop().create_future()))
            return self.queries[-1].answer

        call.task = asyncio.create_task(self.cache.find(plan.shelf, keys, query))
        self.calls.append(call)

    def see(self) -> None:
        """A query has its snapshot."""
        if self.queries:
            query = self.random.choice(self.queries)
            if query.rows is None:
                query.rows = [self.world.row(query.plan, key) for key in query.keys]

    def answer(self) -> None:
        """A query's answer arrives."""
        if not self.queries:
            return
        query = self.queries.pop(self.random.randrange(len(self.queries)))
        if query.rows is None:
            query.rows = [self.world.row(query.plan, key) for key in query.keys]
        if not query.answer.done():
            query.answer.set_result(query.rows)

    def cancel(self) -> None:
        if self.calls:
            self.random.choice(self.calls).task.cancel()

    # --- writers --------------------------------------------------------------------------

    def write(self) -> None:
        """A commit, by this process or by another."""
        view = self.random.choice(VIEWS)
        keys = [self.entity(len(view.join_keys)) for _ in range(self.random.choice((1, 1, 2)))]
        self.world.write(view.name, dict.fromkeys(keys))
        if self.random.random() < 0.7:
            told = keys if self.random.random() < 0.8 else None
            self.writes.append(Write(view.name, keys, told, self.world.writes))

    def return_(self) -> None:
        """A write of this process returns."""
        if not self.writes:
            return
        write = self.writes.pop(self.random.randrange(len(self.writes)))
        self.cache.changed(write.name, write.told)
        for key in write.keys:
            place = (write.name, key)
            self.least[place] = max(self.least.get(place, 0), write.number)

    def apply(self) -> None:
        self.cache.changed(None)

    def pass_time(self) -> None:
        self.clock.now += self.random.choice((1.0, 4.0, STALENESS, STALENESS + 1))


@pytest.mark.parametrize("remembered", [cache_module.CHANGES, 1])
@pytest.mark.parametrize("seed", range(4))
async def test_no_read_is_older_than_promised(
    monkeypatch: pytest.MonkeyPatch, seed: int, remembered: int
):
    monkeypatch.setattr(cache_module, "CHANGES", remembered)
    story = Interleaved(seed)
    await story.run(steps=8_000)
    stats = story.cache.stats()
    assert story.answered > 1_000
    assert min(stats.hits, stats.misses) > 200, "the story has to have both"


# --- single steps -----------------------------------------------------------------------------


def rows_of(clock: Clock, **options: Any) -> CachedRows:
    options = {"max_staleness": dt.timedelta(seconds=STALENESS), "clock": clock} | options
    return CachedRows(fs.Cache(**options))


async def asked(rows: CachedRows, shelf: Shelf, *keys: int, takes: float = 0.0) -> list[int]:
    """The keys for which a read is sent that takes so many seconds; its rows are kept."""
    sent: list[int] = []
    wanted = [(key,) for key in keys]

    async def read(missing: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        sent.extend(key for (key,) in missing)
        rows._clock.now += takes
        return [(0, key) for (key,) in missing]

    found = rows.look(shelf, wanted)
    if found is None:
        found = await rows.find(shelf, wanted, read)
    assert [tuple(row) for row in found] == [(0, key) for key in keys]
    return sent


async def test_the_age_of_a_row_counts_from_before_its_read_was_sent():
    clock = Clock()
    rows, shelf = rows_of(clock), Shelf(request_of(["one:*"]))
    assert await asked(rows, shelf, 1, takes=6.0) == [1]
    clock.now += 4.0
    assert await asked(rows, shelf, 1) == []
    clock.now += 0.001
    assert await asked(rows, shelf, 1) == [1]


async def test_rows_that_grow_too_old_while_others_are_read_are_read_again():
    clock = Clock()
    rows, shelf = rows_of(clock), Shelf(request_of(["one:*"]))
    await asked(rows, shelf, 1, 2)
    clock.now += 5.0
    assert await asked(rows, shelf, 1, 2, 3, takes=6.0) == [3, 1, 2]


class Jump(Clock):
    """A clock that jumps once it was looked at so many times."""

    looks = 0

    def __call__(self) -> float:
        now = self.now
        self.looks -= 1
        if not self.looks:
            self.now += STALENESS + 1
        return now


@pytest.mark.parametrize("looks", [1, 2, 3, 4])
async def test_rows_that_grow_too_old_while_many_are_looked_up_are_read(looks: int):
    clock = Jump()
    rows, shelf = rows_of(clock), Shelf(request_of(["one:*"]))
    many = range(cache_module.INLINE_KEYS + 1)
    await asked(rows, shelf, *many)
    assert await asked(rows, shelf, *many) == []
    clock.looks = looks
    assert len(await asked(rows, shelf, *many)) == (len(many) if looks < 4 else 0)


async def test_rows_that_grow_too_old_while_many_are_kept_are_read():
    clock = Jump()
    rows, shelf = rows_of(clock), Shelf(request_of(["one:*"]))
    await asked(rows, shelf, 1, 2)
    # The fifth look is the last before the rows that were here are given.
    clock.looks = 5
    assert await asked(rows, shelf, 1, 2, 3) == [3, 1, 2]


async def test_the_oldest_rows_go_first():
    rows, shelf = rows_of(Clock(), max_entries=3), Shelf(request_of(["one:*"]))
    for key in (1, 2, 3):
        await asked(rows, shelf, key)
    assert await asked(rows, shelf, 1) == []  # being asked for makes it no younger
    await asked(rows, shelf, 4)
    assert rows.stats().entries == 3
    assert await asked(rows, shelf, 2, 3, 4) == []
    assert await asked(rows, shelf, 1) == [1]


async def test_of_a_request_larger_than_the_cache_its_end_is_kept():
    rows, shelf = rows_of(Clock(), max_entries=3), Shelf(request_of(["one:*"]))
    await asked(rows, shelf, *range(10))
    assert await asked(rows, shelf, 7, 8, 9) == []
    assert rows.stats().entries == 3


async def test_rows_that_are_too_old_make_room():
    clock = Clock()
    rows, shelf = rows_of(clock), Shelf(request_of(["one:*"]))
    await asked(rows, shelf, *range(100))
    clock.now += STALENESS + 1
    for key in range(60):
        await asked(rows, shelf, key)
    assert rows.stats().entries == 60


async def test_a_closed_cache_keeps_nothing():
    rows, shelf = rows_of(Clock()), Shelf(request_of(["one:*"]))
    await asked(rows, shelf, 1)
    rows.close()
    assert await asked(rows, shelf, 1) == [1]
    assert await asked(rows, shelf, 1) == [1]


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_staleness": dt.timedelta(0)},
        {"max_staleness": dt.timedelta(seconds=-1)},
        {"max_staleness": 5},
        {"max_staleness": dt.timedelta(seconds=1), "max_entries": 0},
        {"max_staleness": dt.timedelta(seconds=1), "max_entries": True},
        {"max_staleness": dt.timedelta(seconds=1), "max_entries": 1.5},
        {"max_staleness": dt.timedelta(seconds=1), "clock": 7},
    ],
)
def test_what_is_no_cache_is_refused(options: dict[str, Any]):
    with pytest.raises(fs.DefinitionError, match=r"max_staleness|max_entries|clock"):
        fs.Cache(**options)


def test_what_is_no_cache_is_refused_by_the_store(tmp_path):
    with pytest.raises(fs.DefinitionError, match=r"featurestore\.Cache"):
        fs.FeatureStore(f"sqlite:///{tmp_path / 'x.db'}", cache={"max_entries": 5})


def test_the_clock_goes_on_while_the_machine_sleeps():
    options = fs.Cache(max_staleness=dt.timedelta(seconds=1))
    expected = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    assert expected is None or options.clock.args == (expected,)
    assert options == fs.Cache(max_staleness=dt.timedelta(seconds=1), clock=Clock())
