"""A model service on aiohttp: how likely is each of these flights to arrive late, as of now?

It wants model.json in the working folder, and the database in FEATURESTORE_URL or there too:

    python service_aiohttp.py

    curl localhost:8080/late -d '[{"carrier": "DL", "tailnum": "N718TW", "origin": "JFK",
         "distance": 2586, "departure": "2013-12-31T17:30"}]'

`POST /late/stream` answers a flight per line, while more of them are coming.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from model import LateModel
from serving import FLIGHTS_AT_ONCE, SERVICE, Predictor, flight_of, late, late_lines

from featurestore.integrations.aiohttp import (
    check_store,
    error_middleware,
    store_context,
    store_of,
)

PREDICTOR = web.AppKey("predictor", Predictor)
STALL_SECONDS = 30.0  # a caller that neither sends nor takes for so long is given up
PIECE = 65_536


async def model_context(app: web.Application) -> AsyncIterator[None]:
    path = os.environ.get("FLIGHTS_MODEL", "model.json")
    loaded = await asyncio.to_thread(LateModel.load, path)
    async with Predictor(loaded) as app[PREDICTOR]:
        yield


async def late_flights(request: web.Request) -> web.Response:
    """Answers a list of flights, in order, from one read of the store."""
    flights = check(await request.json())
    # Requests that come together share a query and a prediction: that happens by itself.
    answers = await late(store_of(request), request.app[PREDICTOR], flights)
    return web.json_response([{"probability": answer.risk} for answer in answers])


async def stream(request: web.Request) -> web.StreamResponse:
    """A flight per line (NDJSON), each answered before more are read: a caller that takes no
    answers is asked for no more flights."""

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(STALL_SECONDS):
                piece = await request.content.read(PIECE)
            if not piece:
                return
            yield piece

    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for answers in late_lines(store_of(request), request.app[PREDICTOR], pieces()):
        async with asyncio.timeout(STALL_SECONDS):
            await response.write(answers)  # returns when the caller has taken enough of it
    return response


async def ready(request: web.Request) -> web.Response:
    await check_store(store_of(request), requires=[SERVICE], seconds=2.0)
    return web.json_response({"status": "ready"})


def check(flights: Any) -> list[dict[str, Any]]:
    """The flights that were sent, or ValueError."""
    if not isinstance(flights, list) or len(flights) > FLIGHTS_AT_ONCE:
        raise ValueError(f"send a list of at most {FLIGHTS_AT_ONCE} flights")
    checked = []
    for number, flight in enumerate(flights):
        try:
            checked.append(flight_of(flight))
        except ValueError as error:
            raise ValueError(f"flight {number}: {error}") from error
    return checked


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the caller sent cannot be: the same form as for errors of the store."""
    try:
        return await handler(request)
    except ValueError as error:
        body = {"error": {"type": "ValueError", "message": str(error)}}
        return web.json_response(body, status=422)


def create_app() -> web.Application:
    app = web.Application(middlewares=[error_middleware(), refuse], client_max_size=100_000)
    # One store for all requests. Without a database that holds the features it does not start.
    app.cleanup_ctx.append(store_context(requires=[SERVICE]))
    app.cleanup_ctx.append(model_context)
    app.router.add_post("/late", late_flights)
    app.router.add_post("/late/stream", stream)
    app.router.add_get("/health/ready", ready)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the model of late flights.")
    parser.add_argument("--port", type=int, default=8080)
    web.run_app(create_app(), host="localhost", port=parser.parse_args().port)
