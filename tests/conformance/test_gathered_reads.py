"""Reads that are answered together: each caller has its own rows, errors and cancellation, and
none is answered by what was sent before it came."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable

import pytest

import featurestore as fs

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

NOW = dt.datetime.now(dt.UTC)
DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
STATS = fs.FeatureView(
    "stats",
    entities=[DRIVER],
    fields=[
        fs.Field("trips", fs.Int64),
        fs.Field("city", fs.String),
        fs.Field("recent", fs.Array(fs.Int32)),
        fs.Field("about", fs.Json),
    ],
    timestamp_field="at",
)
RATING = fs.FeatureView(
    "rating",
    entities=[DRIVER],
    fields=[fs.Field("stars", fs.Float64)],
    timestamp_field="at",
    ttl=dt.timedelta(days=2),
)
DRIVERS = 300


def row(driver: int, trips: int | None = None, at: dt.datetime = NOW) -> dict[str, object]:
    return {
        "driver_id": driver,
        "at": at,
        "trips": driver * 10 if trips is None else trips,
        "city": f"city {driver % 7}",
        "recent": [driver, None, driver + 1],
        "about": {"of": [driver]},
    }


@pytest.fixture
async def filled(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([STATS, RATING])
    await store.push(STATS, [row(driver) for driver in range(DRIVERS)])
    old = NOW - dt.timedelta(days=3)
    await store.push(
        RATING,
        [
            {"driver_id": driver, "at": old if driver % 3 == 0 else NOW, "stars": driver / 8}
            for driver in range(0, DRIVERS, 2)
        ],
    )
    return store


async def test_each_caller_has_its_own_rows(filled: fs.FeatureStore):
    """A thousand callers with keys that overlap, repeat, are missing or null."""
    chance = random.Random(4)
    asked = [
        [
            chance.choice([None, *range(DRIVERS + 20)])
            for _ in range(chance.choice([1, 1, 1, 2, 5, 40]))
        ]
        for _ in range(1_000)
    ]
    features = ["stats:trips", "stats:recent", "rating:stars"]

    async def one(keys: list[int | None]) -> None:
        answer = await filled.get_online_features(features, [{"driver_id": key} for key in keys])
        for key, found, status in zip(keys, answer.to_dicts(), answer.statuses, strict=True):
            there = key is not None and key < DRIVERS
            assert found["driver_id"] == key
            assert found["trips"] == (key * 10 if there else None)
            assert found["recent"] == ([key, None, key + 1] if there else None)
            assert status["trips"] == (fs.Status.PRESENT if there else fs.Status.NOT_FOUND)
            rated = there and key % 2 == 0
            fresh = rated and key % 3 != 0
            assert found["stars"] == (key / 8 if fresh else None)
            assert status["stars"] == (
                fs.Status.PRESENT
                if fresh
                else fs.Status.OUTSIDE_MAX_AGE
                if rated
                else fs.Status.NOT_FOUND
            )

    before = filled.stats.reads
    async with asyncio.TaskGroup() as group:
        for keys in asked:
            group.create_task(one(keys))
    reads = filled.stats.reads
    assert reads.requests - before.requests == 1_000
    assert reads.batches - before.batches < 200, "hardly any were gathered"
    assert reads.waiting == reads.in_flight == 0
    assert sum(reads.batch_sizes) == reads.batches


async def test_what_one_caller_does_with_its_values_is_its_own(filled: fs.FeatureStore):
    answers = await asyncio.gather(
        *(filled.get_online_features(["stats:*"], [{"driver_id": 7}]) for _ in range(50))
    )
    for number, answer in enumerate(answers):
        (values,) = answer.to_dicts()
        assert values["recent"] == [7, None, 8], f"caller {number} sees what another one changed"
        assert values["about"] == {"of": [7]}
        values["recent"].clear()
        values["about"]["of"].append("mine")


async def test_a_bad_request_fails_its_caller_alone(filled: fs.FeatureStore):
    async def good(driver: int) -> int:
        found = await filled.get_online_features(["stats:trips"], [{"driver_id": driver}])
        return found.to_dicts()[0]["trips"]

    async def bad(driver: int) -> type[Exception]:
        asked = [{"driver_id": 2**70}, {"driver": driver}, {"driver_id": "x"}][driver % 3]
        with pytest.raises((fs.SchemaMismatchError, fs.InvalidRowsError)) as caught:
            await filled.get_online_features(["stats:trips"], [asked])
        return caught.type

    async def unknown() -> None:
        with pytest.raises(fs.NotFoundError):
            await filled.get_online_features(["stats:trip"], [{"driver_id": 1}])

    answers = await asyncio.gather(
        *(good(driver) if driver % 4 else bad(driver) for driver in range(200)), unknown()
    )
    assert all(answers[driver] == driver * 10 for driver in range(200) if driver % 4)


async def test_callers_that_go_away_take_nothing_from_the_others(filled: fs.FeatureStore):
    """Every third is cancelled, at once or while its statement is under way."""

    async def one(driver: int) -> int:
        found = await filled.get_online_features(["stats:trips"], [{"driver_id": driver}])
        return found.to_dicts()[0]["trips"]

    for pause in (0, 0, 0.0005, 0.002, 0.01):
        tasks = [asyncio.create_task(one(number % DRIVERS)) for number in range(600)]
        await asyncio.sleep(pause)
        for task in tasks[::3]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            if number % 3 or not isinstance(answer, asyncio.CancelledError):
                assert answer == number % DRIVERS * 10
    assert filled.stats.reads.waiting == filled.stats.reads.in_flight == 0
    assert filled.stats.pool_in_use == 0


async def test_when_all_callers_have_gone_nothing_is_left(filled: fs.FeatureStore):
    for pause in (0, 0.0005, 0.002):
        tasks = [
            asyncio.create_task(
                filled.get_online_features(["stats:trips"], [{"driver_id": number % DRIVERS}])
            )
            for number in range(300)
        ]
        await asyncio.sleep(pause)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(10):
            while filled.stats.reads.in_flight or filled.stats.pool_in_use:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert filled.stats.reads.waiting == 0
        found = await filled.get_online_features(["stats:trips"], [{"driver_id": 9}])
        assert found.to_dicts() == [{"driver_id": 9, "trips": 90}]


async def test_a_read_sees_every_write_that_had_ended_before_it_came(filled: fs.FeatureStore):
    """Readers of one key, while it is written: nobody gets what is older than what was durable
    when it asked, and no vector mixes two writes."""
    durable = 0
    stop = False
    at = NOW

    async def write() -> None:
        nonlocal durable, stop
        for version in range(101, 140):  # not what it was filled with
            when = at + dt.timedelta(microseconds=version)
            await filled.push(
                STATS, [{**row(1, version, when), "recent": [version, None, version]}]
            )
            durable = version
        stop = True

    async def read() -> int:
        reads = 0
        while not stop:
            least = durable
            found = await filled.get_online_features(
                ["stats:trips", "stats:recent"], [{"driver_id": 1}]
            )
            (values,) = found.to_dicts()
            if values["trips"] == 10:  # as it was filled
                assert least == 0
            else:
                assert values["trips"] >= least
                assert values["recent"] == [values["trips"], None, values["trips"]]
            reads += 1
        return reads

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        readers = [group.create_task(read()) for _ in range(40)]
    assert sum(reader.result() for reader in readers) > 40


async def test_large_and_small_requests_pass_each_other(filled: fs.FeatureStore):
    large = [{"driver_id": number % (DRIVERS + 5)} for number in range(5_000)]

    async def many(*more: str) -> None:
        answer = await filled.get_online_features(["stats:trips", "rating:stars", *more], large)
        trips = [found["trips"] for found in await asyncio.to_thread(answer.to_dicts)]
        keys = [asked["driver_id"] for asked in large]
        assert trips == [key * 10 if key < DRIVERS else None for key in keys]

    async def one(driver: int) -> None:
        answer = await filled.get_online_features(["stats:trips"], [{"driver_id": driver}])
        assert answer.to_dicts()[0]["trips"] == driver * 10

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(one(number))
            if number % 10 == 0:  # of two kinds, which have the way for large ones in common
                group.create_task(many())
                group.create_task(many("stats:city"))


async def test_many_views_of_many_keys_are_of_one_moment(
    store: fs.FeatureStore,
):
    """Above some hundred keys each view has its statement: they still see one state."""
    views = [
        fs.FeatureView(
            f"v{number}",
            entities=[DRIVER],
            fields=[fs.Field("n", fs.Int64)],
            timestamp_field="at",
        )
        for number in range(3)
    ]
    await store.apply(views)

    async def write(version: int) -> None:
        when = NOW + dt.timedelta(microseconds=version)
        async with store.transaction() as tx:
            for view in views:
                await tx.push(view, [{"driver_id": 1, "at": when, "n": version}])

    await write(0)
    done = False

    async def writer() -> None:
        nonlocal done
        for version in range(1, 15):
            await write(version)
        done = True

    async def reader(keys: int) -> None:
        asked = [{"driver_id": 1}] * keys
        while not done:
            answer = await store.get_online_features(
                [f"v{number}:n" for number in range(3)], asked, full_feature_names=True
            )
            values = await asyncio.to_thread(answer.to_dicts)
            assert len({values[0][f"v{number}__n"] for number in range(3)}) == 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(writer())
        for keys in (1, 1, 30, 1_500):
            group.create_task(reader(keys))


async def test_too_many_waiting_callers_are_refused_at_once(
    open_store: OpenStore, filled: fs.FeatureStore
):
    store = await open_store(limits=fs.Limits(max_waiting=20))
    await store.get_online_features(["stats:trips"], [{"driver_id": 1}])
    calls = [
        store.get_online_features(["stats:trips"], [{"driver_id": number}]) for number in range(200)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert refused
    assert all(isinstance(error, fs.OverloadedError) for error in refused)
    assert len(answers) - len(refused) >= 20
    assert store.stats.reads.overloaded == len(refused)
    again = await store.get_online_features(["stats:trips"], [{"driver_id": 3}])
    assert again.to_dicts()[0]["trips"] == 30


async def test_a_closing_store_answers_those_that_wait(
    open_store: OpenStore, filled: fs.FeatureStore
):
    store = await open_store()
    await store.get_online_features(["stats:trips"], [{"driver_id": 1}])
    tasks = [
        asyncio.create_task(store.get_online_features(["stats:trips"], [{"driver_id": number}]))
        for number in range(100)
    ]
    await asyncio.sleep(0)
    await store.close()
    answers = await asyncio.gather(*tasks)
    assert [answer.to_dicts()[0]["trips"] for answer in answers] == list(range(0, 1_000, 10))


async def test_definitions_that_change_under_many_readers(
    open_store: OpenStore, filled: fs.FeatureStore
):
    """Another process applies: readers go on, with the old columns and then with the new one."""
    stop = False

    async def read(driver: int) -> None:
        while not stop:
            answer = await filled.get_online_features(["stats:*"], [{"driver_id": driver}])
            (values,) = answer.to_dicts()
            assert values["trips"] == driver * 10
            assert values.get("more") is None

    other = await open_store()
    async with asyncio.TaskGroup() as group:
        for driver in range(30):
            group.create_task(read(driver))
        await asyncio.sleep(0.05)
        wider = fs.FeatureView(
            STATS.name,
            entities=[DRIVER],
            fields=[*STATS.fields, fs.Field("more", fs.String)],
            timestamp_field="at",
        )
        await other.apply([wider])
        await asyncio.sleep(0.05)
        stop = True
    answer = await filled.get_online_features(["stats:more"], [{"driver_id": 1}])
    assert answer.to_dicts() == [{"driver_id": 1, "more": None}]


async def test_join_keys_of_a_service_that_another_process_maps_anew(
    open_store: OpenStore, filled: fs.FeatureStore
):
    def service(column: str) -> fs.FeatureService:
        return fs.FeatureService("by", features=[STATS.with_join_key_map({"driver_id": column})])

    await filled.apply([service("origin")])
    await filled.get_online_features("by", [{"origin": 1}])
    other = await open_store()
    await other.apply([service("dest")])
    found = await filled.get_online_features("by", [{"dest": 2}])
    assert found.to_dicts()[0]["trips"] == 20
    with pytest.raises(fs.SchemaMismatchError, match="dest"):
        await filled.get_online_features("by", [{"origin": 1}])


async def test_features_may_come_from_an_iterator(filled: fs.FeatureStore):
    for _ in range(2):
        names = (f"stats:{name}" for name in ("trips", "city"))
        found = await filled.get_online_features(names, [{"driver_id": 3}])
        assert found.to_dicts() == [{"driver_id": 3, "trips": 30, "city": "city 3"}]


async def test_a_store_closes_although_its_callers_go_on_asking(
    open_store: OpenStore, filled: fs.FeatureStore
):
    store = await open_store()
    ended = 0

    async def ask(driver: int) -> None:
        nonlocal ended
        try:
            while True:
                await store.get_online_features(["stats:trips"], [{"driver_id": driver}])
        except fs.StoreUnavailableError as error:
            ended += "is closed" in str(error)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for driver in range(50):
            group.create_task(ask(driver))
        await asyncio.sleep(0.05)
        await store.close()
    assert ended == 50
    assert store.stats.pool_in_use == 0
