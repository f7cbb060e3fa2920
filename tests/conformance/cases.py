"""Views that the property tests write to, and how the oracle's rows become theirs.

Making views for each example would take most of the time, so each example has a number of its
own, which is one of the join keys: it sees none of the other examples' rows.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from oracle import Draft
from strategies import KEY_KINDS

import featurestore as fs

KEY_TYPES: dict[str, dict[str, fs.FeatureType]] = {
    "number": {"id": fs.Int64},
    "text": {"label": fs.String},
    "composite": {"airport": fs.String, "day": fs.Date, "inbound": fs.Bool},
}

_EXAMPLES = itertools.count(1)


def next_example() -> int:
    """The number of a new example."""
    return next(_EXAMPLES)


@dataclass(frozen=True)
class Kind:
    """A view of a kind of keys, and the same with a ttl."""

    view: fs.FeatureView
    keys: tuple[str, ...]

    def row(self, example: int, draft: Draft) -> dict[str, Any]:
        """``draft`` as a row to write."""
        return {
            **self.key_row(example, draft.keys),
            "happened": draft.event,
            "made": draft.created,
            **draft.values,
        }

    def key_row(self, example: int, keys: tuple[Any, ...]) -> dict[str, Any]:
        """``keys`` as an entity row."""
        return {"example": example, **dict(zip(self.keys, keys, strict=True))}

    def entity_table(
        self, example: int, questions: Iterable[tuple[tuple[Any, ...], dt.datetime]]
    ) -> pa.Table:
        """The questions as an entity table, with a column of its own."""
        schema = {"asked": pa.int16(), "example": pa.int64()}
        schema |= {name: self.view.join_keys[name].arrow for name in self.keys}
        schema["event_timestamp"] = fs.Timestamp.arrow
        rows = [
            {"asked": number, **self.key_row(example, keys), "event_timestamp": when}
            for number, (keys, when) in enumerate(questions)
        ]
        return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def kinds(ttl: dt.timedelta) -> dict[tuple[str, bool], Kind]:
    """All kinds, each without and with ``ttl``, by (kind, limited)."""
    made = {}
    for kind, limited in itertools.product(KEY_KINDS, (False, True)):
        keys = KEY_TYPES[kind]
        view = fs.FeatureView(
            f"by_{kind}_limited" if limited else f"by_{kind}",
            entities=[fs.Entity(f"thing_{kind}", join_keys={"example": fs.Int64, **keys})],
            fields=[
                fs.Field("number", fs.Int64),
                fs.Field("note", fs.String),
                fs.Field("numbers", fs.Array(fs.Float64)),
            ],
            timestamp_field="happened",
            created_timestamp_field="made",
            ttl=ttl if limited else None,
        )
        made[kind, limited] = Kind(view, tuple(keys))
    return made
