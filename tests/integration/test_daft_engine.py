"""Joins by Daft on Ray over Parquet copies: what the oracle says, and nothing left behind."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from oracle import Draft, Oracle, Stored
from strategies import BASE, FEATURES, NOW, TTL, UNIT, PointInTimeCase, point_in_time_cases

import featurestore as fs
from featurestore.selection import Request, resolve
from featurestore.storage.marks import Mark, take_mark, unseen
from featurestore.training.daft_engine import AsOf, JoinedFiles, join_exports
from featurestore.training.daft_process import _failure
from featurestore.training.entities import prepare_entities

KEYS: dict[str, dict[str, fs.FeatureType]] = {
    "number": {"id": fs.Int64},
    "text": {"label": fs.String},
    "composite": {"airport": fs.String, "day": fs.Date, "inbound": fs.Bool},
}
FIELDS = [
    fs.Field("number", fs.Int64),
    fs.Field("note", fs.String),
    fs.Field("numbers", fs.Array(fs.Float64)),
]
TIMES = {"timestamp_field": "happened", "created_timestamp_field": "made"}


def views() -> dict[tuple[str, bool], fs.FeatureView]:
    made = {}
    for kind, keys in KEYS.items():
        entity = fs.Entity(f"thing_{kind}", join_keys={"example": fs.Int64, **keys})
        for limited in (False, True):
            name = f"by_{kind}_limited" if limited else f"by_{kind}"
            ttl = TTL if limited else None
            made[kind, limited] = fs.FeatureView(
                name, entities=[entity], fields=FIELDS, ttl=ttl, **TIMES
            )
    return made


VIEWS = views()
EVERYWHERE = fs.FeatureView("everywhere", entities=[], fields=FIELDS, ttl=TTL, **TIMES)
NAMES = [*(view.name for view in VIEWS.values()), "everywhere"]


def drawn(count: int) -> list[PointInTimeCase]:
    """Cases of the point-in-time rule."""
    cases: list[PointInTimeCase] = []

    @settings(max_examples=count, database=None, phases=[Phase.generate])
    @given(case=point_in_time_cases())
    def keep(case: PointInTimeCase) -> None:
        cases.append(case)

    keep()
    return cases


@dataclass
class World:
    """A store with many cases in it, their oracles, and the copies of its views.

    ``half`` is the mark after the first half of the cases; ``entities`` are the questions of all.
    """

    store: fs.FeatureStore
    copies: dict[str, Path]
    cases: list[PointInTimeCase]
    half: Mark
    everywhere: Oracle
    oracles: list[Oracle] = field(default_factory=list)

    def entity_table(self) -> pa.Table:
        """The questions; the key columns of the other kinds are null, and match nothing."""
        types = {name: kind for keys in KEYS.values() for name, kind in keys.items()}
        rows: list[dict[str, Any]] = []
        for example, case in enumerate(self.cases):
            for keys, when in case.questions:
                row = dict(zip(KEYS[case.kind], keys, strict=True))
                rows.append({"example": example, **row, "event_timestamp": when})
        columns = {"example": pa.int64(), **{name: kind.arrow for name, kind in types.items()}}
        columns["event_timestamp"] = fs.Timestamp.arrow
        return pa.Table.from_pylist(rows, pa.schema(columns))

    async def request(self) -> Request:
        async with self.store._context.reading(NAMES) as (_, catalog):
            return resolve([f"{name}:*" for name in NAMES], catalog, full_feature_names=True)

    async def as_of_half(self) -> dict[str, AsOf]:
        async with self.store._context.reading(NAMES) as (session, catalog):
            return {
                name: AsOf(
                    self.half.arrival, await unseen(session, self.half, catalog.view(name).id)
                )
                for name in NAMES
            }


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    cases = await asyncio.to_thread(drawn, 120)
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'store.db'}") as store:
        await store.apply([*VIEWS.values(), EVERYWHERE])
        everywhere = Oracle(FEATURES, ttl=TTL)
        world = World(store, {}, cases, Mark(0, NOW), everywhere)
        for example, case in enumerate(cases):
            if example == len(cases) // 2:
                async with store._context.reading([]) as (session, _):
                    world.half = await take_mark(session)
            oracle = Oracle(FEATURES, ttl=TTL if case.limited else None)
            world.oracles.append(oracle)
            for batch in case.batches:
                rows = [row(draft, KEYS[case.kind], (example, *draft.keys)) for draft in batch.rows]
                await store.push(VIEWS[case.kind, case.limited], rows)
                oracle.write(batch.rows, NOW)
        drafts = [
            Draft((), BASE + number * UNIT, dict.fromkeys(FEATURES)) for number in (0, 1, 1, 3)
        ]
        await store.push(EVERYWHERE, [row(draft, (), ()) for draft in drafts])
        everywhere.write(drafts, NOW)
        for name in NAMES:
            world.copies[name] = tmp_path / "copies" / name
            await store.export_history(name, world.copies[name], buckets=3)
        yield world


def row(draft: Draft, names: Iterable[str], keys: tuple[Any, ...]) -> dict[str, Any]:
    named = dict(zip(["example", *names] if keys else [], keys, strict=True))
    return {**named, "happened": draft.event, "made": draft.created, **draft.values}


def known_at(oracle: Oracle, keys: tuple[Any, ...], when: dt.datetime) -> Stored | None:
    """The rule among the rows that were created by then."""
    known = [row for row in oracle.rows if row.keys == keys and max(row.event, row.created) <= when]
    best = max(known, key=lambda row: row.rank, default=None)
    old = best is not None and oracle.ttl is not None and best.event < when - oracle.ttl
    return None if old else best


def check(world: World, joined: JoinedFiles, rule: Any, *, half: bool = False) -> None:
    """Every row of the answer is what the rule gives, in the order of the entity rows."""
    table = pa.Table.from_batches(joined.batches(), joined.schema)
    answers = table.to_pylist()
    assert [row["__row"] for row in answers] == list(range(joined.rows))
    matched = [0] * len(NAMES)
    number = 0
    for example, case in enumerate(world.cases):
        for keys, when in case.questions:
            answer, number = answers[number], number + 1
            for position, name in enumerate(NAMES):
                oracle, asked = world.everywhere, ()
                if name != "everywhere":
                    asked, oracle = keys, world.oracles[example]
                mine = name in ("everywhere", VIEWS[case.kind, case.limited].name)
                known = not half or (name != "everywhere" and example < len(world.cases) // 2)
                stored = rule(oracle, asked, when) if mine and known else None
                values = {one: None if stored is None else stored.values[one] for one in FEATURES}
                assert {one: answer[f"{name}__{one}"] for one in FEATURES} == values
                assert (answer[f"__arrival_{position}"] is None) == (stored is None)
                matched[position] += stored is not None
    assert number == joined.rows
    assert joined.matched == tuple(matched)
    assert sum(matched) > (0 if half else 20)  # by chance, as the cases are


# --- Ray --------------------------------------------------------------------------------------

CLUSTER = """
import sys
import ray

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""
QUIET = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short path: Ray has sockets in it."""
    with tempfile.TemporaryDirectory(prefix="fsray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def cluster(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of two workers, which is not this process's own, named by the environment."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(scratch)],
        stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **QUIET},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        said = next(line for line in process.stdout if line.startswith("at "))
        monkeypatch.setenv("RAY_ADDRESS", said.split()[1])
        yield
        process.stdin.close()
        process.wait(60)


def processes(of: Path) -> list[str]:
    """The processes whose command line names a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended meanwhile
        if str(of) in command:
            found.append(command)
    return found


