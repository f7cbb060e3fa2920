"""The ways in which asyncio and anyio cancel what is under way."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import pytest

When = Callable[[], Awaitable[None]]
"""Returns at the moment to cancel."""

How = Callable[[Coroutine[Any, Any, Any], When], Awaitable[None]]


class Stop(Exception):
    """What the neighbour of a task fails with."""


async def by_task(work: Coroutine[Any, Any, Any], when: When) -> None:
    """``task.cancel()``, once."""
    task = asyncio.create_task(work)
    await when()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), task


async def by_task_twice(work: Coroutine[Any, Any, Any], when: When) -> None:
    """Cancelled again while it cleans up."""
    task = asyncio.create_task(work)
    await when()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.002)
    assert task.cancelled(), task


async def by_timeout(work: Coroutine[Any, Any, Any], when: When) -> None:
    """``asyncio.timeout``."""
    limit = asyncio.timeout(None)

    async def limited() -> None:
        async with limit:
            await work

    task = asyncio.create_task(limited())
    await when()
    limit.reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError):
        await task


async def by_group(work: Coroutine[Any, Any, Any], when: When) -> None:
    """A task group, another task of which fails."""

    async def fail() -> None:
        await when()
        raise Stop

    async def side_by_side() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work)
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await side_by_side()
    assert [type(error) for error in caught.value.exceptions] == [Stop]


async def by_scope(work: Coroutine[Any, Any, Any], when: When) -> None:
    """A scope of anyio, which cancels again at every ``await`` until it is left."""
    with anyio.CancelScope() as scope:

        async def leave() -> None:
            await when()
            scope.cancel()

        leaving = asyncio.create_task(leave())
        try:
            await work
        finally:
            leaving.cancel()  # where the work ended before its time came
    assert scope.cancelled_caught
    await asyncio.gather(leaving, return_exceptions=True)


HOWS = [by_task, by_task_twice, by_timeout, by_group, by_scope]


@types.coroutine
def counted(work: Coroutine[Any, Any, Any], at: Callable[[int], None]) -> Generator[Any, Any, Any]:
    """Await ``work``; ``at`` is called with 1, 2, 3 … each time that it waits for something."""
    number = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            waited = work.send(value) if error is None else work.throw(error)
        except StopIteration as done:
            return done.value
        number += 1
        at(number)
        value = error = None
        try:
            value = yield waited
        except BaseException as thrown:  # noqa: BLE001 - it is passed on
            error = thrown


async def waits_of(work: Coroutine[Any, Any, Any]) -> int:
    """How often ``work`` waits for something, undisturbed."""
    last = 0

    def note(number: int) -> None:
        nonlocal last
        last = number

    await counted(work, note)
    return last


async def cancelled_at(wait: int, how: How, work: Coroutine[Any, Any, Any]) -> bool:
    """Cancel ``work`` while it waits for the ``wait``-th time; whether it came to that."""
    reached = asyncio.Event()

    def note(number: int) -> None:
        if number == wait:
            reached.set()

    async def followed() -> None:
        try:
            await counted(work, note)
            finished.set()
        finally:
            reached.set()  # it waited less often this time: nobody waits for it for ever

    finished = asyncio.Event()

    async def when() -> None:
        await reached.wait()

    try:
        await how(followed(), when)
    except (AssertionError, pytest.fail.Exception):
        # It ended just before: there is nothing left to cancel.
        assert finished.is_set()
        return False
    return not finished.is_set()
