"""What an online read answers with."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.types import FeatureType, Json, dump_json

if TYPE_CHECKING:
    import pandas


class Status(StrEnum):
    """Why a value is there or not."""

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    """The row is there and holds null."""
    NOT_FOUND = "NOT_FOUND"
    """Nothing is known of the entity."""
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"
    """The newest row is older than the view's ttl."""


class OnlineFeatures:
    """Feature vectors, one for each entity row, in order.

    ``keys`` and ``values`` have a mapping per row: the join keys that were asked for, and
    feature → value. ``statuses`` has a mapping of feature → :class:`Status` per row,
    ``event_timestamps`` one of view → the time of its row (None where nothing was found; kept when
    past its ttl). ``key_types`` and ``feature_types`` are the types of the columns.
    """

    def __init__(
        self,
        key_types: Mapping[str, FeatureType],
        feature_types: Mapping[str, FeatureType],
        keys: Sequence[Mapping[str, Any]],
        values: Sequence[Mapping[str, Any]],
        statuses: Sequence[dict[str, Status]],
        event_timestamps: Sequence[dict[str, dt.datetime | None]],
    ) -> None:
        self.key_types = key_types
        self.feature_types = feature_types
        self.keys = keys
        self.values = values
        self.statuses = statuses
        self.event_timestamps = event_timestamps

    def __len__(self) -> int:
        return len(self.keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OnlineFeatures):
            return NotImplemented
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("key_types", "feature_types", "keys", "values", "statuses")
        ) and list(self.event_timestamps) == list(other.event_timestamps)

    __hash__ = None  # type: ignore[assignment] # its values may be lists

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per entity row: its join keys, then its features."""
        return [{**keys, **values} for keys, values in zip(self.keys, self.values, strict=True)]

    def to_arrow(self) -> pa.Table:
        """A table of the join keys and features, typed as the views are."""
        columns = {}
        for name, kind in self.key_types.items():
            columns[name] = pa.array([row[name] for row in self.keys], kind.arrow)
        for name, kind in self.feature_types.items():
            values = [row[name] for row in self.values]
            if kind == Json:
                values = [None if value is None else dump_json(value) for value in values]
            columns[name] = pa.array(values, kind.arrow)
        return pa.table(columns)

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame of the join keys and features (pandas must be installed)."""
        return self.to_arrow().to_pandas()

    def __repr__(self) -> str:
        names = ", ".join(self.feature_types)
        return f"<OnlineFeatures: {len(self)} rows of {names}>"
