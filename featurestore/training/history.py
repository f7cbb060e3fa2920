"""History on its way out, for engines that join outside of the database."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pyarrow as pa

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.errors import DefinitionError, InvalidRow, InvalidRowsError
from featurestore.ingest.ahead import ahead
from featurestore.ingest.budget import Budget
from featurestore.ingest.conform import stamp
from featurestore.ingest.files import open_source
from featurestore.ingest.parquet import Chunks, Footer, read_batches, read_footer
from featurestore.ingest.sources import SourceFile, resolve_sources
from featurestore.ingest.taken import Taken
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import SYSTEM_TYPES
from featurestore.types import FeatureType

_SHOWN = 10

_SPLIT_ROWS = 262_144
"""Files of so many rows are read in two parts, side by side: decoding takes one core each."""


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
    history, checked as a load checks them, in any order; arrivals are counted from 0."""
    # What nobody asks for is neither read nor checked.
    fields = [field for field in view.view.fields if field.name in types]
    narrow = replace(view.view, fields=fields)
    now = await session.dialect.now(session)
    arrival = 0
    for file in await source_files(view):
        rows, parts = await _parts_of(narrow, source_of(view), file)
        async with AsyncExitStack() as stack:
            reads = [
                await stack.enter_async_context(ahead(_read_part(part, arrival, now)))
                for part in parts
            ]
            while reads:
                for read in list(reads):
                    batch = await anext(read, None)
                    if batch is None:
                        reads.remove(read)
                    else:
                        yield batch.select(list(types))
        arrival += rows


@dataclass(frozen=True)
class _Part:
    """Some row groups of a file, one after the other, and the number of their first row."""

    file: SourceFile
    footer: Footer
    taken: Taken
    plan: Sequence[Chunks]
    first: int


async def _parts_of(
    view: FeatureView, source: ParquetSource, file: SourceFile
) -> tuple[int, list[_Part]]:
    """How many rows a file has, and the parts in which it is read, side by side."""
    async with open_source(file.path) as reader:
        footer = await read_footer(reader)
        taken = await asyncio.to_thread(Taken.of, view, source.field_mapping, file, reader, footer)
    plan, half = taken.plan, -(-len(taken.plan) // 2)
    if footer.rows < _SPLIT_ROWS:
        half = len(plan)
    parts = []
    first = 0
    for some in (plan[:half], plan[half:]):
        if some:
            parts.append(_Part(file, footer, taken, some, first))
        first += sum(chunks.rows for chunks in some)
    return footer.rows, parts


async def _read_part(
    part: _Part, arrival: int, now: dt.datetime
) -> AsyncGenerator[pa.RecordBatch, None]:
    taken, first = part.taken, part.first
    async with open_source(part.file.path) as reader:
        limits = Budget.of().limits
        read = read_batches(reader, part.footer, part.plan, taken.read, None, limits)
        # One batch is checked while the next is decoded.
        async with ahead(read) as batches:
            async for batch, _ in batches:
                yield await asyncio.to_thread(
                    _stamped, part, reader.name, batch, first, arrival, now
                )
                first += batch.num_rows


def _stamped(
    part: _Part, name: str, batch: pa.RecordBatch, first: int, arrival: int, now: dt.datetime
) -> pa.RecordBatch:
    """A batch of the file as history has it; its rows are numbered ``first`` and up."""
    rows = part.taken.conform(batch, first, name)
    if rows.rejected:
        shown = [InvalidRow(one.row, one.reason) for one in rows.rejected[:_SHOWN]]
        where = f"{name} (view {part.taken.layout.view.name!r})"
        raise InvalidRowsError(where, shown, count=len(rows.rejected))
    table = pa.Table.from_batches([rows.batch])
    stamped = stamp(table, part.taken.layout, arrival + first, now)
    columns = [column.combine_chunks() for column in stamped.columns]
    return pa.RecordBatch.from_arrays(columns, schema=stamped.schema)
