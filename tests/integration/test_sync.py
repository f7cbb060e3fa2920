"""The store without ``await``: the same calls, from scripts, threads and running loops."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

import featurestore as fs
from featurestore import calls, repository, store

# Waiting for the portal's thread is what these calls are for.
pytestmark = pytest.mark.allow_blocking

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)

view = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int32)],
    timestamp_field="event_timestamp",
)


def row(driver: int, trips: int, hours: int = 0) -> dict[str, object]:
    when = NOON + dt.timedelta(hours=hours)
    return {"driver_id": driver, "event_timestamp": when, "trips": trips}


@pytest.fixture
def sync_store(tmp_path: Path) -> Iterator[fs.sync.FeatureStore]:
    with fs.sync.FeatureStore(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        opened.apply(view)
        yield opened


def public(kind: type) -> dict[str, list[inspect.Parameter]]:
    """Public methods of a class, with their parameters but for the annotations."""
    return {
        name: [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in inspect.signature(member).parameters.values()
        ]
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("plain", "original"),
    [
        (fs.sync.FeatureStore, store.FeatureStore),
        (fs.sync.Transaction, store.Transaction),
        (fs.sync.FeatureRepository, repository.FeatureRepository),
    ],
)
def test_each_call_is_there_with_the_same_parameters(plain: type, original: type):
    assert public(plain) == public(original)
    assert public(calls.Calls).keys() <= public(store.FeatureStore).keys()


def documented(kind: type) -> dict[str, str]:
    """The documentation of public methods and properties, as ``help`` finds it."""
    return {
        name: inspect.getdoc(member) or ""
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


@pytest.mark.parametrize(
    ("plain", "original", "differing"),
    [
        (
            fs.sync.FeatureStore,
            store.FeatureStore,
            {
                *("ingest", "push_stream", "repository", "get_historical_features", "replay"),
                *("stream_historical_features", "export_history", "transaction"),
            },
        ),
        (
            fs.sync.Transaction,
            store.Transaction,
            {
                *("ingest", "push_stream", "repository", "get_historical_features", "replay"),
                "stream_historical_features",
            },
        ),
        (fs.sync.FeatureRepository, repository.FeatureRepository, {"scan"}),
    ],
)
def test_each_call_has_the_documentation_of_its_twin(
    plain: type, original: type, differing: set[str]
):
    """Whole, with a last paragraph where it differs; ``engine`` says what it is here."""
    ours, theirs = documented(plain), documented(original)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - differing - {"engine"}:
        assert ours[name] == theirs[name] != "", name
    for name in differing:
        whole, _, note = ours[name].rpartition("\n\n")
        assert whole == theirs[name], name
        assert note.startswith("Here "), name


def test_the_class_says_what_its_parameters_are():
    text = inspect.getdoc(fs.sync.FeatureStore) or ""
    assert "``url`` is a SQLAlchemy URL" in text
    assert "``clock_skew``" in text
    assert "async with" not in text
    assert text.endswith(
        'vectors = store.get_online_features(["driver_stats:*"], [{"driver_id": 7}])'
    )


def test_the_main_job(sync_store: fs.sync.FeatureStore):
    sync_store.push(view, [row(1, 5), row(2, 6)])
    online = sync_store.get_online_features(["driver_stats:trips"], [{"driver_id": 2}])
    assert online.to_dicts() == [{"driver_id": 2, "trips": 6}]
    entities = pa.table({"driver_id": [1], "event_timestamp": [NOON + dt.timedelta(days=1)]})
    training = sync_store.get_historical_features(entities, ["driver_stats:trips"])
    assert training.to_arrow().column("trips").to_pylist() == [5]
    stream = sync_store.stream_historical_features(entities, ["driver_stats:trips"])
    assert stream.summary is None
    assert [batch.num_rows for batch in stream] == [1]
    assert stream.summary is not None
    assert stream.summary.match_rate == training.match_rate
    again = sync_store.replay(stream.summary.manifest, entities, progress=lambda now: None)
    assert again.to_arrow().equals(training.to_arrow())
    told = sync_store.explain(view, {"driver_id": 1}, NOON + dt.timedelta(days=1))
    assert told.values == {"trips": 5}
    assert sync_store.repository(view).get(driver_id=1) == {"driver_id": 1, "trips": 5}
    assert [load.rows_written for load in sync_store.loads()] == [2]


def test_an_iterator_that_is_left_early_gives_its_connection_back(
    sync_store: fs.sync.FeatureStore,
):
    sync_store.push(view, [row(n, n) for n in range(50)])
    batches = sync_store.repository(view).scan(batch_size=10)
    assert next(batches).num_rows == 10
    batches.close()
    assert sync_store.engine.pool.checkedout() == 0
    entities = pa.table({"driver_id": [1] * 50_000, "event_timestamp": [NOON] * 50_000})
    rows = sync_store.stream_historical_features(entities, ["driver_stats:trips"])
    assert next(rows).num_rows > 0
    rows.close()
    assert rows.summary is None
    assert sync_store.engine.pool.checkedout() == 0
    assert sync_store.repository(view).count() == 50


def test_a_transaction_commits_as_one_or_not_at_all(sync_store: fs.sync.FeatureStore):
    with sync_store.transaction() as tx:
        tx.push(view, [row(1, 5)])
        assert tx.repository(view).get(driver_id=1) == {"driver_id": 1, "trips": 5}
    assert sync_store.repository(view).count() == 1

    def fail() -> None:
        with sync_store.transaction() as tx:
            tx.push(view, [row(1, 6, hours=1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sync_store.repository(view).get(driver_id=1) == {"driver_id": 1, "trips": 5}


def test_leaving_the_program_inside_a_transaction_takes_it_back(
    sync_store: fs.sync.FeatureStore,
):
    def leave() -> None:
        with sync_store.transaction() as tx:
            tx.push(view, [row(1, 5)])
            sys.exit(3)

    with pytest.raises(SystemExit):
        leave()
    assert sync_store.repository(view).count() == 0


async def test_it_works_inside_a_running_loop_as_in_a_notebook(sync_store: fs.sync.FeatureStore):
    sync_store.push(view, [row(1, 5)])
    assert sync_store.repository(view).count() == 1
    await asyncio.sleep(0)


def test_threads_share_a_store(sync_store: fs.sync.FeatureStore):
    def work(driver: int) -> None:
        sync_store.push(view, [row(driver, driver)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sync_store.repository(view).count() == 8


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
def test_many_threads_do_everything_at_once(featurestore_url: str):
    """From the first call on, which makes the loop and the first connections."""
    entities = pa.table({"driver_id": [0], "event_timestamp": [NOON + dt.timedelta(days=1)]})
    with fs.sync.FeatureStore(featurestore_url) as store:
        store.apply(view)
        store.push(view, [row(0, 7)])
        together = threading.Barrier(16)

        def work(driver: int) -> None:
            together.wait(30)
            for hour in range(3):
                store.push(view, [row(driver, hour, hour)])
                online = store.get_online_features(["driver_stats:*"], [{"driver_id": driver}])
                assert online.to_dicts() == [{"driver_id": driver, "trips": hour}]
            training = store.get_historical_features(entities, ["driver_stats:trips"])
            assert training.to_arrow().column("trips").to_pylist() == [7]
            with store.transaction() as tx:
                tx.push(view, [row(driver, 10, 10)])
                assert tx.repository(view).get(driver_id=driver) == {
                    "driver_id": driver,
                    "trips": 10,
                }
            assert sum(batch.num_rows for batch in store.repository(view).scan()) >= 4

        with ThreadPoolExecutor(16) as threads:
            for done in [threads.submit(work, n) for n in range(1, 17)]:
                done.result(60)
        assert store.repository(view).count() == 1 + 16 * 4


def test_errors_are_the_same(sync_store: fs.sync.FeatureStore):
    with pytest.raises(fs.NotFoundError, match="driver_stats"):
        sync_store.push("driver_stat", [row(1, 1)])
    with pytest.raises(fs.DefinitionError):
        fs.sync.FeatureStore("mysql://localhost/db")
