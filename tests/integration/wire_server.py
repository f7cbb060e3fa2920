"""A server on a socket that answers as a test wants: late, wrong, or not at all.

::

    async with WireServer(answer) as server:
        client = AsyncClient(server.url)

``answer(request)`` gives a :class:`Reply` or a :class:`Do`. It is no HTTP server for anything
else: one request after the other per connection, bodies by their Content-Length.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from featurestore.wire.text import dumps, loads


class Do(enum.Enum):
    """What is done in place of an answer."""

    CUT = enum.auto()  # the connection ends
    RESET = enum.auto()  # and the client is told so by a reset
    HANG = enum.auto()  # nothing comes, and the connection stays
    HALF = enum.auto()  # half of an answer comes, then the connection ends


@dataclass(frozen=True)
class Request:
    """A request as it came; ``number`` counts from 1, ``connection`` too."""

    number: int
    connection: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return loads(self.body)


@dataclass(frozen=True)
class Reply:
    """An answer; ``body`` other than bytes goes as JSON."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The answer as it goes over the wire."""
        body, kind = self.body, "text/html"
        if not isinstance(body, bytes):
            body, kind = dumps(body), "application/json"
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} Status", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


Answer = Callable[[Request], "Reply | Do"]


class WireServer:
    """It runs in the test's own loop; ``requests`` has all that came."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.url = ""
        self.pause = 0.0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while await self._one(number, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the test ends
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(
        self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {}
        for line in filter(None, head[1:]):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(len(self.requests) + 1, connection, method, path, headers, body)
        self.requests.append(request)
        await asyncio.sleep(self.pause)
        answer = self.answer(request)
        match answer:
            case Do.CUT:
                return False
            case Do.RESET:
                writer.transport.abort()
                return False
            case Do.HANG:
                await reader.read()  # until the client leaves
                return False
            case Do.HALF:
                content = Reply({"views": ["x" * 100]}).content
                writer.write(content[: len(content) - 50])
                await writer.drain()
                return False
        writer.write(answer.content)
        await writer.drain()
        return True
