"""A route as an ASGI application: limits, key, body, answer, and what became of it.

FastAPI's own way from a request to a function costs as much as the whole answer does; here it
documents the routes and finds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from featurestore.errors import OverloadedError, StoreUnavailableError
from featurestore.server.answers import Answer, Refused, answer_of, refusal
from featurestore.server.calls import Call, ClientGone, Message, Receive, Scope, Send, Stop
from featurestore.storage.api_keys import Scope as KeyScope

if TYPE_CHECKING:
    from featurestore.server.state import ServerState

Handler = Callable[[Call], Awaitable[Answer]]

NOBODY_LISTENS = 499
"""The status under which metrics count requests whose client left; nginx has it so."""


class Endpoint:
    """One route. ``handler`` makes the answer; ``scope`` is what a key must allow for it.

    Without a scope (health) the route is open to everybody, and not counted against the limit of
    requests: it must answer when nothing else does. ``writes`` says that a request which was
    stopped may have been carried out.
    """

    def __init__(
        self,
        state: ServerState,
        route: str,
        handler: Handler,
        *,
        scope: KeyScope | None,
        counted: bool = True,
        writes: bool = False,
    ) -> None:
        self._state = state
        self._route = route
        self._handler = handler
        self._scope = scope
        self._counted = counted
        self._writes = writes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        call = Call(scope, receive, task, loop.time())
        state.begin(call)
        status = NOBODY_LISTENS
        try:
            answer = await self._answer(call)
            if answer is not None:
                status = answer.status
                await self._send(call, answer, send)
        except asyncio.CancelledError:
            if call.stopped is None:
                raise
            task.uncancel()  # it was the client that did not take its answer
        finally:
            state.end(call)
            state.metrics.observe(self._route, scope["method"], status, loop.time() - call.began)

    async def _answer(self, call: Call) -> Answer | None:
        """The answer; None where nobody is there to take it."""
        try:
            if self._counted and len(self._state.watch.calls) > self._state.limits.requests:
                self._state.metrics.refuse("requests")
                return refusal(503, "Too many requests are under way; come again.")
            if self._scope is not None and self._state.keys is not None:
                await self._state.keys.allow(call, self._scope)
            return await self._handler(call)
        except asyncio.CancelledError:
            if call.stopped is None:
                raise
            call.task.uncancel()
            return None if call.stopped is Stop.GONE else self._stopped(call.stopped)
        except ClientGone:
            return None
        except Exception as error:  # noqa: BLE001 - nothing may get past to the client
            if isinstance(error, OverloadedError):
                self._state.metrics.refuse("store")
            elif isinstance(error, Refused) and error.status in (413, 503):
                self._state.metrics.refuse("size" if error.status == 413 else "requests")
            return answer_of(error)
        finally:
            call.settle()

    def _stopped(self, reason: Stop) -> Answer:
        self._state.metrics.refuse("time")
        why = "The server is ending" if reason is Stop.ENDING else "It took too long"
        if self._writes:
            return answer_of(
                StoreUnavailableError(
                    f"{why}; whether the rows were written is not known: `featurestore loads` says."
                )
            )
        return answer_of(OverloadedError(f"{why}: come again, or ask for less at a time."))

    async def _send(self, call: Call, answer: Answer, send: Send) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        if self._state.ending:
            headers.append((b"connection", b"close"))
        start: Message = {"type": "http.response.start", "status": answer.status}
        start["headers"] = headers
        await send(start)
        await send({"type": "http.response.body", "body": answer.body})
