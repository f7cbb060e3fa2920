"""A loop in a thread, for callers without ``await``: how calls, iterators and blocks get to it."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Self, TypeVar

from featurestore.errors import SourceError
from featurestore.ingest.rows import is_arrow
from featurestore.storage import forks

T = TypeVar("T")

_STOP_SECONDS = 10.0


class Portal:
    """A loop in a daemon thread, made at the first call; after a fork, made anew."""

    def __init__(self) -> None:
        self._lock = forks.ForkLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        forks.renew_after_fork(self, Portal._begin_anew)

    def _begin_anew(self) -> None:
        """In a forked process, where the thread is none any more."""
        if self._loop is not None:
            # Closing it would take its sockets out of what the parent's loop watches.
            forks.keep(self._loop)
            atexit.unregister(self._stop)
            self._loop = self._thread = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="featurestore-sync", daemon=True
                )
                self._thread.start()
                atexit.register(self._stop, self._loop, self._thread)
            return self._loop

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the portal's loop and wait; Ctrl-C cancels it and waits for its end."""
        with self.started(work) as future:
            return future.result()

    @contextmanager
    def started(self, work: Coroutine[Any, Any, T]) -> Iterator[Future[T]]:
        """``work`` on the portal's loop, beside the block; leaving that by Ctrl-C, or by another
        way out of the program, cancels it and waits for its end."""
        loop, process = self._running(), os.getpid()
        done = threading.Event()

        async def run() -> T:
            try:
                return await work
            finally:
                done.set()

        future = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            yield future
        except BaseException:
            if process == os.getpid() and future.cancel():
                done.wait(_STOP_SECONDS)
            raise

    @staticmethod
    def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_STOP_SECONDS)
        if not thread.is_alive():
            loop.close()


portal = Portal()


def iterate(batches: AsyncIterator[T]) -> Generator[T, None, None]:
    """An async iterator as a plain one; leaving it early closes it on its loop."""
    end = object()

    async def pull() -> Any:
        return await anext(batches, end)

    async def close() -> None:
        if hasattr(batches, "aclose"):
            await batches.aclose()

    process = os.getpid()
    try:
        while (item := portal.call(pull())) is not end:
            yield item
            forks.check_process(process, "The iterator")
    finally:
        if process == os.getpid():
            portal.call(close())
        else:
            forks.keep(batches)


class _Feed:
    """An ordinary iterator for the portal's loop. It is read in the caller's thread, which is
    where its connections, locks and Ctrl-C belong, and a bounded number of items ahead."""

    AHEAD = 500
    """Rows that are handed over; of lists and tables, one."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._ended = False
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self.process = os.getpid()

    def read(self, source: Iterable[Any]) -> None:
        """Hand over what ``source`` gives, until it ends or nobody wants more."""
        try:
            for item in source:
                if not self._put(item):
                    return
        except Exception as error:  # noqa: BLE001 - raised where the items are read
            self._error = error
        finally:
            if isinstance(source, Generator):
                source.close()
        with self._changed:
            self._ended = True
            self._wake()

    def _put(self, item: Any) -> bool:
        if self.process != os.getpid():
            return False
        most = self.AHEAD if isinstance(item, Mapping) else 1
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < most)
            if self._stopped:
                return False
            self._items.append((item,))
            if len(self._items) == 1:
                self._wake()
        return True

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._arrived.set)

    def stop(self, _: object = None) -> None:
        """Let :meth:`read` end: nobody reads any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def __aiter__(self) -> Self:
        with self._changed:
            self._loop = asyncio.get_running_loop()
        return self

    async def __anext__(self) -> Any:
        while True:
            self._arrived.clear()
            with self._changed:
                if self._items:
                    (item,) = self._items.popleft()
                    self._changed.notify()
                    return item
                if self._ended:
                    break
            await self._arrived.wait()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


def feed(run: Callable[[AsyncIterable[Any]], Coroutine[Any, Any, T]], source: Iterable[Any]) -> T:
    """Run what reads an async iterator on the portal's loop, and ``source`` here meanwhile."""
    table = is_arrow(source) and not isinstance(source, Iterator)
    if table or not isinstance(source, Iterable) or isinstance(source, Mapping | str | bytes):
        raise SourceError(
            f"push_stream reads an iterator of rows, lists of rows or Arrow batches, not "
            f"{type(source).__name__}: a table goes to push or ingest, an async iterator to "
            f"featurestore.FeatureStore."
        )
    items = _Feed()
    with portal.started(run(items)) as future:
        future.add_done_callback(items.stop)
        items.read(source)
        forks.check_process(items.process, "The stream")
        return future.result()


class _Left(Exception):
    """The block around an async context manager was left by an error."""


@contextmanager
def entered(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """An async context manager as a plain one.

    It is entered and left in one task: cancellation scopes and locks belong to a task.
    """

    async def start() -> tuple[asyncio.Future[Any], asyncio.Future[Any], asyncio.Task[None]]:
        loop = asyncio.get_running_loop()
        inside: asyncio.Future[Any] = loop.create_future()
        leave: asyncio.Future[Any] = loop.create_future()

        async def hold() -> None:
            try:
                async with manager as value:
                    inside.set_result(value)
                    await leave
            except BaseException as error:
                if not inside.done():
                    inside.set_exception(error)
                    return
                raise

        return inside, leave, loop.create_task(hold())

    inside, leave, task = portal.call(start())

    async def value() -> T:
        result: T = await inside
        return result

    async def finish(*, failed: bool) -> None:
        if not failed:
            leave.set_result(None)
            await task
            return
        # The caller's own error stays in the caller's thread: SystemExit would end the loop.
        leave.set_exception(_Left())
        try:
            await task
        except _Left:
            return

    result = portal.call(value())
    process = os.getpid()
    try:
        yield result
        forks.check_process(process, "The transaction")
    except BaseException:
        if process == os.getpid():
            portal.call(finish(failed=True))
        else:
            forks.keep(manager, leave, task)
        raise
    portal.call(finish(failed=False))
