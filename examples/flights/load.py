"""Put a service under load: flights arrive at a fixed rate, whether it keeps up or not.

    python load.py [http://localhost:8080] [--rate 100] [--seconds 60]

Times count from when a request was due, so one that waits behind a slow one is slow as well.
`POST /late` of either service is asked about one flight at a time. Exit status 0 if all went
well, 1 if a request failed, 2 if used wrongly.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import aiohttp
from client import flights_of, read

UNDER_WAY = 1_000  # requests; one that is due beyond that fails at once


@dataclass
class Load:
    """One run against the service at `base`."""

    base: str
    rate: float  # requests per second
    seconds: float
    timeout: float = 5.0
    times: list[float] = field(default_factory=list)  # seconds, of those that went well
    errors: Counter[str] = field(default_factory=Counter)
    _under_way: int = 0

    async def run(self, flights: list[dict[str, Any]]) -> None:
        """Send a flight every 1 / rate seconds, and wait for the last answer."""
        # aiohttp's client takes a fraction of the CPU of httpx: what is measured is the service.
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        async with (
            aiohttp.ClientSession(self.base, timeout=timeout) as client,
            asyncio.TaskGroup() as group,
        ):
            began = time.perf_counter()
            for number in range(round(self.rate * self.seconds)):
                due = began + number / self.rate
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                if self._under_way >= UNDER_WAY:
                    self.errors[f"{UNDER_WAY:,} requests under way"] += 1
                else:
                    self._under_way += 1
                    group.create_task(self._ask(client, flights[number % len(flights)], due))

    async def _ask(self, client: aiohttp.ClientSession, flight: dict[str, Any], due: float) -> None:
        try:
            async with client.post("/late", json=[flight]) as response:
                answer = await response.json() if response.status == 200 else None
            if answer is None:
                self.errors[f"status {response.status}"] += 1
            elif not 0 <= answer[0]["probability"] <= 1:
                self.errors["no probability"] += 1
            else:
                self.times.append(time.perf_counter() - due)
        except TimeoutError:
            self.errors[f"no answer within {self.timeout:g} s"] += 1
        except (aiohttp.ClientError, ValueError, KeyError, TypeError, IndexError) as error:
            self.errors[type(error).__name__] += 1
        finally:
            self._under_way -= 1

    def __str__(self) -> str:
        failed = self.errors.total()
        lines = [f"{len(self.times) + failed:,} requests, {failed:,} errors"]
        lines += [f"  {count:,} × {error}" for error, count in self.errors.most_common()]
        if self.times:
            shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
            lines.append(
                "   ".join(f"{name} {self._at(at) * 1000:.1f} ms" for name, at in shares.items())
            )
        return "\n".join(lines)

    def _at(self, share: float) -> float:
        ordered = sorted(self.times)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def some_flights(path: str) -> list[dict[str, Any]]:
    """Flights of the year's last weeks, in an order that is the same at each run."""
    flights = list(chain.from_iterable(map(flights_of, read(path, 10_000))))
    random.Random(2013).shuffle(flights)
    return flights


def main() -> int:
    parser = argparse.ArgumentParser(description="Put a service of late flights under load.")
    parser.add_argument("base", nargs="?", default="http://localhost:8080")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--flights", default="data/flights.parquet")
    options = parser.parse_args()
    if options.rate <= 0 or options.rate * options.seconds < 1:
        parser.error("--rate and --seconds: at least one request")
    try:
        flights = some_flights(options.flights)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    load = Load(options.base, options.rate, options.seconds)
    asyncio.run(load.run(flights))
    print(load)
    return 1 if load.errors else 0


if __name__ == "__main__":
    sys.exit(main())
