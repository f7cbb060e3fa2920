"""A DuckDB for the time of one call: bounded in memory, off the loop, stopped when cancelled."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from featurestore.errors import FeatureStoreError, StoreUnavailableError
from featurestore.storage.waiting import in_thread, stoppable, uninterrupted
from featurestore.training.memory import Memory
from featurestore.training.spool import place, spilling

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")

_FULL = ("No space left", "Could not write", "failed to offload", "max_temp_directory")
"""What DuckDB says where its files cannot be written, or would take more than they may."""


@asynccontextmanager
async def temporary_folder() -> AsyncGenerator[Path, None]:
    made: list[Path] = []

    def make() -> None:
        with spilling():
            made.append(Path(tempfile.mkdtemp(prefix="featurestore-")))

    try:
        await in_thread(make)
        yield made[0]
    finally:
        for folder in made:  # there is one although whoever asked for it was cancelled
            await uninterrupted(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


class Database:
    """A DuckDB of one call. Its work is done in threads, and stops where its caller is
    cancelled."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, threads: int) -> None:
        self.connection = connection
        self.threads = threads

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, memory: Memory) -> AsyncGenerator[Database, None]:
        opened: list[duckdb.DuckDBPyConnection] = []

        def connect() -> None:
            import duckdb

            connection = duckdb.connect(
                config={
                    "memory_limit": f"{memory.engine // 1024} KiB",
                    "temp_directory": str(folder),
                    "threads": memory.threads,
                    "preserve_insertion_order": False,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                }
            )
            opened.append(connection)
            connection.execute("SET TimeZone = 'UTC'")

        try:
            await in_thread(_translated, connect)
            yield cls(opened[0], memory.threads)
        finally:
            for connection in opened:
                await uninterrupted(asyncio.to_thread(connection.close))

    async def use_one_thread(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Leave all of the memory to one thread."""
        await self.run(lambda: cursor.execute("SET threads = 1"), cursor)
        self.threads = 1

    async def run(
        self, call: Callable[[], T], connection: duckdb.DuckDBPyConnection | None = None
    ) -> T:
        """``call`` in a thread, on the first connection or another; DuckDB's errors as ours."""

        async def stop() -> None:
            (connection or self.connection).interrupt()

        return await stoppable(asyncio.to_thread(_translated, call), stop)


def _translated(call: Callable[[], T]) -> T:
    import duckdb

    try:
        return call()
    except (duckdb.Error, OSError) as error:
        raise _broken_off(error) from error


def _broken_off(error: Exception) -> FeatureStoreError:
    text = str(error)
    first = text.partition("\n")[0]
    if any(one in text for one in _FULL) or type(error).__name__ == "OutOfMemoryException":
        return StoreUnavailableError(
            f"The join ran out of room: {first} Make room in {place()}, name another folder by "
            f"TMPDIR, or allow more memory by memory_limit."
        )
    return FeatureStoreError(f"DuckDB could not carry out the join: {first}")
