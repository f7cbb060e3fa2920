"""One measurement of `training.py`, in a process of its own: what is called how often, and what of
it is timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from memory import peak
from training_answer import digests

WARM_ROWS = 100
"""Entity rows of the call before the one that counts: connections are open, plans made."""

REPEATED_SECONDS = 1.0
MOST_CALLS = 21
"""Calls are repeated until they took so long together, or so many were made; the median counts."""


class NotAvailable(Exception):
    """What is to be measured does not exist here; the message says what."""


class Way:
    """A way from entity rows to a training set.

    ``entities`` is the entity table's file, ``history`` the file or folder of the history, ``url``
    the database, ``folder`` a place for files. Only :meth:`call` is timed.
    """

    from_file: ClassVar[bool] = False
    """Whether the call takes the entity table's file: the process never holds the table, and there
    is no call for few rows before the one that counts."""

    def __init__(
        self, url: str, history: Path, entities: Path, folder: Path, options: dict[str, Any]
    ) -> None:
        self.url = url
        self.history = history
        self.entities = entities
        self.folder = folder
        self.options = options

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connections, and whatever else stays from call to call."""
        yield

    def ready(self, entities: Any) -> Any:
        """The entity table as the call takes it."""
        return str(self.entities) if self.from_file else entities

    async def call(self, ready: Any) -> Any:
        """What is measured: from the entity table to the answer."""
        raise NotImplementedError

    async def warm(self, ready: Any) -> None:
        """A call with few rows, before the one that counts: it imports what that needs."""
        await self.call(ready)

    def batches(self, entities: Any, answer: Any) -> Iterable[pa.RecordBatch]:
        """The answer's rows with the columns of the entity table, to be compared. Of a way from
        file to file, the answer is the file's path."""
        if not self.from_file:
            yield from answer.to_batches()
            return
        with pq.ParquetFile(answer) as file:
            yield from file.iter_batches()


async def measured(way: Way) -> dict[str, Any]:
    """Make the calls; seconds, peak of memory, and what the answer is."""
    async with way.opened():
        table = pq.read_table(way.entities) if not way.from_file else None
        if table is not None:
            await way.warm(way.ready(table.slice(0, WARM_ROWS)))
        ready = way.ready(table)
        seconds: list[float] = []
        while not seconds or (sum(seconds) < REPEATED_SECONDS and len(seconds) < MOST_CALLS):
            answer = None  # two of them at once are nobody's need
            gc.collect()
            began = time.perf_counter()
            answer = await way.call(ready)
            seconds.append(time.perf_counter() - began)
        megabytes = peak() / 1e6
    return {
        "rows": pq.read_metadata(way.entities).num_rows,
        "seconds": statistics.median(seconds),
        "megabytes": megabytes,
        "digests": digests(way.batches(table, answer)),
    }
