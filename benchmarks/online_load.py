"""How `online.py` asks: alone, by many callers in a closed loop, at a fixed rate of arrival.

All on one plain asyncio loop, the same for everybody. Ways that are compared take turns, every
other time in the opposite order: a machine's speed drifts in the course of a run.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import featurestore as fs

ARRIVALS = Path(__file__).with_name("online_arrivals.py")

MAX_WAITING = 10_000
"""Callers waiting at a time, at which a way has fallen behind its rate of arrival."""

BEHIND_SECONDS = 0.5
"""A way has fallen behind as well when its last answer comes so long after the last arrival."""

DEADLINE = 60.0
"""Seconds that a round may take longer than it is meant to."""

Call = Callable[[Any], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """A round, or the median of some: calls per second; the latency's median and its 99th
    percentile, in seconds."""

    rate: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Turn:
    """The latencies of one turn, and what it took, in seconds."""

    latencies: Sequence[float]
    seconds: float

    def measured(self) -> Measured:
        ordered = sorted(self.latencies)
        p99 = ordered[int((len(ordered) - 1) * 0.99)]
        return Measured(len(ordered) / self.seconds, statistics.median(ordered), p99)


def pooled(turns: Sequence[Turn]) -> Measured:
    """Of all calls of all turns: for a lone caller, whose turns are short and many."""
    latencies = [latency for turn in turns for latency in turn.latencies]
    return Turn(latencies, sum(turn.seconds for turn in turns)).measured()


def median_turn(turns: Sequence[Turn]) -> Measured:
    """Each figure's median over the turns: a turn in which the machine was busy does not count."""
    return median([turn.measured() for turn in turns])


def median(rounds: Sequence[Measured]) -> Measured:
    """Each figure's median over the rounds."""
    return Measured(
        statistics.median(one.rate for one in rounds),
        statistics.median(one.p50 for one in rounds),
        statistics.median(one.p99 for one in rounds),
    )


async def by_turns(
    ways: Mapping[str, Call], once: Callable[[Call], Awaitable[Turn]], turns: int
) -> dict[str, list[Turn]]:
    """So many turns of each way, and before them one for nothing: statements get prepared, lines
    of code get specialised."""
    found: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(turns + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            gc.collect()  # nobody cleans up after another
            async with asyncio.timeout(DEADLINE):
                turn = await once(ways[name])
            if number:
                found[name].append(turn)
    return found


async def alone(call: Call, keys: Iterator[Any], calls: int) -> Turn:
    """One caller, one call after the other."""
    latencies = []
    began = time.perf_counter()
    for key in islice(keys, calls):
        asked = time.perf_counter()
        await call(key)
        latencies.append(time.perf_counter() - asked)
    return Turn(latencies, time.perf_counter() - began)


async def together(call: Call, keys: Iterator[Any], callers: int, seconds: float) -> Turn:
    """A closed loop: so many callers, each of which asks again once it is answered."""
    latencies: list[float] = []
    began = time.perf_counter()
    end = began + seconds

    async def caller() -> None:
        asked = time.perf_counter()
        while asked < end:
            await call(next(keys))
            answered = time.perf_counter()
            latencies.append(answered - asked)
            asked = answered

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return Turn(latencies, time.perf_counter() - began)


# --- open loop ----------------------------------------------------------------------------------


class FellBehind(Exception):
    """The calls come faster than they are answered."""


class Arrivals(asyncio.Protocol):
    """What the process that knocks sends: the moment of each arrival, as a double."""

    def __init__(self, arrived: Callable[[float], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived = arrived
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return  # nobody waits for what comes now
        data = self._rest + data
        whole = len(data) - len(data) % 8
        self._rest = data[whole:]
        try:
            for (moment,) in struct.iter_unpack("d", data[:whole]):
                self._arrived(moment)
        except FellBehind as error:
            self.ended.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)


async def arriving(call: Call, keys: Iterator[Any], rate: int, seconds: float) -> Measured:
    """An open loop: calls arrive at ``rate`` per second, whether the ones before are answered or
    not. A latency counts from the moment when its call was due.

    The arrivals come through a pipe from a process of their own, as requests do from a network: a
    timer of the loop is a millisecond late, and waits while the loop is busy. Raises
    :class:`FellBehind`.
    """
    gc.collect()
    latencies: list[float] = []
    moments: list[float] = []
    waiting = 0

    async def answer(due: float) -> None:
        nonlocal waiting
        try:
            await call(next(keys))
        except fs.OverloadedError:
            raise FellBehind from None
        finally:
            waiting -= 1
        latencies.append(time.monotonic() - due)

    process = await asyncio.to_thread(_knock, rate, seconds)
    assert process.stdout is not None
    transport: asyncio.ReadTransport | None = None
    try:
        async with asyncio.timeout(seconds + DEADLINE), asyncio.TaskGroup() as group:

            def arrived(due: float) -> None:
                nonlocal waiting
                if waiting >= MAX_WAITING:
                    raise FellBehind
                waiting += 1
                moments.append(due)
                group.create_task(answer(due))

            loop = asyncio.get_running_loop()
            transport, protocol = await loop.connect_read_pipe(
                lambda: Arrivals(arrived), process.stdout
            )
            await protocol.ended
    except ExceptionGroup as errors:
        if errors.subgroup(FellBehind) is None:
            raise
        raise FellBehind from None
    finally:
        if transport is not None:
            transport.close()
        process.kill()
        await asyncio.to_thread(process.wait)
    last = time.monotonic()
    if last - moments[-1] > BEHIND_SECONDS:
        raise FellBehind
    return Turn(latencies, last - moments[0]).measured()


def _knock(rate: int, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", str(ARRIVALS), str(rate), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
