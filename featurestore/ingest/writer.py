"""One load: history, online, ledger and quarantine, in the transaction of its session."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import pyarrow as pa
import sqlalchemy as sa

from featurestore.errors import InvalidRow, InvalidRowsError, SourceError
from featurestore.ingest.conform import Conformed, Rejected, as_json, future, stamp
from featurestore.ingest.layout import Layout
from featurestore.reports import LoadReport
from featurestore.storage.dialect import BLOCK
from featurestore.storage.engine import Session
from featurestore.storage.ledger import has_pending
from featurestore.storage.registry import RegisteredView
from featurestore.storage.rule import keys_written, settle_conflict, take_online
from featurestore.storage.tables import key_index, load, quarantine

OnInvalid = Literal["raise", "quarantine"]

ROWS_SHOWN = 10
"""How many invalid rows an error lists."""

SMALL = 1_000
"""Up to this many rows their keys are looked up in history one by one; above it the load's rows
are sorted by key first, unless older rows may have come due."""

ANALYZE_ROWS = 50_000
"""A load of this many rows changes what the planner should know of the table."""

QUARANTINE_ROWS = 1_000


def blocks_for(rows: int | None) -> int:
    """How many blocks of arrivals to take for a load; without a row count, plenty."""
    return 4_096 if rows is None else max(1, -(-rows // BLOCK))


class Writer:
    """Writes one load's rows. :meth:`begin`, :meth:`write` once, :meth:`finish`."""

    def __init__(
        self,
        session: Session,
        view: RegisteredView,
        *,
        kind: str,
        source: str,
        skew: dt.timedelta,
        on_invalid: OnInvalid,
    ) -> None:
        self.session = session
        self.view = view
        self.layout = Layout(view.view)
        self.rows_read = self.rows_written = self.rows_rejected = self.rows_future = 0
        self._kind = kind
        self._source = source
        self._skew = skew
        self._on_invalid = on_invalid
        self._future_until: dt.datetime | None = None
        self._recorded = False
        self._exhausted = False
        self._rejected: list[Rejected] = []
        self._clock = time.perf_counter()

    async def begin(self, rows: int | None) -> None:
        """Take the time and the arrivals, for ``rows`` rows at the most where that is known."""
        dialect = self.session.dialect
        index = key_index(self.view.history)
        self.started_at, self._unindexed = await dialect.begin_load(self.session, index)
        blocks = blocks_for(rows)
        self.load_id = await dialect.allocate(self.session, blocks)
        self._room = blocks * BLOCK
        self.first_arrival = self.load_id * BLOCK
        self._until = self.started_at + self._skew

    async def write(self, batches: AsyncIterator[Conformed]) -> None:
        """Put the rows that fit into history and bring their keys online."""
        stored = self.layout.stored
        # A COPY has its connection to itself: it ends where rejected rows have to be set aside.
        while not self._exhausted:
            await self.session.insert(self.view.history, self._stamped(batches), stored)
            await self._set_aside()
        if self._unindexed and self.rows_written:
            await self.session.execute(sa.schema.CreateIndex(key_index(self.view.history)))
        if self.rows_written:
            await self._refresh_online()
        if self.rows_written >= ANALYZE_ROWS:
            await self.session.dialect.analyze(self.session, self.view.history)

    async def _stamped(self, batches: AsyncIterator[Conformed]) -> AsyncIterator[pa.RecordBatch]:
        async for conformed in batches:
            self.rows_read += conformed.rows_read
            self.rows_rejected += len(conformed.rejected)
            self._keep(conformed.rejected)
            if self.rows_rejected and self._on_invalid == "raise":
                continue  # nothing will be kept; the rest is read for what is wrong with it
            batch = conformed.batch
            ahead, latest = future(batch, self._until)
            self.rows_future += ahead
            if latest is not None:
                self._future_until = max(latest, self._future_until or latest)
            first = self.first_arrival + self.rows_written
            self.rows_written += batch.num_rows
            if self.rows_written > self._room:
                raise SourceError(f"{self._source} holds more rows than it said at first.")
            yield stamp(batch, self.layout, first, self.started_at)
            if len(self._rejected) >= QUARANTINE_ROWS:
                return
        self._exhausted = True
        if self.rows_rejected and self._on_invalid == "raise":
            shown = [InvalidRow(one.row, one.reason) for one in self._rejected]
            where = f"{self._source} (view {self.view.name!r})"
            raise InvalidRowsError(where, shown, count=self.rows_rejected)

    def _keep(self, rejected: tuple[Rejected, ...]) -> None:
        room = len(rejected)
        if self._on_invalid == "raise":  # a few are shown
            room = ROWS_SHOWN - len(self._rejected)
        self._rejected += rejected[:room]

    async def _set_aside(self) -> None:
        if not self._rejected:
            return
        if not self._recorded:  # quarantined rows point at their load
            await self._record(None, None)
        rejected, self._rejected = self._rejected, []
        for start in range(0, len(rejected), QUARANTINE_ROWS):
            piece = rejected[start : start + QUARANTINE_ROWS]
            rows = await asyncio.to_thread(self._quarantined, piece)
            await self.session.execute(quarantine.insert(), rows)

    def _quarantined(self, rejected: list[Rejected]) -> list[dict[str, Any]]:
        return [
            {
                "load_id": self.load_id,
                "row": one.row,
                "view_id": self.view.id,
                "reason": one.reason,
                "entity": None if one.entity is None else entity_text(one.entity),
                "row_values": one.values,
            }
            for one in rejected
        ]

    @property
    def _last_arrival(self) -> int:
        return self.first_arrival + self.rows_written - 1

    async def _refresh_online(self) -> None:
        online = self.view.online
        if online is None:
            return
        dialect, keys = self.session.dialect, self.view.view.join_keys
        span = (self.first_arrival, self._last_arrival)
        if self.rows_written > SMALL and not await has_pending(self.session, self.view.id):
            fast = dialect.refresh_online(self.view.history, online, list(keys), *span, self._until)
            if fast is not None:
                await self.session.execute(settle_conflict(fast, online, keys, replace=False))
                return
        of = keys_written(self.view.history, list(keys), *span)
        await self.session.execute(
            take_online(dialect, self.view.history, online, keys, of, self._until)
        )

    async def finish(
        self, footer_hash: str | None = None, content_hash: str | None = None
    ) -> LoadReport:
        """Enter the load in the ledger and report it."""
        await self._record(footer_hash, content_hash)
        return LoadReport(
            load_id=self.load_id,
            source=self._source,
            skipped=False,
            rows_read=self.rows_read,
            rows_written=self.rows_written,
            rows_rejected=self.rows_rejected,
            rows_future=self.rows_future,
            seconds=time.perf_counter() - self._clock,
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
