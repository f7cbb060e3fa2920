"""uvicorn's connections, with an end to those that keep a server waiting.

uvicorn waits without limit for the head of a request, of any size, and for the rest of a body
that nobody reads any more. (What is read has the request's own limits.)
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""How long the head of a request may take, or what is left of a body that is not read."""

HEAD_BYTES = 65_536
"""How large the head of a request may be."""


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    _due: asyncio.TimerHandle | None = None
    _in_head = True  # of the first request, from the moment of connecting
    _in_message = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_at_it()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")
        if self._in_message or self._due is not None:
            self._look_at_it()

    def on_message_begin(self) -> None:
        self._in_message = self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message:
            self._look_at_it()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_message = self._in_head = False
        self._look_at_it()
        super().connection_lost(exc)

    def _look_at_it(self) -> None:
        """Have an end come, or not, by what is awaited."""
        cycle: Any = self.cycle
        unread = self._in_message and cycle is not None and cycle.response_complete
        if not (self._in_head or unread):
            if self._due is not None:
                self._due.cancel()
                self._due = None
        elif self._due is None:
            self._due = self.loop.call_later(HEAD_SECONDS, self._end)

    def _end(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
