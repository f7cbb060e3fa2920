"""The store's own loads for `ingest.py`: seconds, the loop's lag meanwhile, memory over idle."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from ingest_data import view
from memory import begin_peak, peak

import featurestore as fs
from featurestore.reports import IngestReport

TICK = 0.001
"""How long the task sleeps that the lag is measured by, in seconds."""


@dataclass
class Watch:
    """How late a task that sleeps a millisecond wakes up, and how much memory the process takes.

    The lag holds what asyncio adds by itself: it waits in whole milliseconds.
    """

    lags: list[float] = field(default_factory=list)

    async def _tick(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            self.lags.append(time.perf_counter() - began - TICK)

    async def over(self, load: Awaitable[IngestReport]) -> tuple[IngestReport, dict[str, float]]:
        """Await a load; what it gives, and what was seen."""
        gc.collect()
        idle = begin_peak()
        ticking = asyncio.create_task(self._tick())
        try:
            began = time.perf_counter()
            report = await load
            seconds = time.perf_counter() - began
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
        ordered = sorted(self.lags)
        return report, {
            "seconds": seconds,
            "p99": ordered[int(len(ordered) * 0.99)] * 1e3,
            "worst": ordered[-1] * 1e3,
            "megabytes": (peak() - idle) / 1e6,
        }


Call = Callable[[fs.FeatureStore, Path], Awaitable[IngestReport]]


def _plain(store: fs.FeatureStore, path: Path) -> Awaitable[IngestReport]:
    return store.ingest(view, path)


def _one_at_a_time(store: fs.FeatureStore, path: Path) -> Awaitable[IngestReport]:
    return store.ingest(view, path, files_at_once=1)


def _two_at_a_time(store: fs.FeatureStore, path: Path) -> Awaitable[IngestReport]:
    return store.ingest(view, path, files_at_once=2)


OURS: dict[str, Call] = {
    "ingest": _plain,
    "ingest_cold": _plain,
    "ingest_1": _one_at_a_time,
    "ingest_2": _two_at_a_time,
}
"""By name: how the store is asked to load a file or folder."""


async def load(name: str, url: str, path: Path) -> dict[str, float]:
    """Load into the view, which is made where it is not there yet."""
    async with fs.FeatureStore(url) as store:
        await store.apply(view)
        report, seen = await Watch().over(OURS[name](store, path))
    assert not any(one.skipped for one in report.loads), "the file had been loaded before"
    return {"rows": report.rows_written, **seen}
