"""Blocks of a training set, read one after the other from a store of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.errors import InvalidRow, InvalidRowsError
from featurestore.integrations._blocks import Piece
from featurestore.integrations._columns import ItemColumns
from featurestore.integrations._entity_rows import EntityRows
from featurestore.selection import Features
from featurestore.store import FeatureStore
from featurestore.training.asked import AsOf


@dataclass(frozen=True)
class Reading:
    """What is read from which store. It holds no store, and goes to another process as it is."""

    url: str | sa.URL | None
    features: Features
    columns: ItemColumns
    project: str = "default"
    timestamp_column: str = "event_timestamp"
    full_feature_names: bool = False
    as_of: AsOf = None
    store_options: Mapping[str, Any] = field(default_factory=dict)

    def open_store(self) -> FeatureStore:
        """A store of one's own."""
        return FeatureStore(self.url, project=self.project, **self.store_options)

    async def blocks(
        self, entities: EntityRows, pieces: Iterator[Piece]
    ) -> AsyncGenerator[pa.Table, None]:
        """The columns of items for each piece, in order. The store is open meanwhile."""
        async with self.open_store() as store:
            # Shuffling takes its time as well.
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                rows = await asyncio.to_thread(_entities_of, entities, piece)
                joined = await self._joined(store, rows, piece)
                yield await asyncio.to_thread(self.columns.choose, joined, entities.schema, piece)

    async def _joined(self, store: FeatureStore, rows: pa.Table, piece: Piece) -> pa.Table:
        stream = store.stream_historical_features(
            rows,
            self.features,
            timestamp_column=self.timestamp_column,
            full_feature_names=self.full_feature_names,
            as_of=self.as_of,
        )
        try:
            async with aclosing(stream) as batches:
                found = [batch async for batch in batches]
        except InvalidRowsError as error:
            # It has counted the rows of the block.
            numbered = [InvalidRow(piece.row(bad.row), bad.reason) for bad in error.rows]
            raise InvalidRowsError(error.where, numbered, error.count) from error
        return pa.Table.from_batches(found)


def _entities_of(entities: EntityRows, piece: Piece) -> pa.Table:
    if piece.in_sequence and len(piece.order):
        return entities.read(piece.row(0), len(piece.order))
    return entities.read(piece.start, piece.rows).take(pa.array(piece.order))


def in_batches(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of ``tables`` in tables of ``rows`` each; the last may have fewer."""
    rest: list[pa.Table] = []
    kept = 0
    for table in tables:
        start = 0
        while kept + table.num_rows - start >= rows:
            part = table.slice(start, rows - kept)
            start += part.num_rows
            yield pa.concat_tables([*rest, part])
            rest, kept = [], 0
        if start < table.num_rows:
            rest.append(table.slice(start))
            kept += table.num_rows - start
    if rest:
        yield pa.concat_tables(rest)
