"""What a Parquet file is about, guessed from the names and types of its columns.

The guess is a value, :class:`Guess`; ``template.py`` writes it out.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore import types
from featurestore.cli.columns import Column, columns_of, may_be, name_for, read_footer
from featurestore.definitions import check_name
from featurestore.errors import DefinitionError, NotFoundError

TIMES = (
    *("event_timestamp", "event_time", "event_ts", "event_date", "event_datetime", "event_at"),
    *("timestamp", "time_stamp", "ts", "time", "datetime", "date_time", "date", "at"),
    *("observed_at", "occurred_at", "known_at", "measured_at", "valid_from", "updated_at"),
)
"""Names of event times, the surest first."""

CREATED = (
    *("created_timestamp", "created_at", "created", "created_time", "created_ts", "creation_time"),
    *("created_on", "ingested_at", "ingestion_time", "inserted_at", "loaded_at", "load_time"),
)
"""Names of the time at which a row was written."""

KEYS = (
    re.compile(r"(.+_)?(id|key|uuid|guid)"),
    re.compile(r".+_(code|no|nr|num|number)|code"),
)
"""Names of join keys, the surer ones first."""


@dataclass(frozen=True)
class Guess:
    """What :func:`guess` made of a file."""

    source: str
    rows: int | None
    view: str
    entity: str
    keys: tuple[Column, ...]
    time: Column
    created: Column | None
    features: tuple[Column, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    other_keys: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        created = () if self.created is None else (self.created,)
        return (*self.keys, self.time, *created, *self.features)

    @property
    def field_mapping(self) -> dict[str, str]:
        return {one.source: one.name for one in self.columns if one.source != one.name}

    def words(self) -> list[str]:
        """The guess, line by line, for the person who has to check it."""
        keys = ", ".join(f"{_both(one)} ({one.type})" for one in self.keys)
        lines = [
            f"view        {self.view}",
            f"entity      {self.entity}, by {keys}",
            f"event time  {_both(self.time)}",
        ]
        if self.other_keys:
            lines[1] += f"; --key could also name {', '.join(self.other_keys)}"
        if self.created is not None:
            lines.append(f"created     {_both(self.created)}")
        kinds = Counter(str(one.type) for one in self.features)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(f"features    {len(self.features)}: {counted}")
        if self.field_mapping:
            lines.append(f"renamed     {len(self.field_mapping)}, by field_mapping")
        return lines

    def warnings(self) -> list[str]:
        said = [f"Column {name!r} is left out: {why}." for name, why in self.skipped.items()]
        if self.time.type == types.Date:
            said.append(
                f"{self.time.name} is a date and counts from its first moment. If a row is known "
                f"only when its day is over, training sets would see the future: shift it."
            )
        return said

    def document(self) -> dict[str, Any]:
        """The guess as JSON can hold it."""
        return {
            "source": self.source,
            "rows": self.rows,
            "view": self.view,
            "entity": self.entity,
            "join_keys": {one.name: str(one.type) for one in self.keys},
            "timestamp_field": self.time.name,
            "created_timestamp_field": None if self.created is None else self.created.name,
            "features": {one.name: str(one.type) for one in self.features},
            "field_mapping": self.field_mapping,
            "skipped": self.skipped,
        }


def _both(column: Column) -> str:
    if column.name == column.source:
        return column.name
    return f"{column.name} ({column.source!r} in the file)"


def guess(
    source: str,
    *,
    view: str | None = None,
    entity: str | None = None,
    keys: Sequence[str] = (),
    time: str | None = None,
) -> Guess:
    """What the file (or a folder's or glob's first file) ``source`` is about.

    ``keys`` and ``time`` name columns of the file. Raises :class:`SourceError` for a file that
    cannot be read, :class:`DefinitionError` where nothing can be guessed and the options say no
    more, :class:`NotFoundError` for an option that names no column.
    """
    schema, rows = read_footer(source)
    columns, skipped = columns_of(schema)
    event = _event_time(source, columns, time, schema)
    created = _created_time(columns, event)
    rest = [one for one in columns if one not in (event, created)]
    candidates = [one for one in rest if types.is_key_type(one.type)]
    if keys:
        chosen = [_named(source, "key", key, rest) for key in dict.fromkeys(keys)]
        _check_keys(source, chosen)
        others: list[Column] = []
    else:
        chosen, others = _guess_key(source, candidates)
    features = tuple(one for one in rest if one not in chosen)
    if not features:
        raise DefinitionError(
            f"{source} has no column left to be a feature: all of {[c.source for c in columns]} "
            f"are keys and times."
        )
    stem = name_for(_stem(source), "view")
    return Guess(
        source=source,
        rows=rows,
        view=check_name("view", view) if view else stem,
        entity=check_name("entity", entity) if entity else _entity_name(chosen, stem),
        keys=tuple(chosen),
        time=event,
        created=created,
        features=features,
        skipped=skipped,
        other_keys=tuple(one.source for one in others),
    )


# --- its parts --------------------------------------------------------------------------


def _event_time(
    source: str, columns: list[Column], wanted: str | None, schema: pa.Schema
) -> Column:
    moments = [one for one in columns if one.type == types.Timestamp]
    days = [one for one in columns if one.type == types.Date]
    if wanted is not None:
        column = _named(source, "time", wanted, columns)
        if column not in moments + days:
            raise DefinitionError(
                f"--time {wanted}: the column is {schema.field(column.source).type}; an event time "
                f"must be a timestamp or a date."
            )
        return column
    times = moments or days
    if not times:
        listed = ", ".join(f"{one.name} ({one.type})" for one in schema)
        raise DefinitionError(
            f"{source} has no timestamp column, so nothing says when its rows became known. Write "
            f"one as a Parquet timestamp. Its columns: {listed}."
        )
    by_name = {one.name: one for one in reversed(times)}
    for name in TIMES:
        if name in by_name:
            return by_name[name]
    return next((one for one in times if one.name not in CREATED), times[0])


def _created_time(columns: list[Column], event: Column) -> Column | None:
    for one in columns:
        if one.name in CREATED and one.type == types.Timestamp and one != event:
            return one
    return None


def _guess_key(source: str, candidates: list[Column]) -> tuple[list[Column], list[Column]]:
    """The likeliest key, and others whose names would do."""
    # The type of an identifier: others (a date, a flag) are keys only where somebody says so.
    plain = (types.Int64, types.Int32, types.String)
    identifiers = [one for one in candidates if one.type in plain]
    named = [one for rule in KEYS for one in identifiers if rule.fullmatch(one.name)]
    if not identifiers:
        raise DefinitionError(
            f"{source} has no integer or text column that could be a join key. Name one of "
            f"another type by --key, or write one."
        )
    chosen = (named or identifiers)[0]
    return [chosen], [one for one in named if one != chosen]


def _check_keys(source: str, chosen: list[Column]) -> None:
    for one in chosen:
        if not types.is_key_type(one.type):
            raise DefinitionError(
                f"--key {one.source}: {one.type} cannot be a join key; keys are Bool, Int32, "
                f"Int64, String, Bytes, Date, Timestamp or Decimal."
            )


def _named(source: str, option: str, wanted: str, columns: list[Column]) -> Column:
    """The column that an option names, as the file does or as it is called here."""
    for names in ([one.source for one in columns], [one.name for one in columns]):
        if wanted in names:
            return columns[names.index(wanted)]
    known = [one.source for one in columns]
    raise NotFoundError.of(f"column for --{option}", wanted, known, f" in {source}")


def _entity_name(keys: list[Column], stem: str) -> str:
    """``driver_id`` → ``driver``; a key called ``id`` is that of what the file holds."""
    if len(keys) > 1:
        return stem
    name = re.sub(r"(^|_)(id|key|uuid|guid|code|no|nr|num|number)$", "", keys[0].name)
    return name if name and may_be(name) else stem


def _stem(source: str) -> str:
    """``data/driver_stats.parquet`` → ``driver_stats``; of a glob its folder."""
    path = Path(source)
    while glob.has_magic(path.name) and path.parent != path:
        path = path.parent
    return path.stem or path.resolve().stem or "view"
