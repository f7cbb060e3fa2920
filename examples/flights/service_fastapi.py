"""A model service on FastAPI: how likely is this flight to arrive late, as of now?

It wants model.json in the working folder, and the database in FEATURESTORE_URL or there too:

    uvicorn service_fastapi:app

    curl -G localhost:8000/late -d carrier=DL -d tailnum=N718TW -d origin=JFK \\
         -d distance=2586 -d departure=2013-12-31T17:30

`POST /late` answers a list of flights, `POST /late/stream` a flight per line.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from model import LateModel
from pydantic import BaseModel, Field
from serving import FLIGHTS_AT_ONCE, SERVICE, Predictor, late, late_lines

import featurestore as fs
from featurestore.integrations.fastapi import Store, add_error_handlers, check_store, lifespan

BODY_SECONDS = 10.0
PIECE = 65_536


class Flight(BaseModel, extra="forbid"):
    """What the caller knows of a flight; `departure` in the airport's local time."""

    carrier: str
    tailnum: str | None = None
    origin: str
    distance: Annotated[int, Field(gt=0, lt=13_000, description="miles")]
    departure: datetime


class Probability(BaseModel):
    probability: float


class Risk(Probability):
    features: dict[str, Any]
    statuses: dict[str, fs.Status]


@asynccontextmanager
async def model(app: FastAPI) -> AsyncIterator[None]:
    """The app's own lifespan: it runs while the store is open."""
    path = os.environ.get("FLIGHTS_MODEL", "model.json")
    loaded = await asyncio.to_thread(LateModel.load, path)
    async with Predictor(loaded) as app.state.predictor:
        yield


app = FastAPI(
    title="Late flights",
    # One store for all requests. Without a database that holds the features it does not start.
    lifespan=lifespan(requires=[SERVICE], inner=model),
    max_body_size=100_000,
)
add_error_handlers(app)


async def get_predictor(request: Request) -> Predictor:
    predictor: Predictor = request.app.state.predictor
    return predictor


Model = Annotated[Predictor, Depends(get_predictor)]


@app.get("/late")
async def late_flight(flight: Annotated[Flight, Query()], store: Store, model: Model) -> Risk:
    # Requests that come together share a query and a prediction: that happens by itself.
    (answer,) = await late(store, model, [flight.model_dump()])
    return Risk(probability=answer.risk, features=answer.features, statuses=answer.statuses)


@app.post("/late")
async def late_flights(
    flights: Annotated[list[Flight], Field(max_length=FLIGHTS_AT_ONCE)], store: Store, model: Model
) -> list[Probability]:
    answers = await late(store, model, [flight.model_dump() for flight in flights])
    return [Probability(probability=answer.risk) for answer in answers]


@app.post("/late/stream", max_body_size=2_000_000)
async def stream(request: Request, store: Store, model: Model) -> StreamingResponse:
    """A flight per line (NDJSON), answered as the caller takes the answers."""
    # Starlette listens to the body for the end of the caller while it answers, so that is read
    # before; service_aiohttp.py answers while it reads.
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.body()
    except TimeoutError:
        raise HTTPException(408, f"The flights did not come within {BODY_SECONDS:g} s.") from None

    async def pieces() -> AsyncIterator[bytes]:
        for first in range(0, len(body), PIECE):
            yield body[first : first + PIECE]

    return StreamingResponse(late_lines(store, model, pieces()), media_type="application/x-ndjson")


@app.get("/health/ready")
async def ready(store: Store) -> dict[str, str]:
    await check_store(store, requires=[SERVICE], seconds=2.0)
    return {"status": "ready"}
