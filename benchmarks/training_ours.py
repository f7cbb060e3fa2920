"""The store's own training sets for `training.py`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi  # noqa: F401 - what engines import later is there before
import adbc_driver_sqlite.dbapi  # noqa: F401 - the same
import duckdb  # noqa: F401 - the same
import pyarrow.parquet as pq
from training_data import FEATURES, view_of
from training_ways import NotAvailable, Way

import featurestore as fs


async def load(url: str, history: Path) -> None:
    """The history's file, or its folder's files, into the store."""
    view = view_of(history)
    async with fs.FeatureStore(url) as store:
        await store.apply(view)
        await store.ingest(view)


class Ours(Way):
    """`get_historical_features` to an Arrow table. ``options`` are the call's own."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        view = view_of(self.history)
        self.asked = [view[FEATURES]]
        async with fs.FeatureStore(self.url) as self.store:
            if self.options.get("read_from") == "source":
                await self.store.apply(view)  # into a database without a row of it
            self._check()
            try:
                yield
            except fs.DefinitionError as error:  # of an engine that is not known, or not installed
                raise NotAvailable(str(error)) from error

    def _check(self) -> None:
        known = inspect.signature(self.store.get_historical_features).parameters
        for name in self.options:
            if name not in known:
                raise NotAvailable(f"get_historical_features has no {name}=")

    async def call(self, ready: Any) -> Any:
        options: Any = self.options
        training = await self.store.get_historical_features(ready, self.asked, **options)
        return training.to_arrow()

    async def warm(self, ready: Any) -> None:
        """By both engines where the choice is the store's: few rows would warm one alone."""
        await self.call(ready)
        if self.options.get("engine") == "auto" and "read_from" not in self.options:
            options: Any = {**self.options, "engine": "duckdb"}
            await self.store.get_historical_features(ready, self.asked, **options)


class Streamed(Ours):
    """`stream_historical_features` from one Parquet file to another, never whole in memory."""

    from_file = True

    async def call(self, ready: Any) -> Any:
        path = self.folder / "training.parquet"
        options: Any = self.options
        stream = self.store.stream_historical_features(ready, self.asked, **options)
        writer: pq.ParquetWriter | None = None
        try:
            async for batch in stream:
                if writer is None:
                    writer = pq.ParquetWriter(path, batch.schema, compression="zstd")
                await asyncio.to_thread(writer.write_batch, batch)
        finally:
            if writer is not None:
                await asyncio.to_thread(writer.close)
        return path


OURS: dict[str, type[Way]] = {"ours": Ours, "streamed": Streamed}
