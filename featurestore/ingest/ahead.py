"""Working ahead: one stage of a pipeline runs while the next has its hands full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from featurestore.storage.waiting import uninterrupted

T = TypeVar("T")


@asynccontextmanager
async def ahead(source: AsyncGenerator[T, None], depth: int = 1) -> AsyncIterator[AsyncIterator[T]]:
    """Run ``source`` in a task of its own, at most ``depth`` items ahead of who reads it.

    The task ends with the block, and the source is closed: its errors reach the reader as they
    are.
    """
    queue: asyncio.Queue[T | _End] = asyncio.Queue(depth)

    async def fill() -> None:
        try:
            async for item in source:
                await queue.put(item)
            await queue.put(_End(None))
        except Exception as error:  # noqa: BLE001 - raised again where the items are read
            await queue.put(_End(error))
        except asyncio.CancelledError as error:
            if task.cancelling():
                raise
            # A task that the source waits for was cancelled: the reader must not wait for ever.
            await queue.put(_End(error))
        finally:
            await source.aclose()

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
        await uninterrupted(_end_of(task), seconds=None)


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


@dataclass(frozen=True)
class _End:
    """The end of a source, by itself or by an error."""

    error: BaseException | None
