"""Arrow objects and rows into a view, each call one load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from featurestore.errors import SchemaMismatchError, SourceError
from featurestore.ingest.ahead import ahead
from featurestore.ingest.conform import Conformed, check_schema, conform_arrow, conform_rows
from featurestore.ingest.job import Job
from featurestore.ingest.layout import Layout
from featurestore.ingest.parquet import BATCH_ROWS
from featurestore.ingest.writer import INLINE_ROWS
from featurestore.reports import LoadReport
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session


def is_arrow(source: object) -> bool:
    """Whether ``source`` gives a stream of Arrow record batches."""
    return hasattr(source, "__arrow_c_stream__")


async def load_arrow(job: Job, source: Any, *, kind: str = "arrow") -> LoadReport:
    """Load any object with ``__arrow_c_stream__``, in one transaction."""
    name = f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"
    reader = await asyncio.to_thread(_open_stream, source)
    async with job.begin() as (session, view):
        layout = Layout(view.view)
        columns = layout.locate(reader.schema, {}, f"the {name}")
        await asyncio.to_thread(check_schema, reader.schema, layout, columns, f"the {name}")
        writer = job.writer(session, view, kind, name)
        await writer.begin(_rows_of(source))
        size = job.budget.limits.batch_bytes
        read = _arrow_batches(reader, layout, columns, f"the {name}", size)
        async with ahead(read) as batches:
            await writer.write(batches)
        await writer.settle()
        return await writer.finish()


def _rows_of(source: Any) -> int | None:
    """How many rows a table has; None for what may not know, or would have to find out first."""
    table = type(source).__module__.partition(".")[0] in ("pyarrow", "pandas", "polars")
    return len(source) if table and hasattr(source, "__len__") else None


def _open_stream(source: Any) -> pa.RecordBatchReader:
    try:
        return pa.RecordBatchReader.from_stream(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(f"The {type(source).__name__} gives no Arrow stream: {error}") from error


async def _arrow_batches(
    reader: pa.RecordBatchReader,
    layout: Layout,
    columns: Mapping[str, str],
    where: str,
    size: int,
) -> AsyncGenerator[Conformed, None]:
    """A stream's rows, checked in batches of at most about ``size`` bytes."""

    def pull() -> pa.RecordBatch | None:
        try:
            return next(reader, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{where} broke off: {error}") from error

    row = 0
    while (batch := await asyncio.to_thread(pull)) is not None:
        step = max(1, min(BATCH_ROWS, size * batch.num_rows // max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, step):
            piece = batch.slice(start, step)
            yield await asyncio.to_thread(conform_arrow, piece, layout, columns, row + start, where)
        row += batch.num_rows


_pandas_settled = False


async def _conform(rows: Sequence[Any], layout: Layout, *, each: bool) -> Conformed:
    """Check pushed rows where it costs least: here, or in a thread.

    pyarrow imports pandas, where there is one, with the first array that it makes of Python
    values. That takes a second: it happens in a thread.
    """
    global _pandas_settled
    if _pandas_settled and len(rows) <= INLINE_ROWS:
        return conform_rows(rows, layout, each=each)
    conformed = await asyncio.to_thread(conform_rows, rows, layout, each=each)
    _pandas_settled = True
    return conformed


def listed(rows: Any) -> list[Any]:
    """What a push was given, as a list of rows: one mapping, or several."""
    if type(rows) is list:
        return rows.copy()
    if isinstance(rows, Mapping):
        rows = [rows]
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise SchemaMismatchError(
            f"Rows are mappings of column names to values, or an Arrow-compatible table, not "
            f"{type(rows).__name__}."
        )
    return list(rows)


async def push_rows(job: Job, rows: Sequence[Any]) -> LoadReport:
    """Write rows given as mappings, in a transaction of their own."""
    async with job.begin() as (session, view):
        return await write_rows(job, session, view, rows)


async def write_rows(
    job: Job, session: Session, view: RegisteredView, rows: Sequence[Any]
) -> LoadReport:
    """Write rows given as mappings, in the transaction of the session."""
    layout = Layout(view.view)
    conformed = await _conform(rows, layout, each=job.on_invalid == "quarantine")

    async def single() -> AsyncIterator[Conformed]:
        yield conformed

    writer = job.writer(session, view, "push", "rows")
    await writer.begin(len(rows))
    await writer.write(single())
    await writer.settle()
    return await writer.finish()
