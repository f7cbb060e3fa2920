"""A stage that works ahead: its end reaches the reader however it comes, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from featurestore.ingest.ahead import ahead


async def numbers(count: int, seen: list[int]) -> AsyncIterator[int]:
    for number in range(count):
        seen.append(number)
        yield number


async def test_it_gives_what_the_source_gives():
    async with ahead(numbers(5, []), 2) as items:
        assert [item async for item in items] == [0, 1, 2, 3, 4]


async def test_it_is_only_so_far_ahead():
    seen: list[int] = []
    async with ahead(numbers(100, seen), 2) as items:
        assert await anext(items) == 0
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(seen) <= 4  # the one read, two that wait, one in hand


async def test_an_error_of_the_source_is_raised_where_it_is_read():
    async def source() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    async with ahead(source(), 1) as items:
        assert await anext(items) == 1
        with pytest.raises(ZeroDivisionError):
            await anext(items)


async def test_a_source_that_is_cancelled_from_within_ends_the_reading():
    async def source() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async with asyncio.timeout(5), ahead(source(), 1) as items:
        assert await anext(items) == 1
        with pytest.raises(asyncio.CancelledError):
            await anext(items)


async def test_the_source_has_ended_with_the_block_although_cancelled_twice():
    ended = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            ended.set()

    async def read() -> None:
        async with ahead(source(), 1) as items:
            async for _ in items:
                pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
