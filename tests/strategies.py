"""Hypothesis strategies: rows, writes and questions that sit on the corners of the contract.

Times lie on a coarse grid with a microsecond to either side, so that ties and the exact bounds
of a ttl are common. Keys include what two databases might compare differently.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from oracle import Draft

BASE = dt.datetime(2024, 3, 31, 0, 30, tzinfo=dt.UTC)
"""An hour in which Europe's clocks change: local time anywhere on the way would show."""

UNIT = dt.timedelta(minutes=30)
TTL = 2 * UNIT
LONG_AGO = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
FAR_AHEAD = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)

WAYS = ("push rows", "push Arrow", "ingest Arrow", "ingest Parquet")
"""The four ways in; ``builders.write`` goes them."""

FEATURES = ("number", "note", "numbers")

_KEY_VALUES: dict[str, Sequence[tuple[Any, ...]]] = {
    "number": [(1,), (2,), (-1,), (2**53,), (2**53 + 1,)],
    "text": [("a",), ("A",), ("a ",), ("",), ("é",), ("e\u0301",), ("\U0001f695",)],
    "composite": [
        (name, day, flag)
        for name in ("jfk", "JFK")
        for day in (dt.date(1969, 12, 31), dt.date(9999, 12, 31))
        for flag in (False, True)
    ],
}
KEY_KINDS = tuple(_KEY_VALUES)

grid_times = st.builds(
    lambda step, around: BASE + step * UNIT + dt.timedelta(microseconds=around),
    st.integers(0, 6),
    st.sampled_from([0, 0, 0, -1, 1]),
)

created_times = st.none() | st.builds(
    lambda start, seconds: start + dt.timedelta(seconds=seconds),
    st.sampled_from([LONG_AGO, LONG_AGO, FAR_AHEAD]),
    st.integers(0, 2),
)

values = st.fixed_dictionaries(
    {
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "note": st.none() | st.sampled_from(["", "late", "\\N", "'; --", "Ω\u202e\U0010ffff"]),
        "numbers": st.none() | st.lists(st.none() | st.sampled_from([0.1, -1e300]), max_size=2),
    }
)


def keys_of(kind: str) -> st.SearchStrategy[tuple[Any, ...]]:
    """Join keys of a kind: few enough that rows meet."""
    return st.sampled_from(_KEY_VALUES[kind])


def drafts(kind: str, times: st.SearchStrategy[dt.datetime]) -> st.SearchStrategy[Draft]:
    """Rows of a kind, some of them with a created time."""
    return st.builds(Draft, keys_of(kind), times, values, created_times)


@dataclass(frozen=True)
class Batch:
    """One write: a way in and its rows."""

    way: str
    rows: tuple[Draft, ...]


def batches(kind: str, times: st.SearchStrategy[dt.datetime]) -> st.SearchStrategy[Batch]:
    rows = st.lists(drafts(kind, times), max_size=6).map(tuple)
    return st.builds(Batch, st.sampled_from(WAYS), rows)


@st.composite
def _with_null_parts(draw: st.DrawFn, kind: str) -> tuple[Any, ...]:
    keys = list(draw(keys_of(kind)))
    if draw(st.integers(0, 9)) == 0:
        keys[draw(st.integers(0, len(keys) - 1))] = None
    return tuple(keys)


@dataclass(frozen=True)
class PointInTimeCase:
    """A view's kind, what is written to it, and the entity rows to ask about."""

    kind: str
    limited: bool
    batches: tuple[Batch, ...]
    questions: tuple[tuple[tuple[Any, ...], dt.datetime], ...]


@st.composite
def point_in_time_cases(draw: st.DrawFn) -> PointInTimeCase:
    kind = draw(st.sampled_from(KEY_KINDS))
    question = st.tuples(_with_null_parts(kind), grid_times)
    return PointInTimeCase(
        kind,
        limited=draw(st.booleans()),
        batches=tuple(draw(st.lists(batches(kind, grid_times), max_size=4))),
        questions=tuple(draw(st.lists(question, max_size=12))),
    )


# --- online ---------------------------------------------------------------------------------

NOW = dt.datetime.now(dt.UTC)
ONLINE_TTL = dt.timedelta(hours=24)

online_times = st.builds(
    lambda hours, seconds: NOW + dt.timedelta(hours=hours, seconds=seconds),
    st.sampled_from([-72, -48, -25, -23, -2, -1, 0, 0, 48, 49]),
    st.sampled_from([0, 0, -1]),
)
"""Event times about now: past the ttl, within it, and far ahead; none so near to a bound that
the time a test run takes could move it across."""


@dataclass(frozen=True)
class Undo:
    """Undo one of the loads that are there; which one, counted round."""

    choice: int


@dataclass(frozen=True)
class Delete:
    """Erase one entity."""

    keys: tuple[Any, ...]


@dataclass(frozen=True)
class Materialize:
    """Set online to the rule: for all keys, or for those with an event in the window."""

    start: dt.datetime | None = None
    end: dt.datetime | None = None


@dataclass(frozen=True)
class Transaction:
    """Several steps as one, kept or rolled back."""

    steps: tuple[Batch | Delete, ...]
    commits: bool


Step = Batch | Undo | Delete | Materialize | Transaction


@dataclass(frozen=True)
class OnlineCase:
    """A view's kind and a sequence of steps."""

    kind: str
    limited: bool
    steps: tuple[Step, ...]


@st.composite
def online_cases(draw: st.DrawFn) -> OnlineCase:
    kind = draw(st.sampled_from(KEY_KINDS))
    batch = batches(kind, online_times)
    erase = st.builds(Delete, keys_of(kind))
    step = st.one_of(
        batch,
        batch,
        batch,
        st.builds(Undo, st.integers(0, 5)),
        erase,
        st.just(Materialize()),
        st.builds(Materialize, online_times, st.none() | online_times),
        st.builds(
            Transaction,
            st.lists(st.one_of(batch, batch, erase), max_size=3).map(tuple),
            st.booleans(),
        ),
    )
    return OnlineCase(kind, draw(st.booleans()), tuple(draw(st.lists(step, max_size=7))))
