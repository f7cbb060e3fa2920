"""From a command to the store: opening it, running the loop, being interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from featurestore.cli.options import Settings
from featurestore.cli.output import say

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

T = TypeVar("T")

PATIENCE_SECONDS = 1.0
"""How long stopping may take before somebody who waits for it is told of a faster way."""


class Interrupted(click.ClickException):
    """Ctrl-C; the message says what was kept. 130 is what shells expect of it."""

    exit_code = 130


def open_store(settings: Settings) -> FeatureStore:
    """The store that the options name; it connects when it is entered."""
    # Here and not above: SQLAlchemy takes most of a second to import, and --help needs none.
    from featurestore.store import FeatureStore

    return FeatureStore(settings.url, project=settings.project)


def run(
    work: Coroutine[Any, Any, T],
    kept: Callable[[], str] | str,
    stopping: Callable[[], None] = lambda: None,
) -> T:
    """Run ``work`` to its end; on Ctrl-C it is cancelled, cleans up, and ``kept`` is told.

    ``stopping`` is called on the loop as soon as that begins. A second Ctrl-C ends the program at
    once: the database then takes back what was not committed.
    """
    runner = asyncio.Runner()
    ctrl_c = _CtrlC(runner.get_loop(), stopping)
    try:
        return runner.run(ctrl_c.guard(work))
    except (asyncio.CancelledError, Exception):
        if not ctrl_c.pressed:  # else it failed because it was told to stop
            raise
        raise Interrupted(kept if isinstance(kept, str) else kept()) from None
    finally:
        ctrl_c.release()
        if not ctrl_c.pressed:
            # Else the threads of the loop, which compute what nobody wants any more, would be
            # waited for. See `leave`.
            runner.close()


def leave(status: int) -> NoReturn:
    """End the program now that all is said: a large process takes a second to take itself apart,
    and whoever pressed Ctrl-C waits for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _CtrlC:
    """What Ctrl-C does while a loop runs: the first time cancel, the second time end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stopping: Callable[[], None]) -> None:
        self.pressed = False
        self._loop = loop
        self._stopping = stopping
        self._task: asyncio.Task[Any] | None = None
        self._hint: asyncio.TimerHandle | None = None
        # Whoever started the program may have it ignore Ctrl-C, and threads get no signals.
        self._mine = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._mine:
            signal.signal(signal.SIGINT, self._press)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        try:
            if self.pressed:
                raise asyncio.CancelledError
            return await work
        finally:
            work.close()  # where it was not begun
            if self.pressed:
                await self._tidy()

    async def _tidy(self) -> None:
        """What the end of a loop does, without waiting for its threads."""
        if self._hint is not None:
            self._hint.cancel()
        left = asyncio.all_tasks() - {self._task}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=PATIENCE_SECONDS)
        await self._loop.shutdown_asyncgens()

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            _end_at_once()
        self.pressed = True
        self._loop.call_soon_threadsafe(self._stop)  # which also wakes the loop

    def _stop(self) -> None:
        self._stopping()
        if self._task is not None:
            self._task.cancel()
        text = "Stopping; Ctrl-C again ends it at once."
        self._hint = self._loop.call_later(PATIENCE_SECONDS, say, text)

    def release(self) -> None:
        """Give Ctrl-C back, unless the program is about to end by it anyway."""
        if self._mine and not self.pressed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once() -> None:
    """Without waiting for anything. Written past Python's own streams, which may be in use."""
    text = "Interrupted again, ended at once: featurestore loads shows what was kept.\n"
    if sys.stderr.isatty():
        text = f"\r\x1b[?25h{text}"  # the cursor is hidden while a bar is drawn
    os.write(2, text.encode())
    os._exit(Interrupted.exit_code)
