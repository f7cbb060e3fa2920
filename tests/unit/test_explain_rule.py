"""What the rule makes of each row of a key: no database, held to the oracle."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Draft, Oracle, Stored
from strategies import BASE, TTL, UNIT, grid_times

import featurestore as fs
from featurestore.cli.commands import explaining
from featurestore.training.explain import (
    MOST_CANDIDATES,
    Rank,
    check_question,
    choose,
    compare_online,
    judge,
    oldest_of,
    reason_of,
)

V = fs.Verdict
NOW = BASE + 10 * UNIT
KEY = ("a",)

created_times = st.none() | grid_times
"""On the same grid as the moments asked for, so that created time may lie to either side."""

drafts = st.builds(Draft, st.just(KEY), grid_times, st.just({}), created_times)


def stored(rows: Sequence[Draft]) -> Oracle:
    oracle = Oracle((), ttl=None)
    oracle.write(rows, NOW)
    return oracle


def newest_first(rows: Sequence[Stored]) -> list[Rank]:
    return sorted((row.rank for row in rows), reverse=True)


def winner_of(ranks: Sequence[Rank], verdicts: Sequence[fs.Verdict]) -> Rank | None:
    won = [rank for rank, verdict in zip(ranks, verdicts, strict=True) if verdict is V.WINNER]
    assert len(won) <= 1
    return won[0] if won else None


@given(
    rows=st.lists(drafts, max_size=12),
    at=grid_times,
    ttl=st.sampled_from([None, TTL, dt.timedelta(microseconds=1)]),
    known=st.booleans(),
    limit=st.integers(1, 14),
)
def test_the_winner_is_the_oracles_whatever_else_is_shown(
    rows: list[Draft], at: dt.datetime, ttl: dt.timedelta | None, known: bool, limit: int
):
    oracle = stored(rows)
    oracle.ttl = ttl
    ranks = newest_first(oracle.rows)
    known_by: Any = "created_timestamp" if known else None
    oldest = oldest_of(at, ttl)
    verdicts = judge(ranks, at, oldest, known_by)
    kept = choose(verdicts, limit)
    shown = [ranks[position] for position in kept]

    if known:
        oracle.rows = [row for row in oracle.rows if row.created <= at]
    expected = oracle.stored_at(KEY, at)
    wanted = None if expected is None else expected.rank
    assert winner_of(ranks, verdicts) == wanted
    assert len(kept) == min(limit, len(ranks))
    assert kept == sorted(set(kept))
    # Rows that are left out change nothing for those that are shown.
    assert judge(shown, at, oldest, known_by) == [verdicts[position] for position in kept]
    assert winner_of(shown, judge(shown, at, oldest, known_by)) == wanted


@given(
    rows=st.lists(drafts, max_size=12),
    at=grid_times,
    ttl=st.none() | st.just(TTL),
    known=st.booleans(),
)
def test_each_verdict_says_what_is_so(
    rows: list[Draft], at: dt.datetime, ttl: dt.timedelta | None, known: bool
):
    ranks = newest_first(stored(rows).rows)
    oldest = oldest_of(at, ttl)
    verdicts = judge(ranks, at, oldest, "created_timestamp" if known else None)
    winner = winner_of(ranks, verdicts)
    for rank, verdict in zip(ranks, verdicts, strict=True):
        event, created, arrival = rank
        assert (verdict is V.AFTER) == (event > at)
        late = known and event <= at < created
        assert (verdict is V.NOT_KNOWN_YET) == late
        if verdict is V.PAST_TTL:
            assert ttl is not None
            assert event < at - ttl
        if verdict in (V.OLDER, V.TIED_CREATED, V.TIED_ARRIVAL):
            assert winner is not None
            assert (verdict is V.OLDER) == (event < winner[0])
            assert (verdict is V.TIED_CREATED) == (event == winner[0] and created < winner[1])
            assert (verdict is V.TIED_ARRIVAL) == (rank[:2] == winner[:2] and arrival < winner[2])
        assert reason_of(verdict, rank, winner, at, oldest).endswith(".")


def test_both_bounds_of_a_ttl_count():
    tick = dt.timedelta(microseconds=1)
    for event, verdict in {
        BASE + tick: V.AFTER,
        BASE: V.WINNER,
        BASE - TTL: V.WINNER,
        BASE - TTL - tick: V.PAST_TTL,
    }.items():
        assert judge([(event, NOW, 1)], BASE, oldest_of(BASE, TTL)) == [verdict]


def test_a_ttl_that_reaches_before_all_times_has_no_bound():
    assert oldest_of(BASE, dt.timedelta(days=365 * 5_000)) is None
    assert oldest_of(BASE, None) is None
    assert oldest_of(BASE, TTL) == BASE - TTL


def test_what_is_shown_is_what_is_nearest_to_the_answer():
    verdicts = [V.AFTER] * 20 + [V.NOT_KNOWN_YET] * 20 + [V.WINNER] + [V.OLDER] * 20
    kept = choose(verdicts, 10)
    assert kept == [17, 18, 19, 20, 21, 22, 40, 41, 42, 43]
    assert choose(verdicts, 1) == [40]
    assert choose(verdicts[:40], 1) == [20]
    assert choose(verdicts[:20], 1) == [19]
    assert choose(verdicts[40:], 10) == list(range(10))
    assert choose(verdicts[:20], 10) == list(range(10, 20))
    assert choose(verdicts, 1_000) == list(range(61))
    assert choose([], 10) == []


@pytest.mark.parametrize("limit", [0, -1, MOST_CANDIDATES + 1, True, 2.5, None])
def test_a_limit_that_cannot_be_is_said_so(limit: Any):
    with pytest.raises(fs.DefinitionError, match="limit="):
        check_question(None, limit)


def test_known_by_is_created_timestamp_or_nothing():
    check_question("created_timestamp", MOST_CANDIDATES)
    with pytest.raises(fs.DefinitionError, match="known_by='made': it is 'created_timestamp'"):
        check_question("made", 10)


def test_the_command_line_has_the_librarys_bound():
    assert explaining.MOST_CANDIDATES == MOST_CANDIDATES


# --- online -----------------------------------------------------------------------------------


def candidate(rank: Rank, values: dict[str, Any], **changes: Any) -> fs.Candidate:
    options: dict[str, Any] = {
        "event_timestamp": rank[0],
        "created_timestamp": rank[1],
        "arrival": rank[2],
        "load_id": 3,
        "kind": "file",
        "source": "rates.parquet",
        "position": 4,
        "loaded_at": NOW,
        "values": values,
        "verdict": V.WINNER,
        "reason": "",
    }
    return fs.Candidate(**(options | changes))


def online(
    rank: Rank | None, values: dict[str, Any], winner: fs.Candidate | None, **changes: Any
) -> fs.OnlineAnswer:
    options: dict[str, Any] = {"at": BASE, "oldest": BASE - TTL, "known_by": None}
    return compare_online(rank, values, winner, **(options | changes))


def test_online_agrees_where_it_gives_the_rules_row_or_nothing_either():
    rank = (BASE, BASE, 7)
    same = online(rank, {"x": [float("nan")]}, candidate(rank, {"x": [float("nan")]}))
    assert (same.status, same.agrees, same.event_timestamp) == ("PRESENT", True, BASE)
    nothing = online(None, {"x": None}, None)
    assert (nothing.status, nothing.agrees, nothing.event_timestamp) == ("NOT_FOUND", True, None)
    old = (BASE - 2 * TTL, BASE, 7)
    past = online(old, {"x": 1}, None)
    assert (past.status, past.agrees, past.values) == ("OUTSIDE_MAX_AGE", True, {"x": None})


def test_online_that_differs_says_why():
    here, older = (BASE, BASE, 7), (BASE - UNIT, BASE, 6)
    ahead = (BASE + dt.timedelta(seconds=5), BASE, 8)
    winner = candidate(here, {"x": 1})
    assert "0:00:05 ahead of the clock" in online(ahead, {"x": 2}, winner).reason
    assert "has come since" in online(older, {"x": 2}, winner).reason
    assert "has come since" in online(None, {"x": None}, winner).reason
    changed = online(here, {"x": 2}, winner)
    assert (changed.agrees, changed.reason) == (
        False,
        "It is not what history says: materialize sets it to that.",
    )
    late = (BASE, NOW, 9)
    told = online(late, {"x": 2}, winner, known_by="created_timestamp")
    assert "does not go by known_by" in told.reason


# --- printing ---------------------------------------------------------------------------------


def told(*candidates: fs.Candidate, **changes: Any) -> fs.Explanation:
    options: dict[str, Any] = {
        "view": "rates",
        "keys": {"driver_id": 7},
        "at": BASE,
        "ttl": TTL,
        "oldest": BASE - TTL,
        "known_by": None,
        "values": {"x": None},
        "candidates": candidates,
        "rows": len(candidates),
    }
    return fs.Explanation(**(options | changes))


def test_printing_it_ends_with_the_reason_in_words():
    row = candidate((BASE, BASE, 7), {"x": "a\x1b[2J\n" + "b" * 100})
    text = str(told(row, rows=12))
    head, heads, line, shown, last = text.splitlines()
    assert head.startswith("rates driver_id=7 at 2024-03-31 00:30:00Z, ttl 1 h: event times")
    assert heads.split() == ["verdict", "event", "time", "created", "x", "load", "row", "source"]
    assert line.split()[0] == "WINNER"
    assert "\x1b" not in text
    assert "…" in line
    assert shown == "1 of 12 rows of the key are shown."
    assert last == told(row, rows=12).reason
    assert "It came with load 3 (file: rates.parquet)." in last
    assert told(row)._repr_html_().startswith("<pre>rates driver_id=7")


def test_many_features_are_counted_and_not_printed():
    values = {f"f{number}": number for number in range(100)}
    text = str(told(candidate((BASE, BASE, 7), values), values=values))
    assert max(map(len, text.splitlines())) < 200
    assert "94 more features" in text


def test_a_tie_that_arrival_decides_is_told():
    first = candidate((BASE, BASE, 8), {"x": None})
    tied = candidate((BASE, BASE, 7), {"x": 1}, verdict=V.TIED_ARRIVAL)
    reason = told(first, tied).reason
    assert "of several with its event and created time it arrived last" in reason
    assert reason.endswith("A null in it is a null: older values do not show through.")
