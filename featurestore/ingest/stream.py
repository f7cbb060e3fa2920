"""Rows that never stop coming into a view: gathered into micro-batches, each one transaction.

One task reads the source and one writes. Between them lie at most ``max_rows`` rows: where the
database is slower than the source, the source is asked for nothing more until there is room.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from featurestore.errors import (
    DefinitionError,
    InvalidRow,
    InvalidRowsError,
    SchemaMismatchError,
    SourceError,
)
from featurestore.ingest.push import Loaded
from featurestore.ingest.rows import is_arrow
from featurestore.reports import StreamReport

MAX_ROWS = 2_000
"""Rows of a micro-batch by default. Larger ones are hardly faster (20,000 rows of 9 columns a
second on either database), and a transaction of these takes a tenth of a second."""

MAX_SECONDS = 1.0
"""How long a row waits for others by default."""

STEP = 500
"""Rows that are taken without letting others have the loop: less than a millisecond."""

Push = Callable[[Any], Awaitable[Loaded]]
"""Writes rows (mappings, or an Arrow table) as one load."""

OnStream = Callable[[StreamReport], None]
"""Called after each micro-batch with the totals so far: that many rows are durable."""


def check_stream(source: Any, max_rows: Any, max_seconds: Any, on_invalid: Any) -> None:
    """Raise for a source that cannot be read, or arguments that cannot be, before anything is."""
    if not isinstance(source, AsyncIterable):
        way = "rows that are there already go to push or ingest"
        if isinstance(source, Iterable) and not is_arrow(source):
            way += ", an ordinary iterator to the push_stream of fs.sync.FeatureStore"
        raise SourceError(
            f"push_stream reads an async iterator (of rows, lists of rows or Arrow batches), not "
            f"{type(source).__name__}: {way}."
        )
    if isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1:
        raise DefinitionError(f"max_rows={max_rows!r}: it is a whole number of rows, 1 or more.")
    number = isinstance(max_seconds, int | float) and not isinstance(max_seconds, bool)
    if not number or not 0 <= max_seconds < float("inf"):
        raise DefinitionError(f"max_seconds={max_seconds!r}: it is a number of seconds.")
    if on_invalid not in ("raise", "quarantine"):
        raise DefinitionError(f"on_invalid={on_invalid!r}: it is 'raise' or 'quarantine'.")


@dataclass
class MicroBatch:
    """Rows of one kind that are written together: mappings, or Arrow of one schema.

    ``first`` is the number of its first row within the stream, ``since`` the loop's time at which
    that row came.
    """

    first: int
    since: float
    schema: pa.Schema | None
    rows: int = 0
    parts: list[Any] = field(default_factory=list)

    def add(self, data: list[Any] | pa.RecordBatch, start: int, count: int) -> None:
        self.rows += count
        if isinstance(data, list):
            self.parts += data[start : start + count]
        else:
            self.parts.append(data.slice(start, count))

    async def content(self, count: int | None = None) -> Any:
        """The first ``count`` rows, or all, as a push takes them."""
        if self.schema is None:
            return self.parts[:count]
        return await asyncio.to_thread(self._table, count)

    def _table(self, count: int | None) -> pa.Table:
        table = pa.Table.from_batches(self.parts, self.schema).slice(0, count)
        try:
            return table.combine_chunks()  # thousands of batches of one row would be slow
        except pa.ArrowNotImplementedError:
            return table


class Waiting:
    """The rows between the source and the database, as micro-batches: a bounded buffer.

    The newest micro-batch is open to further rows. One is due when it is full, when another
    follows it, when the source has ended, or when its first row has waited long enough.
    """

    def __init__(self, max_rows: int) -> None:
        self.taken = 0  # rows that the source has given
        self._max_rows = max_rows
        self._batches: deque[MicroBatch] = deque()
        self._waiting = 0
        self._ended = False
        self._stepped = 0
        self._arrived, self._due, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._settle()

    def add(self, data: list[Any] | pa.RecordBatch) -> None:
        """Take rows in, however many: :meth:`room` is waited for between calls."""
        schema = data.schema if isinstance(data, pa.RecordBatch) else None
        count, start = len(data), 0
        while start < count:
            batch = self._open(schema)
            size = min(self._max_rows - batch.rows, count - start)
            batch.add(data, start, size)
            start += size
            self.taken += size
        self._waiting += count
        self._settle()

    def _open(self, schema: pa.Schema | None) -> MicroBatch:
        if self._batches and self._batches[-1].rows < self._max_rows:
            last = self._batches[-1]
            if last.schema is schema or (last.schema is not None and last.schema == schema):
                return last
        self._batches.append(MicroBatch(self.taken, asyncio.get_running_loop().time(), schema))
        return self._batches[-1]

    async def room(self) -> None:
        """Wait while the database is behind, and let others have the loop now and then."""
        if not self._room.is_set():
            await self._room.wait()
        elif self.taken - self._stepped >= STEP:
            self._stepped = self.taken
            await asyncio.sleep(0)

    def end(self) -> None:
        """No more rows will come."""
        self._ended = True
        self._settle()

    async def next(self, max_seconds: float) -> MicroBatch | None:
        """The oldest micro-batch as soon as it is due; None once the source has ended."""
        await self._arrived.wait()
        if not self._batches:
            return None
        # Not asyncio.timeout: entered past its deadline, it takes a cancellation of this task that
        # is still to be delivered (Ctrl-C comes while code runs) for its own, and swallows it.
        aged = asyncio.get_running_loop().call_at(
            self._batches[0].since + max_seconds, self._due.set
        )
        try:
            await self._due.wait()
        finally:
            aged.cancel()
        batch = self._batches.popleft()
        self._waiting -= batch.rows
        self._settle()
        return batch

    def _settle(self) -> None:
        batches = self._batches
        full = len(batches) > 1 or (bool(batches) and batches[0].rows >= self._max_rows)
        _set(self._arrived, bool(batches) or self._ended)
        _set(self._due, full or self._ended)
        _set(self._room, self._waiting < self._max_rows)


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()


class Stream:
    """One call of ``push_stream``: :meth:`run` reads and writes until the source ends.

    ``kept`` is what the notes on errors say of the rows that were written before.
    """

    def __init__(
        self,
        push: Push,
        view: str,
        source: AsyncIterable[Any],
        *,
        max_rows: int,
        max_seconds: float,
        progress: OnStream | None,
        kept: str,
    ) -> None:
        self._push = push
        self._source = source
        self._max_seconds = max_seconds
        self._progress = progress
        self._kept = kept
        self._waiting = Waiting(max_rows)
        self._failure: Exception | None = None  # of the source
        self._began = time.perf_counter()
        self._report = StreamReport(view)

    async def run(self) -> StreamReport:
        """Write all that the source gives, and report it.

        An error of the source is raised once the rows before it are written; cancelling drops
        the rows that wait. Either way the source is closed when this ends.
        """
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(), name="featurestore push_stream: source")
            try:
                while (batch := await self._waiting.next(self._max_seconds)) is not None:
                    await self._write(batch)
            except Exception as error:  # noqa: BLE001 - raised below: a group would wrap it
                failure = error
            finally:
                reader.cancel()
        if failure is None:
            failure = self._failure
        elif self._failure is not None:
            failure.add_note(f"The source had failed already: {type(self._failure).__name__}.")
        if failure is not None:
            failure.add_note(self._note())
            raise failure
        return replace(self._report, seconds=time.perf_counter() - self._began)

    def _note(self) -> str:
        done = self._report
        if not done.batches:
            return f"Nothing of the stream into {done.view!r} was written before that."
        rejected = f" ({_rows(done.rows_rejected)} set aside)" if done.rows_rejected else ""
        plural = "" if done.batches == 1 else "es"
        return (
            f"Written before that: {_rows(done.rows_written)}{rejected} of the stream into "
            f"{done.view!r}, in {done.batches:,} micro-batch{plural}; {self._kept}."
        )

    # --- reading --------------------------------------------------------------------------

    async def _read(self) -> None:
        """Take what the source gives until it ends, fails or is no longer wanted.

        The source is closed in the task that has read it: timeouts and groups of tasks inside
        it belong to that task.
        """
        iterator: AsyncIterator[Any] | None = None
        try:
            iterator = aiter(self._source)
            async for item in iterator:
                await self._take(item)
                if _is_cancelled():  # by a source that goes on all the same
                    break
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            # A task that the source waits for was cancelled: nobody meant this stream.
            self._failure = SourceError("The source of the stream was cancelled from within.")
            self._failure.__cause__ = error
        except Exception as error:  # noqa: BLE001 - raised by run(), or told there
            if _is_cancelled():
                _tell(error)
            else:
                self._failure = error
        finally:
            try:
                await _close(iterator)
            finally:
                self._waiting.end()

    async def _take(self, item: Any) -> None:
        """One item of the source into the buffer, piece by piece."""
        waiting = self._waiting
        if isinstance(item, Mapping):
            waiting.add([dict(item)])  # a copy: the source may use the same mapping again
        elif isinstance(item, pa.RecordBatch):
            waiting.add(item)
        elif is_arrow(item):
            batches = await asyncio.to_thread(_open_arrow, item, waiting.taken)
            while (batch := await asyncio.to_thread(_next_batch, batches)) is not None:
                waiting.add(batch)
                await waiting.room()
        elif isinstance(item, Collection) and not isinstance(item, str | bytes | bytearray):
            rows = iter(item)
            while piece := list(itertools.islice(rows, STEP)):
                waiting.add([dict(row) if isinstance(row, Mapping) else row for row in piece])
                await waiting.room()
        else:
            raise SchemaMismatchError(
                f"A stream gives rows (mappings), lists of rows or Arrow batches; after "
                f"{_rows(waiting.taken)} this one gave {type(item).__name__}."
            )
        await waiting.room()

    # --- writing --------------------------------------------------------------------------

    async def _write(self, batch: MicroBatch, count: int | None = None) -> None:
        try:
            load = await self._push(await batch.content(count))
        except InvalidRowsError as error:
            # Where the stream stops must not hang on how it happened to be cut.
            good = min(bad.row for bad in error.rows)
            if good:
                await self._write(batch, good)
            last = batch.first + batch.rows - 1
            raise InvalidRowsError(
                f"rows {batch.first + good:,} to {last:,} of the stream (view "
                f"{self._report.view!r})",
                [InvalidRow(batch.first + bad.row, bad.reason) for bad in error.rows],
                count=error.count,
            ) from None
        except SchemaMismatchError as error:
            error.add_note(
                f"This is the micro-batch of {_rows(batch.rows)} that begins with row "
                f"{batch.first:,} of the stream; nothing of it was kept."
            )
            raise
        done = self._report
        self._report = replace(
            done,
            batches=done.batches + 1,
            rows_written=done.rows_written + load.rows_written,
            rows_rejected=done.rows_rejected + load.rows_rejected,
            rows_future=done.rows_future + load.rows_future,
            first_load_id=done.first_load_id if done.batches else load.load_id,
            last_load_id=load.load_id,
            seconds=time.perf_counter() - self._began,
        )
        if self._progress is not None:
            self._progress(self._report)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close(iterator: AsyncIterator[Any] | None) -> None:
    """End a source that can be ended."""
    close = getattr(iterator, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except Exception as error:  # noqa: BLE001 - it must not hide why the source is ended
        _tell(error)
    except BaseExceptionGroup as group:
        # A task group inside the source wraps the GeneratorExit that ends it.
        if (rest := group.split(GeneratorExit)[1]) is not None:
            raise rest from None


def _tell(error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "closing the source of push_stream failed", "exception": error}
    )


def _open_arrow(item: Any, taken: int) -> Iterator[pa.RecordBatch]:
    try:
        return iter(pa.RecordBatchReader.from_stream(item))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(
            f"After {_rows(taken)} the stream gave a {type(item).__name__} that is no Arrow "
            f"stream: {error}"
        ) from error


def _next_batch(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"An Arrow stream within the stream broke off: {error}") from error


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
