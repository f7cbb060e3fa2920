"""Files and Arrow objects into a view: read, decode, check, write, each where it belongs.

Reading is the loop's (aiofiles), decoding and checking a thread's, and both go on while the
database takes in the batch before: a bounded queue lies between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from featurestore.errors import FeatureStoreError, SchemaMismatchError, SourceError
from featurestore.ingest.conform import Conformed, check_schema, conform_arrow, conform_rows
from featurestore.ingest.http import open_url
from featurestore.ingest.layout import Layout
from featurestore.ingest.parquet import (
    BATCH_ROWS,
    Chunks,
    ContentDigest,
    Footer,
    content_digest,
    plan_chunks,
    read_batches,
    read_footer,
)
from featurestore.ingest.progress import OnProgress, Progress
from featurestore.ingest.ranges import RangeReader, open_file
from featurestore.ingest.sources import is_url, without_secrets
from featurestore.ingest.writer import OnInvalid, Writer
from featurestore.reports import LoadReport
from featurestore.storage.engine import Session
from featurestore.storage.ledger import loads_of_footer
from featurestore.storage.registry import RegisteredView

T = TypeVar("T")

QUEUE = 2
"""Batches that wait between checking and writing."""

INLINE_ROWS = 200
"""Pushed rows up to this many are checked on the loop: a thread would cost more than the work."""

Begin = Callable[[], AbstractAsyncContextManager[tuple[Session, RegisteredView]]]
"""A transaction for one load, with the view as it is registered in it."""


@dataclass(frozen=True)
class Job:
    """What all files of one ingest have in common."""

    begin: Begin
    skew: Any
    on_invalid: OnInvalid = "raise"
    force: bool = False
    mapping: Mapping[str, str] = field(default_factory=dict)
    progress: OnProgress | None = None

    def writer(self, session: Session, view: RegisteredView, kind: str, source: str) -> Writer:
        return Writer(
            session, view, kind=kind, source=source, skew=self.skew, on_invalid=self.on_invalid
        )


@asynccontextmanager
async def ahead(source: AsyncIterator[T], depth: int) -> AsyncIterator[AsyncIterator[T]]:
    """Run ``source`` in a task of its own, at most ``depth`` items ahead of who reads it.

    The task ends with the block: errors of the source reach the reader as they are.
    """
    queue: asyncio.Queue[T | _End] = asyncio.Queue(depth)

    async def fill() -> None:
        try:
            async for item in source:
                await queue.put(item)
            await queue.put(_End(None))
        except Exception as error:  # noqa: BLE001 - raised again where the items are read
            await queue.put(_End(error))

    async def read() -> AsyncIterator[T]:
        while not isinstance(item := await queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    task = asyncio.create_task(fill())
    try:
        yield read()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True)
class _End:
    """The end of a source, by itself or by an error."""

    error: Exception | None


async def load_files(job: Job, paths: Sequence[str]) -> list[LoadReport]:
    """Load files one after the other, each in a transaction of its own.

    Where one fails those before it stay, and the error says so.
    """
    reports: list[LoadReport] = []
    for index, path in enumerate(paths):
        try:
            reports.append(await _load_file(job, path, index, len(paths)))
        except FeatureStoreError as error:
            if len(paths) > 1:
                done = sum(not report.skipped for report in reports)
                error.add_note(
                    f"File {index + 1} of {len(paths)} failed: {without_secrets(path)}. {done} "
                    f"before it were loaded and stay; those after it were not begun."
                )
            raise
    return reports


def open_source(path: str) -> AbstractAsyncContextManager[RangeReader]:
    """A file or URL, open for reading ranges; :class:`SourceError` where it cannot be."""
    return open_url(path) if is_url(path) else open_file(path)


async def _load_file(job: Job, path: str, index: int, count: int) -> LoadReport:
    async with open_source(path) as reader:
        footer = await read_footer(reader)
        async with job.begin() as (session, view):
            layout = Layout(view.view)
            columns = layout.locate(footer.schema, job.mapping, reader.name)
            check_schema(footer.schema, layout, columns, reader.name)
            plan = plan_chunks(footer, list(columns.values()), reader.name, reader.size)
            load = _FileLoad(job, reader, footer, plan, columns, index, count)
            return await load.run(session, view)


@dataclass
class _FileLoad:
    """One file on its way into a view."""

    job: Job
    reader: RangeReader
    footer: Footer
    plan: list[Chunks]
    columns: dict[str, str]
    index: int
    count: int
    rows_done: int = 0
    bytes_done: int = 0

    async def run(self, session: Session, view: RegisteredView) -> LoadReport:
        identity = self._identity(view)
        # Two loaders of one file at once: the second waits here, and then finds it loaded.
        await session.dialect.lock_name(session, f"featurestore:load:{view.id}:{identity}")
        known = await self._loaded_before(session, view, identity)
        if known is not None:
            self._tell(finished=True)
            return LoadReport(known, self.reader.name, True, 0, 0, 0, 0, 0.0)
        digest = ContentDigest()
        writer = self.job.writer(session, view, "file", self.reader.name)
        await writer.begin(self.footer.rows)
        async with ahead(self._batches(writer.layout, digest), QUEUE) as batches:
            await writer.write(batches)
        report = await writer.finish(identity, digest.hexdigest())
        self._tell(finished=True)
        return report

    def _identity(self, view: RegisteredView) -> str:
        """Footer and what is taken from it: after a new field the file brings something new."""
        types = view.view.types
        taken = ",".join(
            f"{name}={self.columns[name]}:{types.get(name, '')}" for name in sorted(self.columns)
        )
        digest = ContentDigest()
        digest.update({0: self.footer.digest.encode(), 1: taken.encode()})
        return digest.hexdigest()

    async def _loaded_before(
        self, session: Session, view: RegisteredView, identity: str
    ) -> int | None:
        """The load that brought this content, if one did. The footer finds candidates, the
        bytes of the needed columns decide: different data can have the same footer."""
        if self.job.force:
            return None
        candidates = await loads_of_footer(session, view.id, identity)
        if not candidates:
            return None
        digest = await content_digest(self.reader, self.plan)
        return next((row.id for row in candidates if row.content_hash == digest), None)

    async def _batches(self, layout: Layout, digest: ContentDigest) -> AsyncIterator[Conformed]:
        source = read_batches(
            self.reader, self.footer, self.plan, list(self.columns.values()), digest
        )
        async for batch, size in source:
            first = self.rows_done
            yield await asyncio.to_thread(
                conform_arrow, batch, layout, self.columns, first, self.reader.name
            )
            self.rows_done += batch.num_rows
            self.bytes_done += size
            self._tell()
        if self.rows_done != self.footer.rows:
            raise SourceError(
                f"{self.reader.name} is damaged: it holds {self.rows_done:,} rows, its footer "
                f"says {self.footer.rows:,}."
            )

    def _tell(self, *, finished: bool = False) -> None:
        if self.job.progress is None:
            return
        total = sum(chunks.bytes for chunks in self.plan)
        self.job.progress(
            Progress(
                self.reader.name,
                self.rows_done,
                self.footer.rows,
                self.bytes_done,
                total,
                self.index + finished,
                self.count,
                finished,
            )
        )


# --- Arrow objects and rows -----------------------------------------------------------------


def is_arrow(source: object) -> bool:
    """Whether ``source`` gives a stream of Arrow record batches."""
    return hasattr(source, "__arrow_c_stream__")


async def load_arrow(job: Job, source: Any, *, kind: str = "arrow") -> LoadReport:
    """Load any object with ``__arrow_c_stream__``, in one transaction."""
    name = f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"
    reader = await asyncio.to_thread(_open_stream, source)
    rows = len(source) if hasattr(source, "__len__") else None
    async with job.begin() as (session, view):
        layout = Layout(view.view)
        columns = layout.locate(reader.schema, {}, f"the {name}")
        check_schema(reader.schema, layout, columns, f"the {name}")
        writer = job.writer(session, view, kind, name)
        await writer.begin(rows)
        async with ahead(_arrow_batches(reader, layout, columns, f"the {name}"), QUEUE) as batches:
            await writer.write(batches)
        return await writer.finish()


def _open_stream(source: Any) -> pa.RecordBatchReader:
    try:
        return pa.RecordBatchReader.from_stream(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(f"The {type(source).__name__} gives no Arrow stream: {error}") from error


async def _arrow_batches(
    reader: pa.RecordBatchReader, layout: Layout, columns: Mapping[str, str], where: str
) -> AsyncIterator[Conformed]:
    def pull() -> pa.RecordBatch | None:
        try:
            return next(reader, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{where} broke off: {error}") from error

    row = 0
    while (batch := await asyncio.to_thread(pull)) is not None:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            piece = batch.slice(start, BATCH_ROWS)
            yield await asyncio.to_thread(conform_arrow, piece, layout, columns, row + start, where)
        row += batch.num_rows


_pandas_settled = False


async def _conform(rows: list[Mapping[str, Any]], layout: Layout) -> Conformed:
    """Check pushed rows where it costs least: here, or in a thread.

    pyarrow imports pandas, where there is one, with the first array that it makes of Python
    values. That takes a second: it happens in a thread.
    """
    global _pandas_settled
    if _pandas_settled and len(rows) <= INLINE_ROWS:
        return conform_rows(rows, layout)
    conformed = await asyncio.to_thread(conform_rows, rows, layout)
    _pandas_settled = True
    return conformed


async def push_rows(job: Job, rows: Any) -> LoadReport:
    """Write rows given as mappings, or as an Arrow-compatible table."""
    if is_arrow(rows):
        return await load_arrow(job, rows, kind="push")
    if isinstance(rows, Mapping):
        rows = [rows]
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise SchemaMismatchError(
            f"Rows are mappings of column names to values, or an Arrow-compatible table, not "
            f"{type(rows).__name__}."
        )
    rows = list(rows)
    async with job.begin() as (session, view):
        layout = Layout(view.view)
        conformed = await _conform(rows, layout)

        async def single() -> AsyncIterator[Conformed]:
            yield conformed

        writer = job.writer(session, view, "push", "rows")
        await writer.begin(len(rows))
        await writer.write(single())
        return await writer.finish()
