"""One load: history, online, ledger and quarantine, in the transaction of its session."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import sqlalchemy as sa

from featurestore.errors import InvalidRow, InvalidRowsError, SourceError
from featurestore.ingest.ahead import ahead
from featurestore.ingest.budget import Budget
from featurestore.ingest.conform import Conformed, future, stamp
from featurestore.ingest.layout import Layout
from featurestore.ingest.newest import Newest, in_order
from featurestore.ingest.rejected import Rejected, as_json
from featurestore.reports import LoadReport
from featurestore.storage.dialect import BLOCK, Stage
from featurestore.storage.ledger import has_pending
from featurestore.storage.registry import RegisteredView
from featurestore.storage.rule import keys_written, take_online
from featurestore.storage.session import Session
from featurestore.storage.tables import key_index, load, quarantine

OnInvalid = Literal["raise", "quarantine"]

ROWS_SHOWN = 10
"""How many invalid rows an error lists."""

SMALL = 1_000
"""Up to this many rows their keys are looked up in history; above it the newest of each key are
found on the way in, unless older rows may have come due."""

CHUNK_ROWS = 131_072
"""Rows that are sorted together: in the order of its keys an index takes rows half as long again
as fast. Twice as many cost 40 MB more memory and are not faster."""

INLINE_ROWS = 100
"""Up to this many rows are prepared on the loop: a thread would cost more than the work."""

ANALYZE_ROWS = 50_000
"""A load of this many rows changes what the planner should know of the table."""

QUARANTINE_ROWS = 1_000
QUARANTINE_BYTES = 4 * 1024 * 1024
"""Rejected rows that are set aside at a time: as text they take some times as much."""


def blocks_for(rows: int | None) -> int:
    """How many blocks of arrivals to take for a load; without a row count, plenty."""
    return 4_096 if rows is None else max(1, -(-rows // BLOCK))


@dataclass(frozen=True)
class Begun:
    """A load as it begins: with nothing, or with what was committed of it earlier."""

    load_id: int
    started_at: dt.datetime
    rows_read: int = 0
    rows_written: int = 0
    rows_rejected: int = 0
    rows_future: int = 0
    future_until: dt.datetime | None = None


@dataclass(frozen=True)
class _Chunk:
    """Rows for history, and what is to move towards online once they are in."""

    rows: pa.Table | None
    newest: pa.Table | None
    rows_read: int  # of the source, up to its end


class Writer:
    """Writes one load's rows: :meth:`begin`, :meth:`write` once, :meth:`settle`, :meth:`finish`.

    Other loads of the view may be under way until :meth:`settle`, which waits for those that
    write to the same keys.
    """

    def __init__(
        self,
        session: Session,
        view: RegisteredView,
        *,
        kind: str,
        source: str,
        skew: dt.timedelta,
        on_invalid: OnInvalid,
        budget: Budget,
    ) -> None:
        self.session = session
        self.view = view
        self.layout = Layout(view.view)
        self.rows_read = self.rows_written = self.rows_rejected = self.rows_future = 0
        self._kind = kind
        self._source = source
        self._skew = skew
        self._on_invalid = on_invalid
        self._budget = budget
        self._future_until: dt.datetime | None = None
        self._recorded = False
        self._exhausted = False
        self._rejected: list[Sequence[Rejected]] = []
        self._shown: list[Rejected] = []
        self._few: pa.Table | None = None
        self._newest: Newest | None = None
        self._stage: Stage | None = None
        self._online_empty = False
        self._to_move: pa.Table | None = None
        self.on_stored: Callable[[int], None] = lambda rows: None
        self._clock = time.perf_counter()

    async def begin(
        self, rows: int | None, begun: Begun | None = None, *, total: int | None = None
    ) -> None:
        """Take the time and the arrivals, for ``rows`` rows at the most where that is known.

        ``begun`` is the load to go on with where earlier rows of it are there; ``total`` is how
        many rows its file has.
        """
        self._total = total
        dialect = self.session.dialect
        index = key_index(self.view.history)
        now, self._unindexed = await dialect.begin_load(self.session, index)
        blocks = blocks_for(rows)
        self._until = now + self._skew
        if begun is None:
            begun = Begun(await dialect.allocate(self.session, blocks), now)
        else:
            self._recorded = True
        self.load_id, self.started_at, self._begun = begun.load_id, begun.started_at, begun
        self.rows_read, self.rows_written = begun.rows_read, begun.rows_written
        self.rows_rejected, self.rows_future = begun.rows_rejected, begun.rows_future
        self._future_until = begun.future_until
        self._room = blocks * BLOCK
        self.first_arrival = self.load_id * BLOCK
        self._rows_stored = self.rows_read
        if rows is None or rows > SMALL:
            await self._expect_many()

    async def _expect_many(self) -> None:
        """Prepare to find the newest row of each key on the way in."""
        online, keys = self.view.online, self.view.view.join_keys
        if online is None or await has_pending(self.session, self.view.id):
            return
        self._newest = Newest(list(keys), self._until)
        self._stage = self.session.dialect.stage_online(
            self.session, online, keys, self.layout.stored
        )
        # The first load has the view to itself.
        any_row = sa.select(sa.literal(1)).select_from(online).limit(1)
        self._online_empty = (
            self._unindexed and (await self.session.execute(any_row)).first() is None
        )

    async def write(self, batches: AsyncIterator[Conformed]) -> None:
        """Put the rows that fit into history."""
        stored = self.layout.stored
        async with ahead(self._chunks(batches)) as chunks:
            # A COPY has its connection to itself: it ends where something else has to be written,
            # and the next one goes on with the chunk that follows.
            while not self._exhausted:
                await self.session.insert(self.view.history, self._copied(chunks), stored)
                await self._set_aside()
                await self._move_newest()

    async def settle(self) -> None:
        """Index what was the first load, and bring the keys online."""
        if not self._written_now:
            return
        if self._unindexed:
            await self.session.execute(sa.schema.CreateIndex(key_index(self.view.history)))
        await self._refresh_online()
        if self._written_now >= ANALYZE_ROWS:
            await self.session.dialect.analyze(self.session, self.view.history)

    @property
    def _written_now(self) -> int:
        return self.rows_written - self._begun.rows_written

    async def _chunks(self, batches: AsyncIterator[Conformed]) -> AsyncGenerator[_Chunk, None]:
        """Rows gathered, with their arrivals and times, in the order to store them."""
        gathered: list[pa.RecordBatch] = []
        rows = size = 0
        async for conformed in batches:
            self.rows_read += conformed.rows_read
            self.rows_rejected += len(conformed.rejected)
            self._keep(conformed.rejected)
            if self._refused:
                gathered, rows, size = [], 0, 0
                continue
            gathered.append(conformed.batch)
            rows += conformed.batch.num_rows
            size += conformed.batch.nbytes
            if rows >= CHUNK_ROWS or size >= self._budget.chunk_bytes or self._many_rejected:
                yield await self._prepared(gathered, rows, last=False)
                gathered, rows, size = [], 0, 0
        if self._written_now or rows:
            yield await self._prepared(gathered, rows, last=True)

    async def _prepared(self, gathered: list[pa.RecordBatch], rows: int, *, last: bool) -> _Chunk:
        first = self.first_arrival + self.rows_written
        self.rows_written += rows
        if self.rows_written > self._room:
            raise SourceError(
                f"{self._source} holds more than the {self._room:,} rows that this load has room "
                f"for."
            )
        if not rows:
            stored = None
        elif rows <= INLINE_ROWS:
            stored = self._prepare(gathered, first)
        else:
            stored = await asyncio.to_thread(self._prepare, gathered, first)
        newest = None
        if self._newest is not None and (last or self._newest.nbytes > self._budget.newest_bytes):
            newest = self._newest.take()
        return _Chunk(stored, newest, self.rows_read)

    def _prepare(self, gathered: list[pa.RecordBatch], first: int) -> pa.Table:
        rows = stamp(pa.Table.from_batches(gathered), self.layout, first, self.started_at)
        ahead_of_clock, latest = future(rows, self._until)
        self.rows_future += ahead_of_clock
        if latest is not None:
            self._future_until = max(latest, self._future_until or latest)
        keys = list(self.view.view.join_keys)
        many = rows.num_rows > SMALL
        ordered = many and self.session.dialect.sorts_rows and not self._unindexed
        if ordered:
            rows = in_order(rows, keys)
        if self._newest is not None:
            self._newest.add(rows, ordered=ordered)
        elif not many:
            self._few = rows
        if many:
            # Arrow keeps what is freed for the thread that freed it: with several threads at work
            # that came to 100 MB.
            pa.default_memory_pool().release_unused()
        return rows

    async def _copied(self, chunks: AsyncIterator[_Chunk]) -> AsyncIterator[pa.RecordBatch]:
        async for chunk in chunks:
            if chunk.rows is not None:
                for batch in chunk.rows.to_batches():
                    yield batch
                    self._rows_stored += batch.num_rows
                    self.on_stored(self._rows_stored)
            self._rows_stored = chunk.rows_read  # those that were rejected, too
            self._to_move = chunk.newest
            if self._to_move is not None or self._many_rejected:
                return
        self._exhausted = True
        if self._refused:
            shown = [InvalidRow(one.row, one.reason) for one in self._shown]
            where = f"{self._source} (view {self.view.name!r})"
            count = self.rows_rejected - self._begun.rows_rejected
            raise InvalidRowsError(where, shown, count=count)

    @property
    def _refused(self) -> bool:
        """Whether nothing will be kept, and the rest is read for what is wrong with it."""
        return self._on_invalid == "raise" and self.rows_rejected > self._begun.rows_rejected

    def _keep(self, rejected: Sequence[Rejected]) -> None:
        if not rejected:
            return
        if self._on_invalid == "raise":  # a few are shown
            self._shown += rejected[: ROWS_SHOWN - len(self._shown)]
        else:
            self._rejected.append(rejected)

    @property
    def _many_rejected(self) -> bool:
        size = sum(map(_size_of, self._rejected))
        return sum(map(len, self._rejected)) >= QUARANTINE_ROWS or size >= self._budget.chunk_bytes

    async def _set_aside(self) -> None:
        if not self._rejected:
            return
        if not self._recorded:  # quarantined rows point at their load
            await self._record(None, None)
        waiting, self._rejected = self._rejected, []
        for rejected in waiting:
            fitting = QUARANTINE_BYTES * len(rejected) // max(_size_of(rejected), 1)
            step = max(1, min(QUARANTINE_ROWS, fitting))
            for start in range(0, len(rejected), step):
                rows = await asyncio.to_thread(self._quarantined, rejected, start, start + step)
                await self.session.execute(quarantine.insert(), rows)

    def _quarantined(
        self, rejected: Sequence[Rejected], start: int, stop: int
    ) -> list[dict[str, Any]]:
        return [
            {
                "load_id": self.load_id,
                "row": one.row,
                "view_id": self.view.id,
                "reason": one.reason,
                "entity": None if one.entity is None else entity_text(one.entity),
                "row_values": one.values,
            }
            for one in rejected[start:stop]
        ]

    async def _move_newest(self) -> None:
        """Move the newest rows of keys into the database, where there are some to move."""
        rows, self._to_move = self._to_move, None
        if rows is None or not rows.num_rows or self._stage is None:
            return
        if self._online_empty:
            await self._stage.fill(rows)
            self._online_empty = False
        else:
            await self._stage.add(rows)

    async def _refresh_online(self) -> None:
        online = self.view.online
        if online is None:
            return
        if self._stage is not None:
            await self._stage.finish()
            # Rows of a load that was committed meanwhile may have come due since.
            if not await has_pending(self.session, self.view.id):
                return
        dialect, keys, history = self.session.dialect, self.view.view.join_keys, self.view.history
        if self._few is not None and self._few.num_rows == self._written_now:
            of = dialect.keys_arrived(history, keys, self._few)
        else:
            span = (self.first_arrival + self._begun.rows_written, self._last_arrival)
            of = keys_written(history, list(keys), *span)
        await self.session.execute(take_online(dialect, history, online, keys, of, self._until))

    @property
    def _last_arrival(self) -> int:
        return self.first_arrival + self.rows_written - 1

    async def finish(
        self, footer_hash: str | None = None, content_hash: str | None = None
    ) -> LoadReport:
        """Enter the load in the ledger and report it."""
        await self._record(footer_hash, content_hash)
        begun = self._begun
        return LoadReport(
            load_id=self.load_id,
            source=self._source,
            skipped=False,
            rows_read=self.rows_read - begun.rows_read,
            rows_written=self.rows_written - begun.rows_written,
            rows_rejected=self.rows_rejected - begun.rows_rejected,
            rows_future=self.rows_future - begun.rows_future,
            seconds=time.perf_counter() - self._clock,
            rows_before=begun.rows_read,
        )

    async def _record(self, footer_hash: str | None, content_hash: str | None) -> None:
        values = {
            "footer_hash": footer_hash,
            "content_hash": content_hash,
            "first_arrival": self.first_arrival if self.rows_written else None,
            "last_arrival": self._last_arrival if self.rows_written else None,
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "rows_rejected": self.rows_rejected,
            "rows_future": self.rows_future,
            "rows_total": self._total,
            "future_until": self._future_until,
            "finished_at": await self.session.dialect.now(self.session),
        }
        if self._recorded:
            await self.session.execute(load.update().where(load.c.id == self.load_id), values)
            return
        first = {
            "id": self.load_id,
            "view_id": self.view.id,
            "kind": self._kind,
            "source": self._source,
            "started_at": self.started_at,
        }
        await self.session.execute(load.insert(), {**first, **values})
        self._recorded = True


def entity_text(values: list[Any]) -> str:
    """A key as the quarantine keeps it, for erasure to find."""
    return json.dumps([as_json(value) for value in values])


def _size_of(rejected: Sequence[Rejected]) -> int:
    """The memory that rejected rows of a batch take; those of mappings are the caller's."""
    return int(getattr(rejected, "nbytes", 0))
