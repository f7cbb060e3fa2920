"""What reads and pushes answer with: as JSON, as Arrow, and back."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa

from featurestore.errors import DefinitionError
from featurestore.online.vectors import OnlineFeatures, Status
from featurestore.reports import PushReport
from featurestore.training.training_set import TrainingSet
from featurestore.types import FeatureType, Json, Timestamp, load_json
from featurestore.wire.definitions import decode_types, encode_types
from featurestore.wire.errors import NotOurs
from featurestore.wire.values import Convert, decoder, encode_untyped, encoder

T = TypeVar("T")

_STATUSES = {status.value: status for status in Status}
_STATUS = "__status__"
_EVENT_TIME = "__event_time__"
_ONLINE = b"featurestore.online"
_MATCH_RATE = b"featurestore.match_rate"

_UNREADABLE = (TypeError, KeyError, ValueError, IndexError, AttributeError, DefinitionError)
"""What comes of reading something else; a DefinitionError of a type that is none."""


def _ours(what: str, read: Callable[[], T]) -> T:
    """What ``read`` makes of an answer; :class:`NotOurs` where that has another shape."""
    try:
        return read()
    except (*_UNREADABLE, pa.ArrowException) as bad:
        raise NotOurs(f"no answer of featurestore to {what}: {bad!r}") from bad


# --- online -------------------------------------------------------------------------------


def encode_online(answer: OnlineFeatures) -> dict[str, Any]:
    """Vectors as ``keys`` and ``features`` (name → type), ``rows`` (per entity row its keys, then
    its features), ``statuses`` (per row, in the order of the features) and ``event_timestamps``
    (view → one per row)."""
    types = [*answer.key_types.values(), *answer.feature_types.values()]
    rows = _rows([list(row.values()) for row in answer.to_dicts()], [encoder(t) for t in types])
    times = answer.event_timestamps
    to_text = encoder(Timestamp) or str
    return {
        "keys": encode_types(answer.key_types),
        "features": encode_types(answer.feature_types),
        "rows": rows,
        "statuses": [[status.value for status in row.values()] for row in answer.statuses],
        "event_timestamps": {
            view: [None if (time := row[view]) is None else to_text(time) for row in times]
            for view in (times[0] if times else ())
        },
    }


def _rows(rows: list[list[Any]], converts: Sequence[Convert | None]) -> list[list[Any]]:
    """``rows`` with the columns converted that need it, in place."""
    for at, convert in enumerate(converts):
        if convert is not None:
            for row in rows:
                if row[at] is not None:
                    row[at] = convert(row[at])
    return rows


def decode_online(data: Any) -> OnlineFeatures:
    """The vectors that :func:`encode_online` was given; :class:`NotOurs` for anything else."""
    return _ours("online features", lambda: _decode_online(data))


def _decode_online(data: Any) -> OnlineFeatures:
    keys, features = decode_types(data["keys"]), decode_types(data["features"])
    rows = _rows(data["rows"], [decoder(kind) for kind in (*keys.values(), *features.values())])
    to_time = decoder(Timestamp) or str
    times = {
        view: [None if time is None else to_time(time) for time in column]
        for view, column in data["event_timestamps"].items()
    }
    split = len(keys)
    columns = [data["statuses"], *times.values()]
    if any(len(column) != len(rows) for column in columns):
        raise ValueError("its parts are of different lengths")
    return OnlineFeatures(
        keys,
        features,
        [dict(zip(keys, row[:split], strict=True)) for row in rows],
        [dict(zip(features, row[split:], strict=True)) for row in rows],
        [
            dict(zip(features, [_STATUSES[name] for name in row], strict=True))
            for row in data["statuses"]
        ],
        _by_row(times, len(rows)),
    )


def _by_row(columns: Mapping[str, Sequence[Any]], rows: int) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(rows)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def online_table(answer: OnlineFeatures) -> pa.Table:
    """``answer.to_arrow()`` with the columns ``__status__<feature>`` (dictionary of text) and
    ``__event_time__<view>``; the types are in the schema's metadata. For a thread."""
    table = answer.to_arrow()
    statuses, times = answer.statuses, answer.event_timestamps
    views = list(times[0]) if times else []
    names = list(_STATUSES)
    numbers = {status: number for number, status in enumerate(_STATUSES.values())}
    for feature in answer.feature_types:
        indices = pa.array([numbers[row[feature]] for row in statuses], pa.int8())
        coded = pa.DictionaryArray.from_arrays(indices, names)
        table = table.append_column(f"{_STATUS}{feature}", coded)
    for view in views:
        column = pa.array([row[view] for row in times], Timestamp.arrow)
        table = table.append_column(f"{_EVENT_TIME}{view}", column)
    about = {
        "keys": encode_types(answer.key_types),
        "features": encode_types(answer.feature_types),
        "views": views,
    }
    return table.replace_schema_metadata({_ONLINE: json.dumps(about).encode()})


