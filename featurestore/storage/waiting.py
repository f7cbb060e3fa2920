"""Waiting that a cancellation cannot tear in two.

A task may be cancelled at any ``await``, once, several times, or again and again as by anyio's
scopes. What talks to a database must not break off there: half a rollback is a lost connection,
and a statement that nobody waits for runs on at the server. So it runs in a task of its own, and
who waits for it brings it to an end before the cancellation goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

FINISH_SECONDS = 30.0
"""How long a rollback or a return to the pool is waited for."""

STOP_SECONDS = 2.0
"""How long a cancelled call may take to stop before its connection is given up."""

_FIRST_PAUSE = 0.02
_LAST_PAUSE = 0.5
_GRACE_SECONDS = 3.0


async def uninterrupted(
    work: Coroutine[Any, Any, T], *, seconds: float | None = FINISH_SECONDS
) -> T:
    """Finish ``work`` although the caller is cancelled; the cancellation goes on afterwards.

    ``work`` is itself cancelled after so many ``seconds``, which is a :class:`TimeoutError`.
    """
    return await _outlasted(asyncio.create_task(work), seconds)


async def answered(work: Coroutine[Any, Any, T], *, seconds: float | None) -> T:
    """As :func:`uninterrupted`, and the end of a loop, which cancels all tasks, waits as well.

    For a COMMIT alone: ``work`` must not use timeouts, which cancel their task to have effect.
    """
    return await _outlasted(_Steady(work, loop=asyncio.get_running_loop()), seconds)


async def stoppable(
    work: Coroutine[Any, Any, T],
    stop: Callable[[], Awaitable[None]],
    kill: Callable[[], None] | None = None,
) -> T:
    """Await ``work``; a caller that is cancelled brings it to an end first.

    ``stop`` is called, and again after a while, as long as ``work`` goes on. Where it does after
    ``STOP_SECONDS``, ``kill`` is called, which must end it; without one, there is no limit.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await uninterrupted(bring_to_end(task, stop, kill), seconds=None)
        raise
    return task.result()


async def in_thread(call: Callable[..., T], *arguments: Any, small: bool = False) -> T:
    """``call`` in a thread, or here where it is ``small``. A caller that is cancelled waits for its
    end: what it works on, a file that is written say, is closed by nobody meanwhile. For work of
    well under a second."""
    if small:
        return call(*arguments)
    return await uninterrupted(asyncio.to_thread(call, *arguments), seconds=None)


async def stoppable_thread(call: Callable[[threading.Event], T]) -> T:
    """``call`` in a thread, for as long as it takes. Where the caller is cancelled the event is
    set, at which ``call`` must end, and its end is waited for."""
    stopped = threading.Event()

    async def stop() -> None:
        stopped.set()

    return await stoppable(asyncio.to_thread(call, stopped), stop)


async def opened(
    opening: Coroutine[Any, Any, T],
    undo: Callable[[T], Awaitable[None]],
    *,
    patience: float = 0.0,
) -> T:
    """Await what opens something; where the caller is cancelled, nothing stays open.

    ``opening`` then has ``patience`` seconds to end before it is cancelled, which happens once:
    it can clean up. What it opened nevertheless is undone.
    """
    task = asyncio.create_task(opening)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await uninterrupted(_withdraw(task, undo, patience))
        raise
    return task.result()


async def _withdraw(
    task: asyncio.Task[T], undo: Callable[[T], Awaitable[None]], patience: float
) -> None:
    if patience:
        await asyncio.wait([task], timeout=patience)
    task.cancel()
    await asyncio.wait([task], timeout=_GRACE_SECONDS)
    if task.done() and not task.cancelled() and task.exception() is None:
        await undo(task.result())


async def bring_to_end(
    work: Awaitable[Any],
    stop: Callable[[], Awaitable[None]],
    kill: Callable[[], None] | None = None,
    *,
    seconds: float = STOP_SECONDS,
) -> None:
    """Stop ``work``, as :func:`stoppable` says, and wait until it has ended, however it does.

    ``kill`` is called after so many ``seconds``.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    deadline = loop.time() + seconds
    pause = _FIRST_PAUSE
    while not task.done() and (kill is None or loop.time() < deadline):
        # Again and again: the statement that is to be stopped may have begun since.
        await stop()
        await asyncio.wait([task], timeout=pause)
        pause = min(2 * pause, _LAST_PAUSE)
    if not task.done() and kill is not None:
        kill()
        await asyncio.wait([task], timeout=_GRACE_SECONDS)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_GRACE_SECONDS)
    _look_at(task)


class _Steady(asyncio.Task[T]):
    """A task that only :meth:`give_up` ends."""

    def cancel(self, msg: Any | None = None) -> bool:
        return False

    def give_up(self) -> None:
        super().cancel()


async def _outlasted(task: asyncio.Task[T], seconds: float | None) -> T:
    cancelled, late = await _outlast(task, seconds)
    if late:
        task.give_up() if isinstance(task, _Steady) else task.cancel()
        again, _ = await _outlast(task, _GRACE_SECONDS)
        cancelled = cancelled or again
    if cancelled is not None:
        _look_at(task)
        raise cancelled
    if late and (not task.done() or task.cancelled()):
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return task.result()


async def _outlast(
    task: asyncio.Task[Any], seconds: float | None
) -> tuple[asyncio.CancelledError | None, bool]:
    """Wait for ``task``: the last cancellation that came meanwhile, and whether it is late."""
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        left = None if deadline is None else deadline - loop.time()
        if left is not None and left <= 0:
            return cancelled, True
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled, False


def _look_at(task: asyncio.Future[Any]) -> None:
    """A failure beneath a cancellation is looked at, not reported as never retrieved."""
    if task.done() and not task.cancelled():
        task.exception()
