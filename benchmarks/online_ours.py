"""The store's own reads and writes for `online.py`. An answer counts when its dict is there."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from online_data import FEATURES, KEYS, READ, SEVERAL, WRITTEN, asked_of
from online_peers import VALUES, Read, ReadMany, Row, Write

import featurestore as fs

STALENESS = dt.timedelta(hours=1)


class NotThere(Exception):
    """What is to be measured does not exist."""


@asynccontextmanager
async def reading(url: str, **options: Any) -> AsyncIterator[Read]:
    """A store, of which each call asks for the 8 features of one key."""
    asked = asked_of([READ])
    async with fs.FeatureStore(url, **options) as store:

        async def read(key: int) -> Row:
            answer = await store.get_online_features(asked, [{"driver_id": key}])
            return answer.to_dicts()[0]

        yield read


@asynccontextmanager
async def cached(url: str) -> AsyncIterator[Read]:
    """The same with a cache in the process, large enough for all keys."""
    cache: Any = getattr(fs, "Cache", None)
    if cache is None:
        raise NotThere("NOT THERE: fs.Cache")
    async with reading(url, cache=cache(max_entries=KEYS, max_staleness=STALENESS)) as read:
        yield read


@asynccontextmanager
async def reading_many(url: str) -> AsyncIterator[ReadMany]:
    """A store, of which each call asks for the 8 features of many keys."""
    asked = asked_of([READ])
    async with fs.FeatureStore(url) as store:

        async def read(keys: Sequence[int]) -> list[Row]:
            answer = await store.get_online_features(asked, [{"driver_id": key} for key in keys])
            return answer.to_dicts()

        yield read


@asynccontextmanager
async def reading_several(url: str) -> AsyncIterator[Read]:
    """A store, of which each call asks for the 8 features of each of five views, of one key."""
    asked = asked_of(SEVERAL)
    async with fs.FeatureStore(url) as store:

        async def read(key: int) -> Row:
            answer = await store.get_online_features(asked, [{"driver_id": key}])
            return answer.to_dicts()[0]

        yield read


@asynccontextmanager
async def pushing(url: str) -> AsyncIterator[Write]:
    """A store, to which each call pushes one row."""
    values = dict(zip(FEATURES, VALUES, strict=True))
    async with fs.FeatureStore(url) as store:

        async def write(key: int) -> None:
            now = dt.datetime.now(dt.UTC)
            await store.push(WRITTEN, [{"driver_id": key, "event_timestamp": now, **values}])

        yield write
