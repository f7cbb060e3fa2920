"""The point-in-time rule over Arrow tables, held to the oracle."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle, Stored
from strategies import BASE, FAR_AHEAD, FEATURES, NOW, TTL, PointInTimeCase, point_in_time_cases

import featurestore as fs
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.training.latest import latest

KEY_TYPES = {
    "number": [fs.Int64],
    "text": [fs.String],
    "composite": [fs.String, fs.Date, fs.Bool],
}


def history_table(rows: list[Stored], kinds: list[fs.FeatureType]) -> pa.Table:
    columns: dict[str, Any] = {
        f"k{n}": pa.array([row.keys[n] for row in rows], kind.arrow) for n, kind in enumerate(kinds)
    }
    columns[EVENT] = pa.array([row.event for row in rows], fs.Timestamp.arrow)
    columns[CREATED] = pa.array([row.created for row in rows], fs.Timestamp.arrow)
    columns[ARRIVAL] = pa.array([row.arrival for row in rows], pa.int64())
    table = pa.table(columns)
    middle = len(rows) // 2
    return pa.concat_tables([table.slice(middle), table.slice(0, middle)])  # in no order


def known_at(oracle: Oracle, keys: tuple[Any, ...], when: dt.datetime) -> Stored | None:
    """The rule among rows that were created by then."""
    known = [row for row in oracle.rows if row.keys == keys and max(row.event, row.created) <= when]
    best = max(known, key=lambda row: row.rank, default=None)
    old = best is not None and oracle.ttl is not None and best.event < when - oracle.ttl
    return None if old else best


@settings(max_examples=300)
@given(case=point_in_time_cases(), known_by_created=st.booleans(), ahead=st.booleans())
def test_it_is_what_the_oracle_says(case: PointInTimeCase, known_by_created: bool, ahead: bool):
    oracle = Oracle(FEATURES, ttl=TTL if case.limited else None)
    for number, batch in enumerate(case.batches):
        # Loads among the times that are asked for, or after all of them.
        oracle.write(batch.rows, NOW if ahead else BASE + number * TTL)
    kinds = KEY_TYPES[case.kind]
    table = history_table(oracle.rows, kinds)
    names = [f"k{n}" for n in range(len(kinds))]
    questions = [*case.questions, *((keys, FAR_AHEAD + TTL) for keys, _ in case.questions[:2])]
    wanted = [
        pa.array([keys[n] for keys, _ in questions], kind.arrow) for n, kind in enumerate(kinds)
    ]
    at = pa.array([when for _, when in questions], fs.Timestamp.arrow)
    index = latest(table, names, wanted, at, ttl=oracle.ttl, known_by_created=known_by_created)
    found = table.column(ARRIVAL).take(index).to_pylist()
    rule = known_at if known_by_created else Oracle.stored_at
    expected = [rule(oracle, keys, when) for keys, when in questions]
    assert found == [None if row is None else row.arrival for row in expected]


@pytest.mark.parametrize("known_by_created", [False, True])
def test_a_row_that_came_late_does_not_hide_what_was_known(known_by_created: bool):
    hour = dt.timedelta(hours=1)
    rows = [
        Stored((1,), BASE, BASE, 1, 1, {}),
        Stored((1,), BASE + hour, BASE + 5 * hour, 2, 1, {}),  # of 1, known at 5
        Stored((1,), BASE + 2 * hour, BASE + 3 * hour, 3, 1, {}),  # of 2, known at 3
    ]
    at = pa.array([BASE + n * hour for n in range(7)], fs.Timestamp.arrow)
    ones = pa.array([1] * 7, pa.int64())
    table = history_table(rows, [fs.Int64])
    index = latest(table, ["k0"], [ones], at, known_by_created=known_by_created)
    plain, known = [1, 2, 3, 3, 3, 3, 3], [1, 1, 1, 3, 3, 3, 3]
    assert table.column(ARRIVAL).take(index).to_pylist() == (known if known_by_created else plain)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("asked", [0, 2])
def test_either_side_may_be_empty_and_a_view_may_have_no_keys(rows: int, asked: int):
    stored = [Stored((), BASE, BASE, number, 1, {}) for number in range(rows)]
    at = pa.array([BASE] * asked, fs.Timestamp.arrow)
    index = latest(history_table(stored, []), [], [], at)
    table = history_table(stored, [])
    assert table.column(ARRIVAL).take(index).to_pylist() == [rows - 1 if rows else None] * asked


def test_the_far_ends_of_time_are_times_like_others():
    first, last = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)
    table = history_table([Stored((1,), first, last, 1, 1, {})], [fs.Int64])
    at = pa.array([first, last], fs.Timestamp.arrow)
    index = latest(table, ["k0"], [pa.array([1, 1])], at, ttl=last - first)
    assert index.to_pylist() == [0, 0]
    index = latest(table, ["k0"], [pa.array([1, 1])], at, known_by_created=True)
    assert index.to_pylist() == [None, 0]
