"""Ask a service about many flights: which of them are most at risk?

    python client.py [http://localhost:8080] [--flights data/flights.parquet] [--count 20000]

Either service will do. Flights go out in requests of a thousand lines, four at a time, and each
answer is read line by line as it comes.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

FLIGHTS_PER_REQUEST = 1_000
REQUESTS_AT_ONCE = 4
TRIES = 5

Flight = dict[str, Any]


class ServiceError(Exception):
    """The service does not answer, or refuses."""


def read(path: str, count: int) -> list[pa.RecordBatch]:
    """The last flights of the file, a request's worth at a time."""
    columns = ["carrier", "tailnum", "origin", "distance", "event_timestamp", "departure_hour"]
    table = pq.read_table(path, columns=columns)
    batches: list[pa.RecordBatch] = table[-count:].to_batches(FLIGHTS_PER_REQUEST)
    return batches


def flights_of(batch: pa.RecordBatch) -> list[Flight]:
    """Flights as the services want them."""
    flights: list[Flight] = batch.to_pylist()
    for flight in flights:
        day = flight.pop("event_timestamp").date()
        minutes = round(flight.pop("departure_hour") * 60)
        flight["departure"] = f"{day}T{minutes // 60:02}:{minutes % 60:02}"
    return flights


async def ask(client: httpx.AsyncClient, flights: list[Flight]) -> list[float]:
    """The probability of each flight to be late. A service that is busy says when to come again."""
    for attempt in range(TRIES):
        try:
            return [answer["probability"] async for answer in _answers(client, flights)]
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 503:
                raise ServiceError(f"status {error.response.status_code}") from error
            seconds = float(error.response.headers.get("Retry-After", 1))
            await asyncio.sleep(seconds * (attempt + 1))
        except httpx.TransportError as error:
            raise ServiceError(f"{client.base_url} does not answer: {error!r}") from error
    raise ServiceError(f"the service is busy, at the last of {TRIES} tries too")


async def _answers(
    client: httpx.AsyncClient, flights: list[Flight]
) -> AsyncIterator[dict[str, Any]]:
    body = "".join(f"{json.dumps(flight)}\n" for flight in flights)
    async with client.stream("POST", "/late/stream", content=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            answer = json.loads(line)
            if "error" in answer:
                raise ServiceError(f"flight {answer['line']}: {answer['error']}")
            yield answer


async def most_at_risk(base: str, path: str, count: int) -> list[tuple[float, Flight]]:
    """All flights with their risks, the highest first."""
    found: list[tuple[float, Flight]] = []
    batches = iter(await asyncio.to_thread(read, path, count))

    async def caller() -> None:
        for batch in batches:  # each takes the next that is left
            flights = await asyncio.to_thread(flights_of, batch)
            found.extend(zip(await ask(client, flights), flights, strict=True))

    async with httpx.AsyncClient(base_url=base, timeout=30) as client, asyncio.TaskGroup() as group:
        for _ in range(REQUESTS_AT_ONCE):
            group.create_task(caller())
    return sorted(found, key=lambda one: one[0], reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a service about many flights.")
    parser.add_argument("base", nargs="?", default="http://localhost:8080")
    parser.add_argument("--flights", default="data/flights.parquet")
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    found: list[tuple[float, Flight]] | None = None
    try:
        found = asyncio.run(most_at_risk(options.base, options.flights, options.count))
    except* (ServiceError, OSError) as group:
        print(group.exceptions[0], file=sys.stderr)
    if found is None:
        return 1
    print(f"{len(found):,} flights; most at risk:")
    for risk, flight in found[:5]:
        print(f"{risk:5.0%}  {flight['carrier']} {flight['tailnum']} from {flight['origin']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
