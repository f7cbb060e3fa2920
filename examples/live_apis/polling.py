"""Poll several JSON APIs at once and stream what they give into a view, whatever the HTTP client.

What a production job needs, in one page: a bound on the requests that are under way and on the
pages that wait for the database, a deadline for every request, retries where they may help and
nowhere else, and APIs that fail alone. `with_httpx.py` and `with_aiohttp.py` add the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urljoin

from stations import STATIONS, row_of, weather

import featurestore as fs

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """How hard the APIs are asked, and how long an answer is waited for (seconds)."""

    requests_at_once: int = 8
    request_seconds: float = 5.0
    tries: int = 6
    first_pause: float = 0.2  # at most; doubles with each try
    longest_pause: float = 30.0
    pages_waiting: int = 4


class Passing(Exception):
    """It may work when tried again, `after` seconds from now where the server says so."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class ApiError(Exception):
    """An API is given up for now."""


@dataclass(frozen=True)
class Answer:
    """What a client makes of a response."""

    status: int
    retry_after: str | None
    body: bytes


# Sends one request. Raises Passing for connections that fail, break or time out.
Get = Callable[[str], Awaitable[Answer]]
Client = Callable[[Limits], AbstractAsyncContextManager[Get]]


def page_of(answer: Answer) -> tuple[list[Row], str, str | None]:
    """Rows, the time of the last of them, and the address of the next page."""
    if answer.status == 429 or answer.status >= 500:
        seconds = answer.retry_after or ""
        after = float(seconds) if seconds.isdecimal() else 0.0
        raise Passing(f"status {answer.status}", after)
    if answer.status != 200:
        raise ApiError(f"status {answer.status}")
    try:
        page = json.loads(answer.body)  # 100 observations: a page of megabytes belongs in a thread
        observations = page["observations"]
        last = observations[-1]["observed_at"] if observations else ""
        if not isinstance(following := page["next"], str | None):
            raise TypeError(f"next is {following!r}")
        return [row_of(one) for one in observations], last, following
    except (KeyError, TypeError, ValueError) as error:
        raise ApiError(f"an answer of another form: {error!r}") from error


@dataclass
class Poll:
    """One run over all APIs at `base`; `failed` says which are given up, and why."""

    get: Get
    base: str
    limits: Limits = field(default_factory=Limits)
    every: float | None = None  # seconds from one round to the next; None: one round
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._requests = asyncio.Semaphore(self.limits.requests_at_once)
        self._pages: asyncio.Queue[list[Row] | None] = asyncio.Queue(self.limits.pages_waiting)

    async def into(
        self, store: fs.FeatureStore, progress: Callable[[fs.StreamReport], None] | None = None
    ) -> fs.StreamReport:
        """Go on from the newest observation of each station that the store has."""
        known = await store.get_online_features([weather], [{"station": one} for one in STATIONS])
        newest = {
            station: times["weather"].isoformat() if times["weather"] else None
            for station, times in zip(STATIONS, known.event_timestamps, strict=True)
        }
        async with asyncio.TaskGroup() as group:  # an error on either side ends the other
            group.create_task(self._all(newest))
            return await store.push_stream(
                weather, self._rows(), max_seconds=0.5, on_invalid="quarantine", progress=progress
            )

    async def _rows(self) -> AsyncIterator[list[Row]]:
        while (page := await self._pages.get()) is not None:
            yield page

    async def _all(self, newest: dict[str, str | None]) -> None:
        async with asyncio.TaskGroup() as group:
            for station, after in newest.items():
                group.create_task(self._station(station, after))
        await self._pages.put(None)

    async def _station(self, station: str, after: str | None) -> None:
        """All new observations of one station, oldest first; what fails here, fails alone."""
        while True:
            url: str | None = self._url(station, after)
            try:
                while url is not None:
                    rows, last, following = await self._page(url)
                    if rows:
                        await self._pages.put(rows)  # waits while the database is behind
                        after = last
                    url = None if following is None else urljoin(self.base, following)
                self.failed.pop(station, None)
            except ApiError as error:  # the others go on
                self.failed[station] = str(error)
                print(f"{station}: {error}", file=sys.stderr)
            if self.every is None:
                return
            await asyncio.sleep(self.every)

    def _url(self, station: str, after: str | None) -> str:
        query = "" if after is None else "?" + urlencode({"after": after})
        return urljoin(self.base, f"/{station}/observations{query}")

    async def _page(self, url: str) -> tuple[list[Row], str, str | None]:
        """One page. What may pass is tried again, after growing random pauses."""
        limits = self.limits
        for attempt in range(limits.tries):
            try:
                async with self._requests, asyncio.timeout(limits.request_seconds):
                    answer = await self.get(url)
                return page_of(answer)
            except (Passing, TimeoutError) as error:
                why = str(error) or f"no answer within {limits.request_seconds:g} s"
                pause = random.uniform(0, limits.first_pause * 2**attempt)
                if isinstance(error, Passing):
                    pause = max(pause, error.after)
            if pause > limits.longest_pause:
                raise ApiError(f"{why}, and it asks to wait for {pause:g} s")
            await asyncio.sleep(pause)  # without a place among the requests: others go on
        raise ApiError(f"{why}, the last of {limits.tries} tries")


def main(client: Client, arguments: list[str] | None = None) -> int:
    """The command line of both programs. Ctrl-C ends it: what was written stays."""
    parser = argparse.ArgumentParser(description="Stream the weather APIs into a feature view.")
    parser.add_argument("base", help="where the APIs are, as in http://localhost:8090")
    parser.add_argument("--every", type=float, help="poll again after so many seconds, for ever")
    options = parser.parse_args(arguments)
    written = 0

    def progress(report: fs.StreamReport) -> None:
        nonlocal written
        written = report.rows_written
        print(f"{written:,} rows", file=sys.stderr)

    async def job() -> int:
        async with client(Limits()) as get, fs.FeatureStore() as store:
            await store.apply(weather)
            poll = Poll(get, options.base, every=options.every)
            print(await poll.into(store, progress))
            return 1 if poll.failed else 0

    status = 1
    try:
        try:
            status = asyncio.run(job())
        except* fs.FeatureStoreError as group:
            for error in group.exceptions:
                print(error, *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"Interrupted: {written:,} rows are written and stay; the next run goes on there.")
        status = 130
    return status
