"""Byte ranges of a file, read without blocking the loop, and a file made of such ranges.

The reader is the small contract behind which other places can stand: a size, and bytes from an
offset. What was read is handed to pyarrow as a :class:`Ranges`, which reads nothing by itself.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import aiofiles
import aiofiles.os

from featurestore.errors import SourceError


class RangeReader(Protocol):
    """Bytes of one file by offset. ``name`` is for messages, ``size`` in bytes."""

    name: str
    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; :class:`SourceError` where they are not."""


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


@asynccontextmanager
async def open_file(path: str) -> AsyncIterator[FileReader]:
    """Open a local file for reading ranges; :class:`SourceError` where it cannot be."""
    try:
        status = await aiofiles.os.stat(path)
        handle = await _opened(path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    try:
        yield FileReader(path, status.st_size, handle)
    finally:
        await handle.close()


async def _opened(path: str) -> aiofiles.threadpool.binary.AsyncBufferedReader:
    """An open file that is closed again where the caller is cancelled while a thread opens it."""

    async def opening() -> aiofiles.threadpool.binary.AsyncBufferedReader:
        return await aiofiles.open(path, "rb")

    task = asyncio.ensure_future(opening())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await (await task).close()
        raise


class Ranges(io.RawIOBase):
    """A file of ``size`` bytes of which only some ranges are there, as pyarrow reads files.

    Reading outside of them is an error: it would mean I/O where none may be.
    """

    def __init__(self, size: int, ranges: dict[int, bytes]) -> None:
        self._size = size
        self._ranges = sorted(ranges.items())
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        start, self._position = self._position, end
        if start >= end:
            return b""
        for offset, data in self._ranges:
            if offset <= start and end <= offset + len(data):
                return data[start - offset : end - offset]
        raise OSError(f"bytes {start} to {end} lie outside of the column chunks")

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
