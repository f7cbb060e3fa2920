"""A model service on aiohttp: how likely is each of these flights to arrive late, as of now?

It wants model.json in the working folder, and the database in FEATURESTORE_URL or there too:

    python service_aiohttp.py

    curl localhost:8080/late -d '[{"carrier": "DL", "tailnum": "N718TW", "origin": "JFK",
         "distance": 2586, "departure": "2013-12-31T17:30"}]'
"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from model import LateModel, departure_features

import featurestore as fs

STORE = web.AppKey("store", fs.FeatureStore)
MODEL = web.AppKey("model", LateModel)

# What is wanted of a flight; `departure` in the airport's local time, ISO 8601.
FLIGHT = {
    "carrier": str,
    "tailnum": str | None,
    "origin": str,
    "distance": int,
    "departure": str,
}


async def store_context(app: web.Application) -> AsyncIterator[None]:
    """The store lives as long as the app: one, shared by all requests."""
    model = os.environ.get("FLIGHTS_MODEL", "model.json")
    app[MODEL] = await asyncio.to_thread(LateModel.load, model)
    async with fs.FeatureStore() as store:
        app[STORE] = store
        yield


async def late(request: web.Request) -> web.Response:
    """Answers a list of flights, in order, from one read of the store."""
    flights = check(await request.json())
    answer = await request.app[STORE].get_online_features("arrival_delay", flights)
    # The list may be long: the loop goes on serving others meanwhile.
    risks = await asyncio.to_thread(predict, request.app[MODEL], flights, answer.to_dicts())
    return web.json_response([{"probability": risk} for risk in risks])


def check(flights: Any) -> list[dict[str, Any]]:
    """The flights that were sent, or ValueError."""
    if not isinstance(flights, list) or not all(isinstance(flight, dict) for flight in flights):
        raise ValueError("send a list of flights")
    for number, flight in enumerate(flights):
        for name, kinds in FLIGHT.items():
            if not isinstance(flight.setdefault(name, None), kinds):
                raise ValueError(f"flight {number}: {name} is missing or of a wrong type")
        if not 0 < flight["distance"] < 13_000:
            raise ValueError(f"flight {number}: no distance on Earth")
        datetime.fromisoformat(flight["departure"])
    return flights


def predict(
    model: LateModel, flights: list[dict[str, Any]], features: list[dict[str, Any]]
) -> list[float]:
    departures = [
        departure_features(datetime.fromisoformat(flight["departure"])) for flight in flights
    ]
    return [
        model.probability({**known, **flight, **departure})
        for known, flight, departure in zip(features, flights, departures, strict=True)
    ]


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (fs.OverloadedError, fs.StoreUnavailableError) as error:  # trying again helps
        body, headers = {"error": str(error)}, {"Retry-After": "1"}
        return web.json_response(body, status=503, headers=headers)
    except (ValueError, fs.InvalidRowsError) as error:  # what the caller sent cannot be
        return web.json_response({"error": str(error)}, status=422)


def create_app() -> web.Application:
    app = web.Application(middlewares=[errors])
    app.cleanup_ctx.append(store_context)
    app.router.add_post("/late", late)
    return app


if __name__ == "__main__":
    web.run_app(create_app())
