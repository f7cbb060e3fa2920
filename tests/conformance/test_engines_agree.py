"""Every engine, on every way through it, is held to the oracle: the rule, marks, known_by."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal as Number
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from builders import (
    driver_stats,
    entity_rows,
    hour,
    parquet,
    report,
    stats,
    table_of,
    weather,
    write,
)
from cases import Kind, kinds, next_example
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Draft, Oracle
from strategies import FEATURES, NOW, TTL, PointInTimeCase, point_in_time_cases
from ways import WAYS, asked, question

import featurestore as fs
from featurestore.training.memory import Memory
from featurestore.training.read import read_training_set

KINDS = kinds(TTL)

MAX_EXAMPLES = settings().max_examples * 2 // 5
"""Each example is read in 16 ways: 320 a run, and thousands by the thorough profile."""

BETWEEN = Memory(engine=256 << 20, history=4_096, results=64 << 20, threads=1)
"""Room for a few rows of history: larger ones go to the disk."""


@pytest.fixture
async def kinds_store(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([kind.view for kind in KINDS.values()])
    return store


def _expected(
    oracle: Oracle, questions: Sequence[tuple[Any, dt.datetime]], *, known: bool
) -> list[dict[str, Any]]:
    return [oracle.values_at(keys, when, known=known) for keys, when in questions]


def _leaks(oracle: Oracle, questions: Sequence[tuple[Any, dt.datetime]]) -> int:
    """Rows whose plain match was created after their time."""
    found = [(oracle.stored_at(keys, when), when) for keys, when in questions]
    return sum(row is not None and row.created > when for row, when in found)


@settings(max_examples=MAX_EXAMPLES)
@given(case=point_in_time_cases(), cut=st.integers(0, 4), known=st.booleans())
async def test_each_engine_gives_what_the_oracle_says_now_and_as_of_a_mark(
    kinds_store: fs.FeatureStore, tmp_path: Path, case: PointInTimeCase, cut: int, known: bool
):
    kind = KINDS[case.kind, case.limited]
    example = next_example()
    oracle = Oracle(FEATURES, ttl=TTL if case.limited else None)
    mark, then = await kinds_store.mark(), oracle.snapshot()
    for index, batch in enumerate(case.batches):
        rows = [kind.row(example, draft) for draft in batch.rows]
        await write(kinds_store, kind.view, rows, batch.way, tmp_path)
        oracle.write(batch.rows, NOW)
        if index == cut:
            mark, then = await kinds_store.mark(), oracle.snapshot()

    entities = kind.entity_table(example, case.questions)
    options: dict[str, Any] = {"known_by": "created_timestamp" if known else None}
    for way in WAYS:
        for as_of, truth in ((None, oracle), (mark, then)):
            found = await asked(
                kinds_store, entities, [f"{kind.view.name}:*"], way, as_of=as_of, **options
            )
            told = f"{way}, as of {as_of}, {options}"
            answers = found.to_arrow().select(FEATURES).to_pylist()
            assert answers == _expected(truth, case.questions, known=known), told
            assert found.to_arrow().select(entities.column_names).equals(entities), told
            assert found.leaked[kind.view.name] == _leaks(truth, case.questions), told
            again = await kinds_store.replay(found.manifest)
            assert again.to_arrow().equals(found.to_arrow()), told


def _drafts_of(case: PointInTimeCase) -> Iterator[Draft]:
    for batch in case.batches:
        yield from batch.rows


@settings(max_examples=MAX_EXAMPLES)
@given(case=point_in_time_cases())
async def test_a_source_joined_unloaded_gives_what_loading_it_would(
    kinds_store: fs.FeatureStore, tmp_path: Path, case: PointInTimeCase
):
    kind: Kind = KINDS[case.kind, case.limited]
    example = next_example()
    oracle = Oracle(FEATURES, ttl=TTL if case.limited else None)
    drafts = list(_drafts_of(case))
    oracle.write(drafts, NOW)
    rows = [kind.row(example, draft) for draft in drafts]
    folder = tmp_path / f"source-{example}"
    half = len(rows) // 2
    parquet(folder, kind.view, rows[:half], "1.parquet")
    parquet(folder, kind.view, rows[half:], "2.parquet")
    view = _with_source(kind.view, folder)
    await kinds_store.apply([view])

    entities = kind.entity_table(example, case.questions)
    for way in ("duckdb in memory", "duckdb on disk"):
        found = await asked(kinds_store, entities, [f"{view.name}:*"], way, read_from="source")
        answers = found.to_arrow().select(FEATURES).to_pylist()
        assert answers == _expected(oracle, case.questions, known=False), way
    assert await kinds_store.repository(view.name).count() == 0


def _with_source(view: fs.FeatureView, folder: Path) -> fs.FeatureView:
    return replace(view, source=fs.ParquetSource(str(folder)))


# --- all types --------------------------------------------------------------------------------

FIRST = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
LAST = dt.datetime.max.replace(tzinfo=dt.UTC)
SAMPLES: dict[str, tuple[fs.FeatureType, list[Any]]] = {
    "truth": (fs.Bool, [True, False, None]),
    "small": (fs.Int32, [-(2**31), 2**31 - 1, None]),
    "large": (fs.Int64, [2**53 + 1, -(2**63), None]),
    "half": (fs.Float32, [0.5, float("-inf"), None]),
    "whole": (fs.Float64, [5e-324, float("inf"), None]),
    "words": (fs.String, ["", "Ω\u202e\U0010ffff", None]),
    "raw": (fs.Bytes, [b"", b"\x00\xff", None]),
    "moment": (fs.Timestamp, [FIRST, LAST, None]),
    "day": (fs.Date, [dt.date(1, 1, 1), dt.date(9999, 12, 31), None]),
    "price": (fs.Decimal(38, 10), [Number("1234567890123456789012345678.0123456789"),
                                   Number("-0.0000000001"), None]),
    "document": (fs.Json, [{"a": [1, None, "é"]}, "text", None]),
    "numbers": (fs.Array(fs.Float64), [[], [1.5, None, float("inf")], None]),
    "names": (fs.Array(fs.String), [[], ["", None, "b"], None]),
    "moments": (fs.Array(fs.Timestamp), [[], [hour(1), None], None]),
    "days": (fs.Array(fs.Date), [[], [dt.date(9999, 12, 31), None], None]),
    "prices": (fs.Array(fs.Decimal(9, 2)), [[], [Number("1.25"), None], None]),
    "truths": (fs.Array(fs.Bool), [[], [True, None], None]),
    "raws": (fs.Array(fs.Bytes), [[], [b"\x00", None], None]),
    "smalls": (fs.Array(fs.Int32), [[], [1, None], None]),
}  # fmt: skip


async def test_values_of_all_types_come_through_every_engine_as_they_went_in(
    store: fs.FeatureStore,
):
    key = fs.Entity("key", join_keys={"id": fs.Int64})
    view = fs.FeatureView(
        "all_types",
        entities=[key],
        fields=[fs.Field(name, kind) for name, (kind, _) in SAMPLES.items()],
        timestamp_field="at",
    )
    await store.apply([view])
    rows = [
        {
            "id": index,
            "at": hour(0),
            **{name: values[index] for name, (_, values) in SAMPLES.items()},
        }
        for index in range(3)
    ]
    await store.push(view, rows)
    entities = pa.table({"id": [2, 0, 1, 7], "event_timestamp": [hour(1)] * 4})
    wanted = {}
    for way in WAYS:
        found = (await asked(store, entities, [view], way)).to_arrow()
        for name, (kind, _) in SAMPLES.items():
            assert found.schema.field(name).type == kind.arrow, (way, name)
        wanted[way] = found.drop_columns(["document"]).to_pylist()
        assert wanted[way] == wanted["sql"], way
    for position, index in enumerate([2, 0, 1]):
        for name, (kind, values) in SAMPLES.items():
            if kind != fs.Json:
                assert wanted["sql"][position][name] == values[index], name


KEY_SAMPLES: dict[str, tuple[fs.FeatureType, list[Any]]] = {
    "truth": (fs.Bool, [True, False]),
    "small": (fs.Int32, [-1, 2]),
    "large": (fs.Int64, [2**53 + 1, 2**53]),
    "words": (fs.String, ["it's \\ %s", "é"]),
    "raw": (fs.Bytes, [b"\x00", b"\xff"]),
    "day": (fs.Date, [dt.date(9999, 12, 31), dt.date(1969, 12, 31)]),
    "moment": (fs.Timestamp, [hour(0), hour(0) + dt.timedelta(microseconds=1)]),
    "price": (fs.Decimal(20, 4), [Number("1.0000"), Number("1.0001")]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEY_SAMPLES)
async def test_keys_of_every_type_are_joined_exactly(store: fs.FeatureStore, name: str):
    kind, values = KEY_SAMPLES[name]
    view = fs.FeatureView(
        "keyed",
        entities=[fs.Entity("key", join_keys={"id": kind})],
        fields=[fs.Field("number", fs.Int64)],
        timestamp_field="at",
    )
    await store.apply([view])
    rows = [{"id": value, "at": hour(0), "number": n} for n, value in enumerate(values)]
    await store.push(view, rows)
    ids = pa.array([values[1], None, values[0]], kind.arrow)
    entities = pa.table({"id": ids, "event_timestamp": [hour(1)] * 3})
    for way in WAYS:
        found = (await asked(store, entities, [view], way)).to_arrow()
        assert found["number"].to_pylist() == [1, None, 0], way


# --- several views ----------------------------------------------------------------------------


async def test_one_view_twice_and_a_global_one_in_one_set(store: fs.FeatureStore):
    calendar = fs.FeatureView(
        "calendar",
        entities=[],
        fields=[fs.Field("holiday", fs.Bool)],
        timestamp_field="at",
    )
    view = driver_stats(ttl=dt.timedelta(hours=2))
    await store.apply([view, calendar])
    await store.push(view, [stats(1, hour(0), 0.1, 10), stats(2, hour(1), 0.2, 20)])
    await store.push(
        calendar, [{"at": hour(0), "holiday": True}, {"at": hour(2), "holiday": False}]
    )
    other = view[["trips"]].with_name("other").with_join_key_map({"driver_id": "other_id"})
    entities = entity_rows((1, hour(1)), (2, hour(3)), (1, hour(3)), (None, hour(-1)))
    entities = entities.append_column("other_id", pa.array([2, 1, None, 1]))
    features = [view[["conv_rate"]], other, calendar]
    for way in WAYS:
        found = await asked(store, entities, features, way)
        assert found.to_arrow().select(["conv_rate", "trips", "holiday"]).to_pylist() == [
            {"conv_rate": 0.1, "trips": 20, "holiday": True},
            {"conv_rate": 0.2, "trips": None, "holiday": False},
            {"conv_rate": None, "trips": None, "holiday": False},
            {"conv_rate": None, "trips": None, "holiday": None},
        ], way
        assert found.match_rate == {"driver_stats": 0.5, "other": 0.25, "calendar": 0.75}, way
        assert dict(found.features) == {
            "conv_rate": "driver_stats",
            "trips": "other",
            "holiday": "calendar",
        }


async def test_many_rows_come_in_their_order_by_every_engine(store: fs.FeatureStore):
    view = driver_stats()
    await store.apply([view])
    await store.ingest(view, table_of(view, [stats(n, hour(0), n / 7, n) for n in range(5_000)]))
    count = 150_000
    spread = pc.multiply(pa.arange(0, count), 7919)
    ids = pc.subtract(spread, pc.multiply(pc.divide(spread, 6_000), 6_000))
    times = pa.repeat(pa.scalar(hour(1), fs.Timestamp.arrow), count)
    entities = pa.table({"driver_id": ids, "event_timestamp": times})
    first = None
    for way in WAYS:
        table = (await asked(store, entities, [view], way)).to_arrow()
        assert table["driver_id"].equals(pa.chunked_array([ids])), way
        first = table if first is None else first
        assert table.equals(first), way
    assert first["trips"].slice(0, 3).to_pylist() == [0, 1919, 3838]
    assert first["trips"].null_count == pc.sum(pc.greater_equal(ids, 5_000)).as_py()


async def test_empty_sides(store: fs.FeatureStore):
    view = driver_stats()
    await store.apply([view])
    some = entity_rows((1, hour(1)), (None, hour(1)))
    for way in WAYS:
        found = await asked(store, some, [view], way)
        assert found.to_arrow()["trips"].to_pylist() == [None, None]
        assert found.match_rate == {"driver_stats": 0.0}
        none = await asked(store, some.slice(0, 0), [view], way)
        assert none.to_arrow().column_names == [
            "driver_id",
            "event_timestamp",
            "conv_rate",
            "trips",
        ]
        assert len(none) == 0


@pytest.mark.parametrize("large_first", [False, True])
async def test_a_view_in_memory_and_one_on_disk_in_one_set(
    store: fs.FeatureStore, large_first: bool
):
    large, small = driver_stats(), weather()
    await store.apply([large, small])
    rows = [stats(7, hour(n / 1_000), n / 4, n) for n in range(500)]
    await store.ingest(large, table_of(large, rows))
    await store.push(small, [report("jfk", hour(0), 3.5)])
    entities = entity_rows((7, hour(1)), (8, hour(1)))
    entities = entities.append_column("airport", pa.array(["jfk", "lax"]))
    features = [large[["trips"]], small] if large_first else [small, large[["trips"]]]
    asking = replace(question(features, "duckdb in memory"), memory=BETWEEN)
    found = await read_training_set(store._context, entities, asking)
    assert found.to_arrow().select(["trips", "temp"]).to_pylist() == [
        {"trips": 499, "temp": 3.5},
        {"trips": None, "temp": None},
    ]
