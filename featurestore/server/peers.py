"""The other workers of a server: each gives its figures on a socket in a folder of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from featurestore.server.metrics import Family
from featurestore.wire.text import dumps, loads

SECONDS = 1.0
"""How long a worker is waited for: a scrape shall not fail for one that hangs."""

Figures = Callable[[], Awaitable[list[Family]]]


class Peers:
    """Worker ``number`` of ``count``, whose sockets are in ``folder``."""

    def __init__(self, folder: Path, number: int, count: int) -> None:
        self.number = number
        self._folder = folder
        self._count = count
        self._server: asyncio.Server | None = None

    async def open(self, figures: Figures) -> None:
        """Begin to answer the others with what ``figures`` gives."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(SECONDS):
                    writer.write(dumps(await figures()))
                    await writer.drain()
            except (OSError, TimeoutError):
                pass  # who asked has gone
            finally:
                writer.close()

        # A worker that died has left its socket behind.
        await asyncio.to_thread(self._path(self.number).unlink, missing_ok=True)
        path = str(self._path(self.number))
        self._server = await asyncio.start_unix_server(answer, path)

    async def ask_others(self) -> dict[int, list[Family] | None]:
        """The figures of the other workers; None of one that does not answer."""
        others = [number for number in range(self._count) if number != self.number]
        answers = await asyncio.gather(*map(self._ask, others))
        return dict(zip(others, answers, strict=True))

    async def _ask(self, number: int) -> list[Family] | None:
        with suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._path(number)))
                try:
                    return cast(list[Family], loads(await reader.read(-1)))
                finally:
                    writer.close()
        return None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.sock"

    async def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await self._server.wait_closed()
