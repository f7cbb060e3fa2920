"""What an online read answers with."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class OnlineFeatures:
    """Feature vectors, one for each entity row, in order.

    ``statuses`` has a mapping of feature to :class:`Status` per row, ``event_timestamps`` one of
    view to the time of its row (None where nothing was found; kept when past its ttl).
    """

    key_types: Mapping[str, FeatureType]
    feature_types: Mapping[str, FeatureType]
    keys: Sequence[Mapping[str, Any]]
    values: Sequence[Mapping[str, Any]]
    statuses: Sequence[dict[str, Status]]
    event_timestamps: Sequence[dict[str, dt.datetime | None]]

    def __len__(self) -> int:
        return len(self.values)

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
