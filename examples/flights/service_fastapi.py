"""A model service on FastAPI: how likely is this flight to arrive late, as of now?

It wants model.json in the working folder, and the database in FEATURESTORE_URL or there too:

    uvicorn service_fastapi:app

    curl -G localhost:8000/late -d carrier=DL -d tailnum=N718TW -d origin=JFK \\
         -d distance=2586 -d departure=2013-12-31T17:30
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse
from model import LateModel, departure_features
from pydantic import BaseModel, Field

import featurestore as fs


class Flight(BaseModel, extra="forbid"):
    """What the caller knows of a flight; `departure` in the airport's local time."""

    carrier: str
    tailnum: str | None = None
    origin: str
    distance: Annotated[int, Field(gt=0, lt=13_000, description="miles")]
    departure: datetime


class Risk(BaseModel):
    probability: float
    features: dict[str, Any]
    statuses: dict[str, fs.Status]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The store lives as long as the app: one, shared by all requests."""
    model = os.environ.get("FLIGHTS_MODEL", "model.json")
    app.state.model = await asyncio.to_thread(LateModel.load, model)
    async with fs.FeatureStore() as store:
        app.state.store = store
        yield


app = FastAPI(title="Late flights", lifespan=lifespan)


def get_store(request: Request) -> fs.FeatureStore:
    store: fs.FeatureStore = request.app.state.store
    return store


def get_model(request: Request) -> LateModel:
    model: LateModel = request.app.state.model
    return model


@app.get("/late")
async def late(
    flight: Annotated[Flight, Query()],
    store: Annotated[fs.FeatureStore, Depends(get_store)],
    model: Annotated[LateModel, Depends(get_model)],
) -> Risk:
    # Requests that come together share a query: no batching is needed here.
    answer = await store.get_online_features("arrival_delay", [flight.model_dump()])
    features = answer.to_dicts()[0]
    known = {**features, **flight.model_dump(), **departure_features(flight.departure)}
    # Ten microseconds: not worth a thread. A model that takes a millisecond or more is.
    return Risk(
        probability=model.probability(known), features=features, statuses=answer.statuses[0]
    )


@app.exception_handler(fs.FeatureStoreError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    match error:
        case fs.OverloadedError() | fs.StoreUnavailableError():  # trying again helps
            return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
        case fs.InvalidRowsError():  # a key that cannot be, such as text with NUL
            return JSONResponse({"detail": str(error)}, 422)
        case _:  # nothing that the caller did: not set up, not migrated
            return JSONResponse({"detail": "The feature store is not ready."}, 500)
