"""Why a value of a training set is what it is: what each row of a key comes to by the rule.

Values without I/O. :mod:`featurestore.training.candidates` reads the rows.
"""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from featurestore.definitions import ttl_text
from featurestore.errors import DefinitionError
from featurestore.online.vectors import Status
from featurestore.training.rule import KnownBy

Rank = tuple[dt.datetime, dt.datetime, int]
"""What the rule takes the greatest of: event time, created time, arrival."""

MOST_CANDIDATES = 1_000
"""Rows that one explanation may hold; a repository's history has all of them."""

_COLUMNS = 6
"""Features that are printed as columns; views may have hundreds."""

_CELL = 40
"""Characters of a value that are printed."""


class Verdict(StrEnum):
    """What the point-in-time rule makes of one row."""

    WINNER = "WINNER"
    """Its values are the ones that a training set gives."""
    OLDER = "OLDER"
    """A newer row wins."""
    TIED_CREATED = "TIED_CREATED"
    """It has the winner's event time, and was created earlier."""
    TIED_ARRIVAL = "TIED_ARRIVAL"
    """It has the winner's event and created time, and arrived earlier."""
    AFTER = "AFTER"
    """Its event time is after the moment asked for."""
    PAST_TTL = "PAST_TTL"
    """Its event time is older than the view's ttl allows."""
    NOT_KNOWN_YET = "NOT_KNOWN_YET"
    """It was created after the moment asked for, and ``known_by`` is given."""


