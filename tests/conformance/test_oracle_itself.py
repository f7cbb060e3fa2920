"""The oracle is held to examples worked out by hand from section 3 of the contract."""

from __future__ import annotations

import datetime as dt

import pytest
from oracle import Draft, Oracle

T = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
NOW = T + 100 * HOUR


def draft(key: int, hours: float, value: int | None, created: float | None = None) -> Draft:
    return Draft(
        (key,), T + hours * HOUR, {"x": value}, None if created is None else T + created * HOUR
    )


def oracle_with(*drafts: Draft, **options) -> Oracle:
    oracle = Oracle(["x"], **options)
    oracle.write(drafts, NOW)
    return oracle


def x(oracle: Oracle, hours: float, key: int | None = 1) -> int | None:
    return oracle.values_at((key,), T + hours * HOUR)["x"]


def test_the_newest_row_up_to_the_time_counts_and_the_bound_is_inclusive():
    oracle = oracle_with(draft(1, 2, 20), draft(1, 1, 10))
    assert [x(oracle, hours) for hours in (0.5, 1, 1.5, 2, 3)] == [None, 10, 10, 20, 20]


def test_a_value_of_exactly_the_ttl_counts():
    oracle = oracle_with(draft(1, 0, 7), ttl=HOUR)
    assert x(oracle, 1) == 7
    assert oracle.values_at((1,), T + HOUR + dt.timedelta(microseconds=1)) == {"x": None}


def test_where_the_newest_row_is_past_its_ttl_nothing_matches():
    oracle = oracle_with(draft(1, 0, 7), draft(1, 1, 8), ttl=HOUR)
    assert x(oracle, 2.5) is None


def test_ties_go_to_the_later_created_then_to_the_later_arrival():
    assert x(oracle_with(draft(1, 0, 1, created=5), draft(1, 0, 2, created=4)), 1) == 1
    assert x(oracle_with(draft(1, 0, 1, created=4), draft(1, 0, 2, created=4)), 1) == 2
    assert x(oracle_with(draft(1, 0, 1), draft(1, 0, 2)), 1) == 2


def test_a_null_created_time_is_the_time_of_the_load():
    assert x(oracle_with(draft(1, 0, 1), draft(1, 0, 2, created=99)), 1) == 1
    assert x(oracle_with(draft(1, 0, 1), draft(1, 0, 2, created=101)), 1) == 2


def test_a_null_in_the_newest_row_is_null():
    assert x(oracle_with(draft(1, 0, 1), draft(1, 1, None)), 2) is None


def test_a_null_key_matches_nothing():
    assert x(oracle_with(draft(1, 0, 1)), 1, key=None) is None


def test_online_is_the_rule_at_now_with_statuses():
    oracle = oracle_with(draft(1, 99.5, 5), draft(2, 99.5, None), draft(3, 1, 5), ttl=HOUR)
    answers = {key: oracle.online((key,), NOW) for key in (1, 2, 3, 4)}
    assert {key: (one.values["x"], one.statuses["x"]) for key, one in answers.items()} == {
        1: (5, "PRESENT"),
        2: (None, "NULL_VALUE"),
        3: (None, "OUTSIDE_MAX_AGE"),
        4: (None, "NOT_FOUND"),
    }
    assert answers[3].event == T + HOUR
    assert answers[4].event is None


def test_late_data_never_replaces_newer():
    oracle = oracle_with(draft(1, 5, 50))
    oracle.write([draft(1, 4, 40)], NOW)
    assert oracle.online((1,), NOW).values == {"x": 50}


@pytest.mark.parametrize(("seconds", "expected"), [(60, 2), (61, 1)])
def test_a_row_within_the_clock_skew_counts_as_now(seconds: int, expected: int):
    oracle = oracle_with(draft(1, 0, 1))
    oracle.write([Draft((1,), NOW + dt.timedelta(seconds=seconds), {"x": 2})], NOW)
    assert oracle.online((1,), NOW).values == {"x": expected}


def test_a_future_row_comes_online_with_a_write_to_its_key_or_a_materialize_after_its_time():
    for act in ("nothing", "write", "materialize", "materialize elsewhere"):
        oracle = oracle_with(draft(1, 0, 1), draft(1, 110, 2))
        later = T + 111 * HOUR
        if act == "write":
            oracle.write([draft(1, -5, 3)], later)
        elif act == "materialize":
            oracle.materialize(later)
        elif act == "materialize elsewhere":
            oracle.materialize(later, start=T + 50 * HOUR, end=T + 60 * HOUR)
        seen = oracle.online((1,), later).values["x"]
        assert seen == (2 if act in ("write", "materialize") else 1), act


def test_undo_and_delete_take_rows_out_of_history_and_online():
    oracle = oracle_with(draft(1, 0, 1), draft(2, 0, 1))
    second = oracle.write([draft(1, 1, 2)], NOW)
    assert oracle.undo(second, NOW) == 1
    assert oracle.online((1,), NOW).values == {"x": 1}
    oracle.delete((1,))
    assert oracle.online((1,), NOW).statuses == {"x": "NOT_FOUND"}
    assert oracle.history((1,)) == []
    assert [row.values["x"] for row in oracle.history((2,))] == [1]


def test_a_snapshot_is_left_alone_by_later_writes():
    oracle = oracle_with(draft(1, 0, 1))
    before = oracle.snapshot()
    oracle.write([draft(1, 1, 2)], NOW)
    assert before.online((1,), NOW).values == {"x": 1}
    assert oracle.online((1,), NOW).values == {"x": 2}
