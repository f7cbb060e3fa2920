"""Files into a view, each a load of its own: side by side, and in steps where one is long.

However many are under way, they come to the same state as one after the other: they take their
arrivals in the order given, and each commits after those before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from featurestore.errors import (
    FeatureStoreError,
    InvalidRowsError,
    NotFoundError,
    OverloadedError,
    SourceError,
)
from featurestore.ingest.ahead import ahead
from featurestore.ingest.conform import Conformed
from featurestore.ingest.http import open_url
from featurestore.ingest.job import Job
from featurestore.ingest.layout import Layout
from featurestore.ingest.names import is_object, is_url, without_secrets
from featurestore.ingest.objects import open_object
from featurestore.ingest.parquet import (
    ContentDigest,
    Footer,
    content_digest,
    read_batches,
    read_footer,
)
from featurestore.ingest.progress import Told, ToldOfFile
from featurestore.ingest.ranges import RangeReader, open_file
from featurestore.ingest.sources import SourceFile
from featurestore.ingest.taken import Taken
from featurestore.ingest.writer import Begun, Writer
from featurestore.reports import LoadReport
from featurestore.storage.faults import LayoutChanged
from featurestore.storage.ledger import find_row, is_complete, loads_of_footer
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session


def open_source(path: str) -> AbstractAsyncContextManager[RangeReader]:
    """A file, URL or object, open for reading ranges; :class:`SourceError` where it cannot be."""
    if is_url(path):
        return open_url(path)
    return open_object(path) if is_object(path) else open_file(path)


async def load_files(job: Job, files: Sequence[SourceFile]) -> list[LoadReport]:
    """Load files, ``job.files_at_once`` of them at a time, each in a transaction of its own.

    Where one fails those before it stay, and the error says so; nothing is kept of those after.
    """
    told = Told(job.progress, len(files))
    loads: list[_FileLoad] = []
    for index, file in enumerate(files):
        turn = _Turn(loads[-1].turn if loads else None)
        loads.append(_FileLoad(job, file, turn, index, told))

    async def load(index: int) -> LoadReport:
        if index >= job.files_at_once:
            await loads[index - job.files_at_once].turn.done.wait()
        report = await loads[index].run()
        loads[index].turn.done.set()
        return report

    try:
        if job.files_at_once == 1 or len(files) == 1:
            return [await load(index) for index in range(len(files))]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load(index)) for index in range(len(files))]
        return [task.result() for task in tasks]
    except ExceptionGroup as errors:
        error = errors.exceptions[0]
    except FeatureStoreError as only:
        error = only
    failed = next((one for one in loads if one.error is error), None)
    if failed is not None:
        # Here, where no other load is under way that the undoing would wait for.
        await failed.take_back()
    raise error from error.__cause__


class _Turn:
    """A file's place in the order of an ingest.

    A file takes a connection and locks only when the one before has all that it needs, and so
    waits for no load that waits for it: the database would not see that circle. It commits only
    when the one before is done.
    """

    def __init__(self, before: _Turn | None) -> None:
        self.before = before
        self.claimed = asyncio.Event()
        self.done = asyncio.Event()

    async def come(self) -> None:
        """Wait until the file before has its connection, its locks and its arrivals."""
        if self.before is not None:
            await self.before.claimed.wait()

    async def last(self) -> None:
        """Wait until all files before are done; where one fails, this load is cancelled."""
        if self.before is not None:
            await self.before.done.wait()


@dataclass
class _FileLoad:
    """One file on its way into a view."""

    job: Job
    file: SourceFile
    turn: _Turn
    index: int
    all_told: Told
    rows_done: int = 0
    error: FeatureStoreError | None = None
    committed: int | None = None  # the load whose first rows were committed already
    reader: RangeReader = field(init=False)
    footer: Footer = field(init=False)
    taken: Taken = field(init=False)
    told: ToldOfFile = field(init=False)

    async def run(self) -> LoadReport:
        try:
            report = await self._load()
            await self.turn.last()
            return report
        except FeatureStoreError as error:
            self.error = error
            await self.turn.last()  # what stays of the files before is known then
            count = self.all_told.files
            if count > 1:
                error.add_note(
                    f"File {self.index + 1} of {count} failed: {without_secrets(self.file.path)}. "
                    f"{self.index} before it were loaded or skipped and stay; nothing is kept of "
                    f"those after it."
                )
            raise

    async def take_back(self) -> None:
        """Of a file with rows that do not fit, take back what was committed of it in steps."""
        if self.committed is None or not isinstance(self.error, InvalidRowsError):
            return
        undone = await self.job.undo(self.committed)
        self.error.add_note(
            f"The {undone.rows_removed:,} rows of it committed before were taken back out."
        )

    async def _load(self) -> LoadReport:
        async with open_source(self.file.path) as self.reader:
            self.footer = await read_footer(self.reader)
            self.told = self.all_told.of(self.index, self.reader.name, self.footer.rows)
            work = self._at_once() if self.job.commit_every is None else self._in_steps()
            report = await work
        self.told.finished()
        return report

    async def _at_once(self) -> LoadReport:
        await self.turn.come()
        async with self._transaction() as (session, view):
            await self._take(view)
            row, content = await self._find(session, view)
            if row is not None and is_complete(row):
                self.turn.claimed.set()
                return _skipped(row.id, self.reader.name)
            writer = self.job.writer(session, view, "file", self.reader.name)
            await writer.begin(self.footer.rows, _begun(row), total=self.footer.rows)
            self.turn.claimed.set()
            self.committed = None if row is None else row.id
            self._tell_of(writer)
            digest = ContentDigest() if content is None else None
            async with ahead(self._batches(digest, writer.rows_read)) as batches:
                await writer.write(batches)
            self.told.finishing()
            await self.turn.last()
            await writer.settle()
            return await writer.finish(
                self.taken.identity, content if digest is None else digest.hexdigest()
            )

    def _tell_of(self, writer: Writer) -> None:
        size = sum(chunks.bytes for chunks in self.taken.plan)
        self.told.begins(writer.load_id, writer.rows_read, size)
        writer.on_stored = self.told.stored

    async def _take(self, view: RegisteredView) -> None:
        # The first value that pyarrow makes of Python's imports pandas, where there is one: that
        # takes a second and more, so it is not for the loop.
        self.taken = await asyncio.to_thread(
            Taken.of, view.view, self.job.mapping, self.file, self.reader, self.footer
        )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[tuple[Session, RegisteredView]]:
        async with AsyncExitStack() as stack:
            try:
                begun = await stack.enter_async_context(self.job.begin())
            except OverloadedError:
                if self.turn.before is None or self.turn.before.done.is_set():
                    raise
                # The pool is as small as that: one file after the other, then.
                await self.turn.last()
                begun = await stack.enter_async_context(self.job.begin())
            yield begun

    async def _find(self, session: Session, view: RegisteredView) -> tuple[Any, str | None]:
        """The load that brought this content, or its first part, if one did; and the content's
        digest, if it had to be found out."""
        await self._lock(session, view)
        if self.job.force:
            return None, None
        candidates = await loads_of_footer(session, view.id, self.taken.identity)
        if not candidates:
            return None, None
        # The footer finds candidates, the bytes of the needed columns decide: different data can
        # have the same footer.
        content = await content_digest(self.reader, self.taken.plan)
        return _same(candidates, content), content

    async def _lock(self, session: Session, view: RegisteredView) -> None:
        """Of two loaders of one file at once the second waits here, and then finds it loaded."""
        name = f"featurestore:load:{view.id}:{self.taken.identity}"
        await session.dialect.lock_name(session, name)

    # --- in steps -------------------------------------------------------------------------

    async def _in_steps(self) -> LoadReport:
        """Commit every so many rows. What was committed is found again by the content's digest,
        which is why the bytes are read once before."""
        started = time.perf_counter()
        async with self.job.begin() as (_, view):
            await self._take(view)
        content = await content_digest(self.reader, self.taken.plan)
        steps = _Steps(self)
        report: LoadReport | None = None
        try:
            while True:
                done = await self._step(steps, content, report)
                report = done if report is None else _added(report, done)
                if done.skipped or steps.position >= self.footer.rows:
                    return _timed(report, time.perf_counter() - started)
                self.committed = report.load_id
        finally:
            await steps.close()

    async def _step(self, steps: _Steps, content: str, before: LoadReport | None) -> LoadReport:
        async with self.job.begin() as (session, view):
            if not self.taken.layout.writes_as(Layout(view.view)):
                raise LayoutChanged(
                    f"view {view.name!r} was changed while {self.reader.name} was loaded. What "
                    f"was committed stays; load it again to go on."
                )
            row = await self._earlier(session, view, content, before)
            if row is not None and is_complete(row):
                return _skipped(row.id, self.reader.name)
            self.committed = None if row is None else row.id
            writer = self.job.writer(session, view, "file", self.reader.name)
            await writer.begin(self.footer.rows, _begun(row), total=self.footer.rows)
            self._tell_of(writer)
            await writer.write(await steps.next(writer.rows_read))
            if steps.position >= self.footer.rows:
                self.told.finishing()
            await writer.settle()
            return await writer.finish(self.taken.identity, content)

    async def _earlier(
        self, session: Session, view: RegisteredView, content: str, before: LoadReport | None
    ) -> Any:
        """The load to go on with: another loader of the file may have gone on meanwhile."""
        await self._lock(session, view)
        if before is not None:
            row = await find_row(session, before.load_id)
            if row is None or row.undone_at is not None:
                raise NotFoundError(
                    f"Load {before.load_id} was undone while its file was still being loaded.",
                    name=str(before.load_id),
                )
            return row
        if self.job.force:
            return None
        return _same(await loads_of_footer(session, view.id, self.taken.identity), content)

    # --- reading --------------------------------------------------------------------------

    async def _batches(
        self, digest: ContentDigest | None, first: int, every: int | None = None
    ) -> AsyncGenerator[Conformed, None]:
        """The file's rows from number ``first`` on, checked; no batch goes across a multiple of
        ``every``."""
        self.rows_done = first
        wanted, limits = self.taken.read, self.job.budget.limits
        source = read_batches(
            self.reader, self.footer, self.taken.plan, wanted, digest, limits, skip_rows=first
        )
        async with aclosing(source) as batches:
            async for batch, size in batches:
                self.told.read(size)
                start = 0
                while start < batch.num_rows:
                    count = batch.num_rows - start
                    if every is not None:
                        count = min(count, every - self.rows_done % every)
                    yield await self._conform(batch.slice(start, count))
                    self.rows_done += count
                    start += count
        if self.rows_done != self.footer.rows:
            raise SourceError(
                f"{self.reader.name} is damaged: it holds {self.rows_done:,} rows, its footer "
                f"says {self.footer.rows:,}."
            )

    async def _conform(self, rows: pa.RecordBatch) -> Conformed:
        return await asyncio.to_thread(self.taken.conform, rows, self.rows_done, self.reader.name)


class _Steps:
    """A file's rows, handed out in the steps in which they are committed."""

    def __init__(self, load: _FileLoad) -> None:
        self._load = load
        self._stack = AsyncExitStack()
        self._batches: AsyncIterator[Conformed] | None = None
        self.position = 0

    async def next(self, position: int) -> AsyncIterator[Conformed]:
        """The rows from ``position`` to the next multiple of the step."""
        if self._batches is None or position != self.position:
            await self.close()
            every = self._load.job.commit_every
            source = self._load._batches(None, position, every)
            self._batches = await self._stack.enter_async_context(ahead(source))
            self.position = position
        return self._step(self._batches)

    async def _step(self, batches: AsyncIterator[Conformed]) -> AsyncIterator[Conformed]:
        every = self._load.job.commit_every
        assert every is not None
        end = min((self.position // every + 1) * every, self._load.footer.rows)
        while self.position < end:
            conformed = await anext(batches)
            self.position += conformed.rows_read
            yield conformed

    async def close(self) -> None:
        """Stop reading."""
        await self._stack.aclose()


def _same(candidates: Sequence[Any], content: str) -> Any:
    """Of loads of this footer the one with this content: a whole one before a part."""
    same = [row for row in candidates if row.content_hash == content]
    return next((row for row in same if is_complete(row)), same[0] if same else None)


def _begun(row: Any) -> Begun | None:
    if row is None:
        return None
    return Begun(
        row.id,
        row.started_at,
        row.rows_read,
        row.rows_written,
        row.rows_rejected,
        row.rows_future,
        row.future_until,
    )


def _skipped(load_id: int, source: str) -> LoadReport:
    return LoadReport(load_id, source, True, 0, 0, 0, 0, 0.0)


def _added(one: LoadReport, other: LoadReport) -> LoadReport:
    return LoadReport(
        one.load_id,
        one.source,
        False,
        one.rows_read + other.rows_read,
        one.rows_written + other.rows_written,
        one.rows_rejected + other.rows_rejected,
        one.rows_future + other.rows_future,
        one.seconds + other.seconds,
        one.rows_before,
    )


def _timed(report: LoadReport, seconds: float) -> LoadReport:
    return report if report.skipped else replace(report, seconds=seconds)
