"""An end to statements that are not answered in time.

A timer for each statement costs asyncio a fifth of what a read of one key takes in all. One timer
looks after all that is under way: almost always, when it fires, that has long been answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from featurestore.storage.waiting import STOP_SECONDS

Interrupt = Callable[[Any], Awaitable[None]]
Terminate = Callable[[Any], None]


class Watchdog:
    """Watches connections of drivers between :meth:`begin` and :meth:`end`.

    One that is overdue has its statement stopped by ``interrupt``, and where that does not help
    is given up by ``terminate``.
    """

    def __init__(self, interrupt: Interrupt, terminate: Terminate) -> None:
        self._interrupt = interrupt
        self._terminate = terminate
        self._deadlines: dict[Any, float] = {}
        self._overdue: set[Any] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, driver: Any, seconds: float) -> None:
        """A statement was sent that may take ``seconds``."""
        loop = asyncio.get_running_loop()
        deadline = self._deadlines[driver] = loop.time() + seconds
        if self._timer is None or deadline < self._timer.when():
            self._arm(loop, deadline)

    def end(self, driver: Any) -> bool:
        """It was answered, or has failed; whether it was overdue.

        Such a connection is terminated, however it ended: what was asked of its server to stop
        the statement may come as late as the next one.
        """
        self._deadlines.pop(driver, None)
        if driver in self._overdue:
            self._overdue.discard(driver)
            self._terminate(driver)
            return True
        return False

    def close(self) -> None:
        """Keep no timer longer than there is something to watch."""
        if self._timer is not None and not self._deadlines:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for driver, deadline in list(self._deadlines.items()):
            if deadline <= now:
                del self._deadlines[driver]
                self._overdue.add(driver)
                task = loop.create_task(self._give_up(driver))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if self._deadlines:
            self._arm(loop, min(self._deadlines.values()))

    async def _give_up(self, driver: Any) -> None:
        await self._interrupt(driver)
        await asyncio.sleep(STOP_SECONDS)
        if driver in self._overdue:
            self._terminate(driver)
