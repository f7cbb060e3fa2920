"""One request under way: what it says, its body, and how it is brought to an end early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from typing import Any

from featurestore.errors import SchemaMismatchError
from featurestore.server.answers import ARROW, JSON, Refused

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Stop(Enum):
    """Why a request was stopped."""

    GONE = "the client has gone"
    LATE = "its time is over"
    ENDING = "the server ends"


class ClientGone(Exception):
    """The client left while it was still sending."""


class Call:
    """One request. Made, watched and ended by its :class:`~featurestore.server.route.Endpoint`."""

    __slots__ = (
        "_listener",
        "_receive",
        "accept",
        "authorization",
        "began",
        "content_length",
        "content_type",
        "encoding",
        "held",
        "host",
        "path",
        "query",
        "read",
        "sending",
        "stopped",
        "task",
    )

    def __init__(
        self, scope: Scope, receive: Receive, task: asyncio.Task[Any], began: float
    ) -> None:
        self.began = began
        self.task = task
        self.path: dict[str, str] = scope.get("path_params", {})
        self.query: bytes = scope.get("query_string", b"")
        self.accept = self.content_type = self.authorization = self.host = b""
        self.content_length: bytes | None = None
        self.encoding = b""
        for name, value in scope["headers"]:
            match name:
                case b"content-type":
                    self.content_type = value
                case b"content-length":
                    self.content_length = value
                case b"accept":
                    self.accept = value
                case b"authorization":
                    self.authorization = value
                case b"host":
                    self.host = value
                case b"content-encoding":
                    self.encoding = value
        self.held = 0
        """Bytes of the body that are counted against the server's."""
        self.read: bool = scope["method"] == "GET"
        """Whether the whole request has been read: only then may anybody listen for its end."""
        self.sending = False
        self.stopped: Stop | None = None
        self._receive = receive
        self._listener: asyncio.Task[None] | None = None

    # --- what it says ---------------------------------------------------------------------

    @property
    def wants_arrow(self) -> bool:
        """Whether the answer is to be an Arrow stream."""
        return ARROW in self.accept.lower()

    def brings_arrow(self) -> bool:
        """Whether the body is an Arrow stream; else it is JSON. Refuses anything else.

        A page of another site can make a browser send text or forms here, and nothing else.
        """
        kind = self.content_type.partition(b";")[0].strip().lower()
        if kind not in (JSON, ARROW):
            said = kind.decode("latin-1") or "nothing"
            raise Refused(
                415,
                f"The Content-Type is {said!r}: send application/json or {ARROW.decode()}.",
            )
        if self.encoding.lower() not in (b"", b"identity"):
            raise Refused(415, "A body with a Content-Encoding is not read: send it as it is.")
        return kind == ARROW

    def stated_length(self, most: int) -> int:
        """What Content-Length says, 0 where it is not there; refused beyond ``most``."""
        if self.content_length is None:
            return 0
        if not self.content_length.isdigit():
            raise Refused(400, "The Content-Length is no number.")
        length = int(self.content_length[:20])
        if length > most:
            raise _too_large(most)
        return length

    async def body(self, most: int, hold: Callable[[int], None]) -> bytes:
        """The whole body, of ``most`` bytes at most. ``hold`` hears of each part of it."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if part := message.get("body", b""):
                size += len(part)
                if size > most:
                    raise _too_large(most)
                hold(size)
                parts.append(part)
            if not message.get("more_body", False):
                self.read = True
                return parts[0] if len(parts) == 1 else b"".join(parts)

    # --- its end --------------------------------------------------------------------------

    def listen(self) -> None:
        """From now on, stop when the client leaves."""
        if self._listener is None and self.read and not self.sending:
            self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.sending:
            self.stop(Stop.GONE)

    def stop(self, reason: Stop) -> None:
        """Cancel what is done for it."""
        if self.stopped is None:
            self.stopped = reason
            self.task.cancel()

    def settle(self) -> None:
        """The answer is there: nobody needs to listen any more, and sending has its own time."""
        self.sending = True
        self.stopped = None
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None


def _too_large(most: int) -> Refused:
    return Refused(
        413, f"The body is larger than the {most:,} bytes that are taken: send it in parts."
    )


def object_of(document: Any) -> dict[str, Any]:
    """The body as a JSON object."""
    if not isinstance(document, dict):
        raise SchemaMismatchError("The body must be a JSON object.")
    return document