async def becomes(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what other processes do."""
    end = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.distributed
async def test_on_a_cluster_a_join_is_what_the_oracle_says(
    world: World, cluster: None, tmp_path: Path
):
    request = await world.request()
    entities = await asyncio.to_thread(
        prepare_entities, world.entity_table(), request, "event_timestamp"
    )
    joined = await join_exports(world.copies, entities.keys, request, tmp_path / "answer")
    await asyncio.to_thread(check, world, joined, Oracle.stored_at)
    assert await asyncio.to_thread(os.listdir, tmp_path / "answer") == [
        path.name for path in joined.files
    ]


@pytest.mark.slow
@pytest.mark.distributed
async def test_without_a_cluster_a_ray_of_this_machine_does_it_and_goes(
    world: World, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    request = await world.request()
    entities = await asyncio.to_thread(
        prepare_entities, world.entity_table(), request, "event_timestamp"
    )
    path = tmp_path / "entities.parquet"
    await asyncio.to_thread(pq.write_table, entities.keys, path, row_group_size=100)
    joined = await join_exports(
        world.copies,
        path,
        request,
        tmp_path / "answer",
        as_of=await world.as_of_half(),
        known_by_created=True,
    )
    await asyncio.to_thread(check, world, joined, known_at, half=True)
    assert await asyncio.to_thread(path.exists)
    assert await asyncio.to_thread(processes, scratch) == []
    assert await asyncio.to_thread(os.listdir, scratch) == []


# --- what cannot be ---------------------------------------------------------------------------

DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})


def small(*fields: fs.Field) -> fs.FeatureView:
    return fs.FeatureView(
        "rates", entities=[DRIVER], fields=list(fields), timestamp_field="happened"
    )


RATE, CITY = fs.Field("rate", fs.Float64), fs.Field("city", fs.String)
ASKED = pa.table({"__row": [0], "__at": pa.array([NOW], fs.Timestamp.arrow), "driver_id": [1]})


@pytest.fixture
async def rates(tmp_path: Path) -> AsyncIterator[fs.FeatureStore]:
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'rates.db'}") as store:
        await store.apply(small(RATE))
        await store.push("rates", [{"driver_id": 1, "happened": NOW, "rate": 0.5}])
        yield store


async def of_rates(store: fs.FeatureStore) -> Request:
    async with store._context.reading(["rates"]) as (_, catalog):
        return resolve(["rates:*"], catalog, full_feature_names=False)


@pytest.mark.slow
@pytest.mark.distributed
async def test_cancelled_a_join_leaves_no_process_and_no_file(
    rates: fs.FeatureStore, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    await rates.export_history("rates", tmp_path / "copy")
    request, copies = await of_rates(rates), {"rates": tmp_path / "copy"}
    joining = asyncio.create_task(join_exports(copies, ASKED, request, tmp_path / "answer"))
    await becomes(lambda: any("raylet" in one for one in processes(scratch)))
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await becomes(lambda: not processes(scratch))
    assert await asyncio.to_thread(os.listdir, scratch) == []
    assert not await asyncio.to_thread((tmp_path / "answer").exists)


async def test_without_a_copy_the_error_says_how_to_make_one(
    rates: fs.FeatureStore, tmp_path: Path
):
    request, target = await of_rates(rates), tmp_path / "answer"
    for copies in ({}, {"rates": tmp_path / "nowhere"}):
        with pytest.raises(fs.NotFoundError, match=r"Run store\.export_history\('rates', path\)"):
            await join_exports(copies, ASKED, request, target)
    await rates.apply(small(RATE, CITY))
    await rates.export_history("rates", tmp_path / "copy")
    other = small(RATE, fs.Field("city", fs.Json))
    assert not await asyncio.to_thread(target.exists)
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'other.db'}") as another:
        await another.apply(other)
        with pytest.raises(fs.SourceError, match="other columns"):
            await join_exports({"rates": tmp_path / "copy"}, ASKED, await of_rates(another), target)


async def test_the_target_must_be_new_and_stays_as_it_is(rates: fs.FeatureStore, tmp_path: Path):
    await rates.export_history("rates", tmp_path / "copy")
    with pytest.raises(fs.SourceError, match="is not empty"):
        await join_exports({"rates": tmp_path / "copy"}, ASKED, await of_rates(rates), tmp_path)
    assert await asyncio.to_thread((tmp_path / "copy").exists)
    missing, target, request = tmp_path / "no.parquet", tmp_path / "answer", await of_rates(rates)
    with pytest.raises(fs.SourceError, match="entity rows"):
        await join_exports({"rates": tmp_path / "copy"}, missing, request, target)
    assert not await asyncio.to_thread(target.exists)


async def test_without_daft_the_error_names_the_extra(
    rates: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else real(name)
    )
    with pytest.raises(fs.DefinitionError, match=r"needs ray: install featurestore\[distributed\]"):
        await join_exports({}, ASKED, await of_rates(rates), tmp_path / "answer")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("RuntimeError: FileNotFoundError: part-000001-00.parquet", fs.SourceError),
        ("RaySystemError: ModuleNotFoundError: No module named 'featurestore'", fs.DefinitionError),
        ("RuntimeError: something else", fs.FeatureStoreError),
    ],
)
def test_what_failed_on_the_cluster_is_told_as_an_error_of_ours(text: str, kind: type):
    error = _failure(text)
    assert type(error) is kind
    assert text in str(error)
    assert json.dumps(str(error))
