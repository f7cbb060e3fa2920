"""A push that is cancelled while it waits, for the first time, the second, … the last: alone, with
others before it, inside a transaction. Its rows are there or not, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from cancelling import How, by_scope, by_task, by_task_twice, cancelled_at, waits_of
from faults import NAME, START, Complaints, becomes_idle, checked_out, opened

import featurestore as fs

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

ROW = {"driver_id": 1, "event_timestamp": START, "conv_rate": 0.5, "trips": 1, "city": "Oslo"}
OTHERS = 5

Work = Callable[[fs.FeatureStore, int], Coroutine[Any, Any, None]]


def rows(driver: int) -> list[dict[str, Any]]:
    return [{**ROW, "driver_id": driver}, {**ROW, "driver_id": driver, "city": None}]


async def alone(store: fs.FeatureStore, driver: int) -> None:
    await store.push(NAME, rows(driver))


async def behind_others(store: fs.FeatureStore, driver: int) -> None:
    """One goes first, the others wait with it."""
    others = [asyncio.create_task(alone(store, -n)) for n in range(1, OTHERS + 1)]
    try:
        await asyncio.sleep(0)
        await alone(store, driver)
    finally:
        # Not a wait of the push: they are to end, whatever becomes of it.
        store.others = others  # type: ignore[attr-defined]


async def in_a_transaction(store: fs.FeatureStore, driver: int) -> None:
    async with store.transaction() as tx:
        await tx.push(NAME, rows(driver)[:1])
        await tx.push(NAME, rows(driver)[1:])


@both
@pytest.mark.parametrize("how", [by_task, by_task_twice, by_scope])
@pytest.mark.parametrize("work", [alone, behind_others, in_a_transaction])
async def test_it_is_there_whole_or_not_at_all(
    featurestore_url: str, request: pytest.FixtureRequest, how: How, work: Work
):
    with Complaints():
        async with opened(featurestore_url) as store:
            await store.push(NAME, rows(0))
            repository = store.repository(NAME)
            broken_off = 0
            waits = await waits_of(work(store, 1))
            await asyncio.gather(*getattr(store, "others", ()))
            assert await repository.history(driver_id=1)
            for wait in range(1, waits + 1):
                driver = 1 + wait
                broken_off += await cancelled_at(wait, how, work(store, driver))
                await asyncio.gather(*getattr(store, "others", ()))
                assert checked_out(store) == 0
                history = (await repository.history(driver_id=driver)).num_rows
                online = await repository.get(driver_id=driver)
                assert (history, online is None) in ((0, True), (2, False)), wait
                async with asyncio.timeout(5):
                    await store.push(NAME, rows(0))
            assert broken_off, "it was never broken off: the test proves nothing"
            live = [load.rows_written for load in await store.loads()]
            assert sum(live) == await repository.count()
            pushed = store.stats.pushes
            assert (pushed.waiting, pushed.in_flight) == (0, 0)
            if work is behind_others:
                counts = [(await repository.history(driver_id=-n)).num_rows for n in (1, OTHERS)]
                assert counts == [2 * (waits + 1)] * 2, "others were disturbed"
            if featurestore_url.startswith("postgresql"):
                server = request.getfixturevalue("featurestore_postgres")
                await becomes_idle(server, featurestore_url)
