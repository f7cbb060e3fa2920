"""An async generator as a plain iterator: its loop runs in a thread of its own, one step ahead."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from featurestore.errors import DefinitionError

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """The end of the items, by itself or by an error."""

    error: BaseException | None = None


class Beside(Generic[T]):
    """Iterates over what ``source`` gives, in a thread with a loop of its own.

    Thread and loop begin with the first item that is asked for. While an item is in use, the next
    ``depth`` are made, and no more. :meth:`close` cancels what is under way and waits for its end;
    an error of the source is raised as it is. A process that was forked off meanwhile has no part
    in it: there, the iterator gives an error and closing it does nothing.
    """

    def __init__(self, source: Callable[[], AsyncGenerator[T, None]], depth: int = 1) -> None:
        self._source = source
        self._depth = depth
        self._process = os.getpid()
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._begun = threading.Event()
        # A daemon: an iterator that somebody holds to the end of the program does not keep it up.
        self._thread = threading.Thread(target=self._run, name="featurestore-blocks", daemon=True)
        self._started = self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._process != os.getpid():
            raise DefinitionError(
                "This iterator was begun before the process was forked, and stays with the parent: "
                "iterate anew in this one."
            )
        if self._ended:
            raise StopIteration
        if not self._started:
            self._started = True
            self._thread.start()
        item = self._items.get()
        if not isinstance(item, _End):
            self._loop.call_soon_threadsafe(self._free.release)
            return item
        self._ended = True
        self._thread.join()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop, wherever it is; the thread has ended when this returns."""
        if self._process != os.getpid() or self._ended:
            return
        self._ended = True
        if self._started:
            self._begun.wait()
            if self._thread.is_alive():
                self._stop()
            self._thread.join()

    def _stop(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:  # the loop has closed by itself just now
            if self._loop.is_closed():
                return
            raise

    def _run(self) -> None:
        end = _End()
        try:
            with asyncio.Runner() as runner:
                end = runner.run(self._fill())
        except BaseException as error:  # noqa: BLE001 - raised where the items are read
            end = _End(error)
        # Only now is nothing of it left.
        self._begun.set()
        self._items.put(end)

    async def _fill(self) -> _End:
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(self._depth)
        self._task = asyncio.create_task(self._give())
        self._begun.set()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            return _End(self._task.exception())
        # What a source waits for may be cancelled by others: that is no end of its items.
        return _End(None if self._ended else asyncio.CancelledError("The source was cancelled."))

    async def _give(self) -> None:
        async with aclosing(self._source()) as items:
            await self._free.acquire()
            async for item in items:
                self._items.put(item)
                await self._free.acquire()
