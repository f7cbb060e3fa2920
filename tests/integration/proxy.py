"""A proxy in front of a PostgreSQL server that reads along, and drops, stalls or cuts on demand.

::

    async with Proxy(server_url) as proxy:
        proxy.on_message = lambda message: Do.CUT if message.kind == "CopyData" else Do.FORWARD
        store = FeatureStore(proxy.url)

It runs in the test's own loop. Messages are passed on one by one, in both directions, and the
callback is asked about each before it is.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_SSL, _GSS, _CANCEL = 80877103, 80877104, 80877102

_CLIENT = {
    b"Q": "Query",
    b"P": "Parse",
    b"B": "Bind",
    b"D": "Describe",
    b"E": "Execute",
    b"S": "Sync",
    b"C": "Close",
    b"H": "Flush",
    b"d": "CopyData",
    b"c": "CopyDone",
    b"f": "CopyFail",
    b"X": "Terminate",
    b"p": "Password",
}
_SERVER = {
    b"C": "CommandComplete",
    b"Z": "ReadyForQuery",
    b"G": "CopyInResponse",
    b"E": "ErrorResponse",
    b"D": "DataRow",
    b"1": "ParseComplete",
    b"2": "BindComplete",
}


class Do(enum.Enum):
    """What becomes of a message."""

    FORWARD = enum.auto()
    DROP = enum.auto()  # it is swallowed, what follows is not
    STALL = enum.auto()  # from here on nothing goes either way, for ever
    CUT = enum.auto()  # the connection ends before it
    CUT_AFTER = enum.auto()  # the connection ends when the message has been passed on


@dataclass(frozen=True)
class Message:
    """A message on its way: ``number`` counts those of all connections from 1."""

    number: int
    connection: int
    to_server: bool
    kind: str
    content: bytes

    @property
    def text(self) -> str:
        """Its text: the statement of a Query or Parse, the tag of a CommandComplete."""
        parts = self.content.split(b"\0")
        return parts[1 if self.kind == "Parse" else 0].decode(errors="replace")

    @property
    def is_commit(self) -> bool:
        """Whether this asks for a COMMIT."""
        return self.to_server and self.kind == "Query" and self.text.startswith("COMMIT")

    @property
    def is_commit_answer(self) -> bool:
        """Whether this says that a COMMIT is done."""
        return not self.to_server and self.kind == "CommandComplete" and self.text == "COMMIT"


Hook = Callable[[Message], "Do | Awaitable[Do]"]


class Proxy:
    """Listens on a port of loopback for as long as its block, and hands on to ``url``'s server."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self.on_message: Hook | None = None
        self.refuses = False  # new connections are closed at once
        self.seen = 0
        self.opened = 0

    @property
    def url(self) -> str:
        """The URL of the database behind the proxy; its password is ``secret``."""
        port = self._server.sockets[0].getsockname()[1]
        netloc = f"{self._upstream.username}:secret@127.0.0.1:{port}"
        return urlunsplit(self._upstream._replace(netloc=netloc))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End all connections, with a reset."""
        for connection in list(self._connections):
            connection.cut()

    def forward(self) -> None:
        """Disturb nothing from here on; what was stalled stays so."""
        self.on_message = None
        self.refuses = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuses:
            writer.transport.abort()
            return
        host, port = self._upstream.hostname, self._upstream.port
        self.opened += 1
        try:
            upstream = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, self.opened, (reader, writer), upstream)
        self._connections.add(connection)
        try:
            await connection.run()
        except asyncio.CancelledError:
            pass  # with the proxy; the server of asyncio that called this would report it
        finally:
            self._connections.discard(connection)
            connection.cut()

    async def decide(
        self, connection: int, to_server: bool, kind: str, content: bytes
    ) -> tuple[Do, Message]:
        message = Message(next(self._numbers), connection, to_server, kind, content)
        self.seen = message.number
        if self.on_message is None:
            return Do.FORWARD, message
        found = self.on_message(message)
        return (found if isinstance(found, Do) else await found), message


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, proxy: Proxy, number: int, client: _Stream, server: _Stream) -> None:
        self._proxy = proxy
        self._number = number
        self._client = client
        self._server = server
        self._stalled = asyncio.Event()
        self._one_byte = False  # the answer to a request for encryption

    def cut(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def run(self) -> None:
        ways = [
            asyncio.create_task(self._pass_on(self._client[0], self._server[1], True)),
            asyncio.create_task(self._pass_on(self._server[0], self._client[1], False)),
        ]
        try:
            # Where one side has ended, the other ends as well: as at a real network's edge.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_server: bool
    ) -> None:
        started = not to_server
        try:
            while True:
                if not started:
                    raw, kind, started = await self._read_start(reader)
                else:
                    raw, kind = await self._read(reader, to_server)
                if not await self._handle(raw, kind, writer, to_server):
                    return
        except (asyncio.IncompleteReadError, OSError):
            return

    async def _handle(
        self, raw: bytes, kind: str, writer: asyncio.StreamWriter, to_server: bool
    ) -> bool:
        do, _ = await self._proxy.decide(self._number, to_server, kind, raw[5:])
        if do is Do.STALL:
            self._stalled.set()
        if self._stalled.is_set():
            await asyncio.Event().wait()
        if do is Do.CUT:
            self.cut()
            return False
        if do is not Do.DROP:
            writer.write(raw)
            await writer.drain()
        if do is Do.CUT_AFTER:
            await asyncio.sleep(0.05)  # the other side is to have it
            self.cut()
            return False
        return True

    async def _read_start(self, reader: asyncio.StreamReader) -> tuple[bytes, str, bool]:
        """A message from before the protocol proper: it has no letter."""
        head = await reader.readexactly(8)
        length, code = struct.unpack("!ii", head)
        raw = head + await reader.readexactly(length - 8)
        self._one_byte = code in (_SSL, _GSS)
        if code == _CANCEL:
            return raw, "CancelRequest", False
        return raw, "Encryption" if self._one_byte else "Startup", not self._one_byte

    async def _read(self, reader: asyncio.StreamReader, to_server: bool) -> tuple[bytes, str]:
        letter = await reader.readexactly(1)
        if not to_server and self._one_byte:
            self._one_byte = False
            return letter, "NoEncryption"
        size = await reader.readexactly(4)
        (length,) = struct.unpack("!i", size)
        raw = letter + size + await reader.readexactly(length - 4)
        kinds = _CLIENT if to_server else _SERVER
        return raw, kinds.get(letter, letter.decode("latin-1"))