@dataclass(frozen=True)
class Candidate:
    """A stored row of the key that was asked for, and what the rule makes of it.

    ``created_timestamp`` is the source's, or the time of the load where that is null or not
    there. ``arrival`` is the row's place in the order of all rows. The row came with the load
    ``load_id`` (``kind`` and ``source`` as in the ledger, done at ``loaded_at``), as number
    ``position``, from 0, of the rows that this load *wrote*: rejected rows are not counted, so it
    is the number of the row in its file where the load has rejected none. ``values`` maps each
    feature to what the row holds. ``reason`` is the ``verdict`` in a sentence.
    """

    event_timestamp: dt.datetime
    created_timestamp: dt.datetime
    arrival: int
    load_id: int
    kind: str
    source: str
    position: int
    loaded_at: dt.datetime
    values: Mapping[str, Any]
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class OnlineAnswer:
    """What the online table has of a key, beside what the rule gives at that moment.

    ``status`` is ``PRESENT``, ``NOT_FOUND`` or ``OUTSIDE_MAX_AGE``; ``values`` maps each feature
    to what is read online (None but where it is present), ``event_timestamp`` is the row's.
    ``agrees`` says whether a training set gives the same row, and ``reason`` says why, or why not.
    """

    status: Status
    event_timestamp: dt.datetime | None
    values: Mapping[str, Any]
    agrees: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Why a view gives the values that it gives for ``keys`` at ``at``; print it to read it.

    ``values`` maps each feature to what a training set gives. ``candidates`` are the rows of the
    key that matter, newest first in the order of the rule; ``rows`` counts all that are stored
    of it. Rows count from ``oldest`` on, which is ``at - ttl``; None where that is without a
    bound. With ``known_by`` only rows that were created by ``at`` count. ``online`` is there where
    the question was about now, and the view can be read online.
    """

    view: str
    keys: Mapping[str, Any]
    at: dt.datetime
    ttl: dt.timedelta | None
    oldest: dt.datetime | None
    known_by: KnownBy | None
    values: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    rows: int
    online: OnlineAnswer | None = None

    @property
    def winner(self) -> Candidate | None:
        """The row whose values are given; None where no row counts."""
        for one in self.candidates:
            if one.verdict is Verdict.WINNER:
                return one
        return None

    @property
    def heading(self) -> str:
        """What was asked, in a line: view, keys, moment, and which rows count."""
        head = " ".join(filter(None, [self.view, keys_text(self.keys)]))
        head += f" at {moment_text(self.at)}, ttl {_ttl(self)}"
        if self.oldest is not None:
            head += f": event times from {moment_text(self.oldest)}"
        if self.known_by is not None:
            head += ", created by then"
        return head

    @property
    def reason(self) -> str:
        """Why, in words."""
        winner = self.winner
        return " ".join(_why_not(self) if winner is None else _why(self, winner))

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


# --- the rule -----------------------------------------------------------------------------


def check_question(known_by: object, limit: object) -> None:
    """Raise :class:`DefinitionError` for a question that cannot be."""
    if known_by not in (None, "created_timestamp"):
        raise DefinitionError(f"known_by={known_by!r}: it is 'created_timestamp' or None.")
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    if not (whole and 1 <= limit <= MOST_CANDIDATES):  # type: ignore[operator]
        raise DefinitionError(
            f"limit={limit!r}: it is a whole number from 1 to {MOST_CANDIDATES:,}; all rows of a "
            f"key are in repository(view).history()."
        )


def oldest_of(at: dt.datetime, ttl: dt.timedelta | None) -> dt.datetime | None:
    """The least event time that counts; None where that is before all times."""
    try:
        return None if ttl is None else at - ttl
    except OverflowError:
        return None


def judge(
    ranks: Sequence[Rank],
    at: dt.datetime,
    oldest: dt.datetime | None = None,
    known_by: KnownBy | None = None,
) -> list[Verdict]:
    """The verdict on each row of one key. ``ranks`` are newest first.

    Rows may be left out, but not the newest of those up to ``at`` (and created by then, with
    ``known_by``): that is the one that decides. Where it is past the ttl, so are all behind it,
    and nothing wins.
    """
    verdicts: list[Verdict] = []
    winner: Rank | None = None
    for rank in ranks:
        event, created, _ = rank
        if event > at:
            verdict = Verdict.AFTER
        elif known_by is not None and created > at:
            verdict = Verdict.NOT_KNOWN_YET
        elif oldest is not None and event < oldest:
            verdict = Verdict.PAST_TTL
        elif winner is None:
            verdict, winner = Verdict.WINNER, rank
        elif event < winner[0]:
            verdict = Verdict.OLDER
        elif created < winner[1]:
            verdict = Verdict.TIED_CREATED
        else:
            verdict = Verdict.TIED_ARRIVAL
        verdicts.append(verdict)
    return verdicts


def choose(verdicts: Sequence[Verdict], limit: int) -> list[int]:
    """The positions of the ``limit`` rows that tell most; ``verdicts`` are of rows newest first.

    The row that decides comes first, then those next behind it, ties among them. A third of the
    room goes to the rows next after the moment asked for, and a third to the newest of those not
    known then, which would win without ``known_by``; each has what the others leave.
    """
    places = range(len(verdicts))
    after = [place for place in places if verdicts[place] is Verdict.AFTER]
    late = [place for place in places if verdicts[place] is Verdict.NOT_KNOWN_YET]
    counting = sorted({*places} - {*after} - {*late})
    after.reverse()  # the nearest to the moment first
    share = (limit - 1) // 3
    kept = after[:share] + late[:share]
    kept += counting[: limit - len(kept)]
    kept += [*late[share:], *after[share:]][: limit - len(kept)]
    return sorted(kept)


def reason_of(
    verdict: Verdict, rank: Rank, winner: Rank | None, at: dt.datetime, oldest: dt.datetime | None
) -> str:
    """A verdict in a sentence. ``winner`` is the rank of the row that wins."""
    event, created, _ = rank
    if verdict is Verdict.AFTER:
        return f"Its event time is after the moment asked for, by {event - at}."
    if verdict is Verdict.NOT_KNOWN_YET:
        return f"It was created at {moment_text(created)}, after the moment asked for."
    if verdict is Verdict.PAST_TTL:
        assert oldest is not None
        return f"It is past the view's ttl: event times count from {moment_text(oldest)} on."
    if verdict is Verdict.WINNER:
        return "It is the newest of the rows that count."
    assert winner is not None
    if verdict is Verdict.OLDER:
        return f"A newer row wins, of {moment_text(winner[0])}."
    if verdict is Verdict.TIED_CREATED:
        return f"A row of the same event time was created later, at {moment_text(winner[1])}."
    return "A row of the same event time and created time arrived later."


# --- online -------------------------------------------------------------------------------


def compare_online(
    rank: Rank | None,
    values: Mapping[str, Any],
    winner: Candidate | None,
    *,
    at: dt.datetime,
    oldest: dt.datetime | None,
    known_by: KnownBy | None,
) -> OnlineAnswer:
    """What online gives beside the rule's row. ``rank`` and ``values`` are of the online row;
    without one the rank is None, and the values are all None."""
    status = Status.PRESENT
    if rank is None:
        status = Status.NOT_FOUND
    elif oldest is not None and rank[0] < oldest:
        status, values = Status.OUTSIDE_MAX_AGE, dict.fromkeys(values)
    given = rank if status is Status.PRESENT else None
    agrees = _same(given, values, winner)
    reason = _agreement(given, winner) if agrees else _difference(rank, winner, at, known_by)
    return OnlineAnswer(status, None if rank is None else rank[0], values, agrees, reason)


def _same(given: Rank | None, values: Mapping[str, Any], winner: Candidate | None) -> bool:
    if given is None or winner is None:
        return given is None and winner is None
    # NaN is not equal to itself, and may stand inside of an array.
    return given == _rank(winner) and repr(dict(values)) == repr(dict(winner.values))


def _agreement(given: Rank | None, winner: Candidate | None) -> str:
    return "It gives nothing either." if given is None else "It gives the same row."


def _difference(
    rank: Rank | None, winner: Candidate | None, at: dt.datetime, known_by: KnownBy | None
) -> str:
    if rank is not None and rank[0] > at:
        ahead = rank[0] - at
        return f"Its row is {ahead} ahead of the clock, which the store's clock_skew lets pass."
    if known_by is not None and rank is not None and rank[1] > at:
        return "Its row was created later than now, and online does not go by known_by."
    if winner is not None and (rank is None or rank < _rank(winner)):
        return (
            "The time of a newer row has come since it was written: materialize brings it online, "
            "and so does the next write to the key."
        )
    return "It is not what history says: materialize sets it to that."


def _rank(one: Candidate) -> Rank:
    return (one.event_timestamp, one.created_timestamp, one.arrival)


# --- words --------------------------------------------------------------------------------


def moment_text(moment: dt.datetime) -> str:
    """A time as people read it, with the Z that most tools write for UTC."""
    return moment.isoformat(" ").replace("+00:00", "Z")


def value_text(value: object) -> str:
    """A value on one line, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, dt.datetime):
        return moment_text(value)
    text = repr(value) if isinstance(value, str | bytes | list | dict) else str(value)
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def keys_text(keys: Mapping[str, Any]) -> str:
    """Join keys as the command line takes them; empty for a global view."""
    return " ".join(f"{name}={value_text(value)}" for name, value in keys.items())


