"""Byte ranges of a file, read without blocking the loop, and a file made of such ranges.

The reader is the small contract behind which other places can stand: a size, and bytes from an
offset.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import aiofiles
import aiofiles.os
import aiofiles.tempfile

from featurestore.errors import SourceError
from featurestore.storage.waiting import uninterrupted

JOIN_INLINE = 1024 * 1024
"""Bytes that are copied on the loop, in some 0.1 ms; more of them in a thread."""


class RangeReader(Protocol):
    """Bytes of one file by offset. ``name`` is for messages, ``size`` in bytes."""

    name: str
    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; :class:`SourceError` where they are not."""

    async def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        """The bytes of several ranges (offset, length), by offset; perhaps side by side."""


class FileReader:
    """A local file through aiofiles. One read at a time."""

    def __init__(
        self, name: str, size: int, handle: aiofiles.threadpool.binary.AsyncBufferedReader
    ):
        self.name = name
        self.size = size
        self._handle = handle

    async def read(self, offset: int, length: int) -> bytes:
        try:
            await self._handle.seek(offset)
            data = await self._handle.read(length)
        except OSError as error:
            raise SourceError(f"{self.name}: {error.strerror or error}") from error
        if len(data) < length:
            raise SourceError(
                f"{self.name}: the file ends at byte {offset + len(data):,}, but should hold "
                f"{offset + length:,}. It is cut off, or was changed while it was read."
            )
        return data

    async def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        return {offset: await self.read(offset, length) for offset, length in ranges}


@asynccontextmanager
async def open_file(path: str) -> AsyncIterator[FileReader]:
    """Open a local file for reading ranges; :class:`SourceError` where it cannot be."""
    try:
        status = await aiofiles.os.stat(path)
        handle = await opened(lambda: aiofiles.open(path, "rb"))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    try:
        yield FileReader(path, status.st_size, handle)
    finally:
        await uninterrupted(handle.close())


async def opened(
    opening: Callable[[], Awaitable[aiofiles.threadpool.binary.AsyncBufferedReader]],
) -> aiofiles.threadpool.binary.AsyncBufferedReader:
    """An open file that is closed again where the caller is cancelled while a thread opens it."""

    async def open_it() -> aiofiles.threadpool.binary.AsyncBufferedReader:
        return await opening()

    task = asyncio.ensure_future(open_it())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:

        async def close_it() -> None:
            with suppress(OSError):
                await (await task).close()

        await uninterrupted(close_it())
        raise


@asynccontextmanager
async def temporary_copy(name: str, blocks: AsyncGenerator[bytes]) -> AsyncIterator[FileReader]:
    """``blocks`` in a temporary file, which is gone at the end of the block, however that comes.

    :class:`SourceError` where the file cannot be written.
    """
    async with AsyncExitStack() as stack:
        try:
            async with AsyncExitStack() as undone, aclosing(blocks):
                # It has no name in its folder: nothing stays of it, even when we are killed.
                handle = await opened(lambda: aiofiles.tempfile.TemporaryFile("w+b"))
                undone.push_async_callback(lambda: uninterrupted(handle.close()))
                size = 0
                async for block in blocks:
                    size += await handle.write(block)
                await handle.flush()
                stack.push_async_callback(undone.pop_all().aclose)
        except OSError as error:
            raise SourceError(
                f"{name}: a temporary copy cannot be written: {error.strerror or error}. TMPDIR "
                f"names another folder for it."
            ) from error
        yield FileReader(name, size, handle)


async def side_by_side(
    read: Callable[[int, int], Coroutine[None, None, bytes]],
    ranges: Sequence[tuple[int, int]],
    piece: int,
) -> dict[int, bytes]:
    """All of ``ranges`` by ``read`` calls of at most ``piece`` bytes, begun at once.

    The first error ends the others, and is raised as it is.
    """
    parts: dict[int, list[asyncio.Task[bytes]]] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for offset, length in ranges:
                end = offset + length
                parts[offset] = [
                    group.create_task(read(start, min(piece, end - start)))
                    for start in range(offset, end, piece)
                ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return {at: await joined([task.result() for task in tasks]) for at, tasks in parts.items()}


_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, asyncio.Semaphore]]
_slots = WeakKeyDictionary()


def shared_slots(place: str, requests: int) -> asyncio.Semaphore:
    """What limits the requests to one place (a host, a bucket) at a time, whoever makes them.

    All files that are read from there on this loop have it in common while one of them is open;
    a loop of another thread has its own.
    """
    of_loop = _slots.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return of_loop.setdefault(place, asyncio.Semaphore(requests))


async def joined(parts: Sequence[bytes]) -> bytes:
    """``b"".join``, in a thread where it takes long (there it lets go of the GIL)."""
    if sum(map(len, parts)) <= JOIN_INLINE:
        return b"".join(parts)
    return await asyncio.to_thread(b"".join, parts)
