"""One task that looks after all requests: their time, their clients, and the loop itself.

A timer and a listener for each request would cost every one of them what few need: most are
answered long before anybody could look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from featurestore.server.calls import Call, Stop

TICK_SECONDS = 0.05
"""A client's leaving and the end of a request's time are noticed this much later at most."""


class Watch:
    """The requests under way, each of which may take ``seconds``.

    ``on_lag`` hears at each tick by how many seconds the loop came too late.
    """

    def __init__(self, seconds: float, on_lag: Callable[[float], None]) -> None:
        self.calls: set[Call] = set()
        self._seconds = seconds
        self._on_lag = on_lag

    async def run(self) -> None:
        """Look after them until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            self._on_lag(max(now - due, 0.0))
            for call in tuple(self.calls):
                age = now - call.began
                # What is being sent had its time, and a client that does not read has another.
                if age > (2 * self._seconds if call.sending else self._seconds):
                    call.stop(Stop.LATE)
                elif age > TICK_SECONDS:
                    call.listen()

    def end_all(self) -> None:
        """Stop what is still under way: the server ends."""
        for call in tuple(self.calls):
            call.stop(Stop.ENDING)