def _why(told: Explanation, winner: Candidate) -> Iterator[str]:
    verdicts = {one.verdict for one in told.candidates}
    among = ""
    if Verdict.TIED_ARRIVAL in verdicts:
        among = "; of several with its event and created time it arrived last"
    elif Verdict.TIED_CREATED in verdicts:
        among = "; of several with its event time it was created last"
    event = moment_text(winner.event_timestamp)
    yield f"At {moment_text(told.at)} the newest row that counts is of {event}{among}."
    yield f"It came with load {winner.load_id} ({winner.kind}: {winner.source})."
    first = told.candidates.index(winner)
    if any(one.verdict is Verdict.NOT_KNOWN_YET for one in told.candidates[:first]):
        yield "What is newer was created after that moment."
    if None in winner.values.values():
        yield "A null in it is a null: older values do not show through."


def _why_not(told: Explanation) -> Iterator[str]:
    verdicts = {one.verdict: one for one in reversed(told.candidates)}
    at = moment_text(told.at)
    if Verdict.PAST_TTL in verdicts:
        newest = moment_text(verdicts[Verdict.PAST_TTL].event_timestamp)
        yield f"The newest row up to {at} is of {newest}, which is past the ttl of {_ttl(told)};"
        yield "older rows do not show through."
    elif Verdict.NOT_KNOWN_YET in verdicts:
        yield f"Of the rows up to {at} none was created by then."
    elif told.candidates:
        first = moment_text(told.candidates[-1].event_timestamp)
        yield f"There is no row up to {at}: the first is of {first}."
    else:
        yield f"View {told.view} has no row of {keys_text(told.keys) or 'any time'}."
    yield "So its features are null."


def _ttl(told: Explanation) -> str:
    return "none" if told.ttl is None else ttl_text(told.ttl)


def _lines(told: Explanation) -> Iterator[str]:
    yield told.heading
    if told.candidates:
        yield from _table(told)
    if told.rows > len(told.candidates):
        yield f"{len(told.candidates):,} of {told.rows:,} rows of the key are shown."
    if told.online is not None:
        yield f"online: {told.online.status}. {told.online.reason}"
    yield told.reason


def _table(told: Explanation) -> Iterator[str]:
    features = list(told.values)
    shown = features[:_COLUMNS]
    heads = ["verdict", "event time", "created", *shown, "load", "row", "source"]
    rows = [heads]
    for one in told.candidates:
        values = [value_text(one.values[name]) for name in shown]
        times = [moment_text(one.event_timestamp), moment_text(one.created_timestamp)]
        lineage = [str(one.load_id), str(one.position), one.source]
        rows.append([one.verdict.value, *times, *values, *lineage])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    if more := len(features) - len(shown):
        yield f"{more:,} more features are in the candidates' values."