def online_from_table(table: pa.Table) -> OnlineFeatures:
    """The vectors that :func:`online_table` was given; :class:`NotOurs` for anything else."""
    return _ours("online features", lambda: ArrowFeatures(table))


class ArrowFeatures(OnlineFeatures):
    """:class:`OnlineFeatures` over an Arrow table: rows are made of it when they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        about = json.loads((table.schema.metadata or {})[_ONLINE])
        self.key_types = decode_types(about["keys"])
        self.feature_types = decode_types(about["features"])
        self._views: list[str] = about["views"]
        self._table = table
        expected = [
            *((name, kind.arrow) for name, kind in self.key_types.items()),
            *((name, kind.arrow) for name, kind in self.feature_types.items()),
            *((f"{_STATUS}{name}", pa.dictionary(pa.int8(), pa.string())) for name in self._names),
            *((f"{_EVENT_TIME}{view}", Timestamp.arrow) for view in self._views),
        ]
        if [(field.name, field.type) for field in table.schema] != expected:
            raise ValueError(f"its columns are {table.schema.names}")

    @property
    def _names(self) -> list[str]:
        return list(self.feature_types)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def _columns(self, types: Mapping[str, FeatureType]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for name, kind in types.items():
            values = self._table.column(name).to_pylist()
            if kind == Json:
                values = [None if value is None else load_json(value) for value in values]
            columns[name] = values
        return columns

    @cached_property
    def keys(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        return _by_row(self._columns(self.key_types), len(self))

    @cached_property
    def values(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        return _by_row(self._columns(self.feature_types), len(self))

    @cached_property
    def statuses(self) -> Sequence[dict[str, Status]]:  # type: ignore[override]
        columns = {}
        for name in self._names:
            coded = self._table.column(f"{_STATUS}{name}").to_pylist()
            columns[name] = [_STATUSES[one] for one in coded]
        return _by_row(columns, len(self))

    @cached_property
    def event_timestamps(self) -> Sequence[dict[str, dt.datetime | None]]:  # type: ignore[override]
        times = {
            view: self._table.column(f"{_EVENT_TIME}{view}").to_pylist() for view in self._views
        }
        return _by_row(times, len(self))

    def to_arrow(self) -> pa.Table:
        names = [*self.key_types, *self.feature_types]
        return self._table.select(names).replace_schema_metadata(None)


# --- training -----------------------------------------------------------------------------


def training_table(training: TrainingSet) -> pa.Table:
    """The table of a training set with its match rates in the schema's metadata."""
    rates = json.dumps(dict(training.match_rate)).encode()
    return training.table.replace_schema_metadata(
        {**(training.table.schema.metadata or {}), _MATCH_RATE: rates}
    )


def training_from_table(table: pa.Table) -> TrainingSet:
    """The training set that :func:`training_table` was given; :class:`NotOurs` for others."""

    def read() -> TrainingSet:
        metadata = dict(table.schema.metadata or {})
        rates = json.loads(metadata.pop(_MATCH_RATE))
        return TrainingSet(
            table.replace_schema_metadata(metadata or None),
            {str(view): float(rate) for view, rate in rates.items()},
        )

    return _ours("historical features", read)


def encode_training(
    training: TrainingSet, types: Mapping[str, FeatureType] | None = None
) -> dict[str, Any]:
    """A training set as ``columns`` (name → type), ``rows`` and ``match_rate``. For a thread.

    ``types`` are those of the features and keys; other columns of the entity table are named
    after their Arrow type, and their values written by the Python type they have.
    """
    types, table = types or {}, training.table
    columns: dict[str, str] = {}
    values: list[list[Any]] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = types.get(name)
        if kind is not None and kind.arrow == column.type:
            columns[name] = kind.name
            convert = load_json if kind == Json else encoder(kind)
        else:
            columns[name], convert = str(column.type), encode_untyped
        values.append(
            [
                value if value is None or convert is None else convert(value)
                for value in column.to_pylist()
            ]
        )
    rows = [list(row) for row in zip(*values, strict=True)] if values else []
    return {"columns": columns, "rows": rows, "match_rate": dict(training.match_rate)}


# --- pushes -------------------------------------------------------------------------------


def encode_push(report: PushReport) -> dict[str, Any]:
    """What a push did."""
    return {
        "view": report.view,
        "load_id": report.load_id,
        "rows_written": report.rows_written,
        "rows_future": report.rows_future,
    }


def decode_push(data: Any) -> PushReport:
    """The report that :func:`encode_push` was given; :class:`NotOurs` for anything else."""
    return _ours(
        "a push",
        lambda: PushReport(
            str(data["view"]),
            int(data["load_id"]),
            int(data["rows_written"]),
            int(data["rows_future"]),
        ),
    )
