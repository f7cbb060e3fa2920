"""Rows of a table as record batches, by the session's own connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.types import FeatureType

if TYPE_CHECKING:
    from featurestore.storage.dialect import Dialect
    from featurestore.storage.session import Session

ROWS = 16_384
"""Rows per fetch, and per batch."""


async def arrow_batches(
    session: Session,
    query: sa.Select[Any],
    types: Mapping[str, FeatureType],
    size: int = ROWS,
) -> AsyncGenerator[pa.RecordBatch, None]:
    """The rows of a query whose columns are read (:meth:`Dialect.read`) as ``types`` has them."""
    # Thousands of keys may be in it, each a value of its own.
    sql, values = await asyncio.to_thread(session.compile, query)
    async with aclosing(session.stream_text(sql, values, size=size)) as chunks:
        async for rows in chunks:
            yield await asyncio.to_thread(_batch, session.dialect, types, rows)


def _batch(
    dialect: Dialect, types: Mapping[str, FeatureType], rows: Sequence[Sequence[Any]]
) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [
        dialect.arrow(kind, column) for kind, column in zip(types.values(), columns, strict=True)
    ]
    schema = pa.schema([(name, kind.arrow) for name, kind in types.items()])
    return pa.record_batch(arrays, schema=schema)
