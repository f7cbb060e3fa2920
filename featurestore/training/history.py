"""History on its way out, for engines that join outside of the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import pyarrow as pa

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.errors import DefinitionError, InvalidRow, InvalidRowsError
from featurestore.ingest.ahead import ahead
from featurestore.ingest.budget import Budget
from featurestore.ingest.conform import Conformed, stamp
from featurestore.ingest.files import open_source
from featurestore.ingest.layout import Layout
from featurestore.ingest.parquet import read_batches, read_footer
from featurestore.ingest.sources import SourceFile, resolve_sources
from featurestore.ingest.taken import Taken
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import SYSTEM_TYPES
from featurestore.types import FeatureType

_SHOWN = 10


def history_types(view: RegisteredView, features: Sequence[str]) -> dict[str, FeatureType]:
    """The columns that a join needs of a view: keys, times, arrival, and some of its features."""
    wanted = {name: view.view.types[name] for name in features}
    return {**view.view.join_keys, **SYSTEM_TYPES, **wanted}


def history_schema(types: Mapping[str, FeatureType]) -> pa.Schema:
    """Columns of these types as they travel."""
    return pa.schema([(name, kind.arrow) for name, kind in types.items()])


# --- straight from the files ----------------------------------------------------------------


async def source_files(view: RegisteredView) -> list[SourceFile]:
    """The files of the view's own source, in the order in which they would be loaded."""
    return await resolve_sources(list(source_of(view).paths))


def source_of(view: RegisteredView) -> ParquetSource:
    """The view's own source; :class:`DefinitionError` where it has none."""
    if view.view.source is None:
        raise DefinitionError(
            f"view {view.name!r} has no source to be read from: give it one, or read its history."
        )
    return view.view.source


async def read_source(
    session: Session, view: RegisteredView, types: Mapping[str, FeatureType]
) -> AsyncGenerator[pa.RecordBatch, None]:
    """The columns ``types`` of the view's source, as a load would bring them into an empty
    history, checked as a load checks them; arrivals are counted from 0."""
    # What nobody asks for is neither read nor checked.
    fields = [field for field in view.view.fields if field.name in types]
    narrow = replace(view.view, fields=fields)
    now = await session.dialect.now(session)
    layout, arrival = Layout(narrow), 0
    for file in await source_files(view):
        async with aclosing(_read_file(narrow, source_of(view), file)) as pieces:
            async for piece in pieces:
                table = pa.Table.from_batches([piece.batch])
                rows = await asyncio.to_thread(stamp, table, layout, arrival, now)
                arrival += rows.num_rows
                for batch in rows.select(list(types)).to_batches():
                    yield batch


async def _read_file(
    view: FeatureView, source: ParquetSource, file: SourceFile
) -> AsyncGenerator[Conformed, None]:
    async with open_source(file.path) as reader:
        footer = await read_footer(reader)
        taken = await asyncio.to_thread(Taken.of, view, source.field_mapping, file, reader, footer)
        limits, first = Budget.of().limits, 0
        read = read_batches(reader, footer, taken.plan, taken.read, None, limits)
        # One batch is checked while the next is decoded.
        async with ahead(read) as batches:
            async for batch, _ in batches:
                rows = await asyncio.to_thread(taken.conform, batch, first, reader.name)
                if rows.rejected:
                    shown = [InvalidRow(one.row, one.reason) for one in rows.rejected[:_SHOWN]]
                    where = f"{reader.name} (view {view.name!r})"
                    raise InvalidRowsError(where, shown, count=len(rows.rejected))
                first += batch.num_rows
                yield rows
