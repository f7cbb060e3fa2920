"""What all frameworks share: making a store for an app, and looking at it before it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

import sqlalchemy as sa

from featurestore.errors import DefinitionError, FeatureStoreError, StoreUnavailableError
from featurestore.selection import Features
from featurestore.store import FeatureStore

Source = str | sa.URL | Callable[[], AbstractAsyncContextManager[FeatureStore]] | None
"""Where a store comes from: a URL, or a function without arguments that makes the store. None is
the store's own default, ``FEATURESTORE_URL``."""

OnUnready = Literal["fail", "serve"]

CHECK_SECONDS = 10.0
"""How long a check of a store waits for its database."""

log = logging.getLogger("featurestore.integrations")


async def check_store(
    store: FeatureStore, *, requires: Iterable[Features] = (), seconds: float = CHECK_SECONDS
) -> None:
    """Return if the store can serve: what a startup or a readiness probe asks.

    ``requires`` are requests as :meth:`FeatureStore.get_online_features` takes them, such as the
    names of services. Raises :class:`StoreUnavailableError` where the database is not reached or
    does not answer within ``seconds``, :class:`MigrationRequiredError` where it is empty or of
    another revision, :class:`NotFoundError` or :class:`DefinitionError` where something that is
    required cannot be read online.
    """
    try:
        async with asyncio.timeout(seconds):
            await store.list_views()  # reads the registry anew, so that the rest is of now
            for features in requires:
                await store.get_online_features(features, [])
    except TimeoutError as error:
        raise StoreUnavailableError(f"{store} did not answer within {seconds:g} s.") from error


@asynccontextmanager
async def opened(
    source: Source, requires: Iterable[Features], on_unready: OnUnready
) -> AsyncIterator[FeatureStore]:
    """A store from ``source``, checked; closed at the end."""
    async with _make(source) as store:
        if not isinstance(store, FeatureStore):
            raise DefinitionError(
                f"The function that makes the store gave {type(store).__name__}: give one that "
                f"returns a FeatureStore, or an async context manager of one."
            )
        try:
            await check_store(store, requires=requires)
        except FeatureStoreError as error:
            if on_unready == "fail":
                raise
            log.warning("The service starts although its feature store is not ready: %s", error)
        yield store


def check_arguments(source: Any, requires: Any, on_unready: Any) -> list[Features]:
    """The requests of ``requires``; a mistake is an error where it is made, not at startup."""
    if isinstance(source, FeatureStore):
        raise DefinitionError(
            "An app opens its own store each time that it starts: give a URL, or a function that "
            "makes the store, such as lambda: FeatureStore(url)."
        )
    if source is not None and not isinstance(source, str | sa.URL) and not callable(source):
        raise DefinitionError(
            f"{type(source).__name__} is no source of a store: give a URL, or a function that "
            f"makes the store."
        )
    if on_unready not in ("fail", "serve"):
        raise DefinitionError(f"on_unready={on_unready!r}: it is 'fail' or 'serve'.")
    if isinstance(requires, str) or not isinstance(requires, Iterable):
        raise DefinitionError(
            f"requires={requires!r}: it is a list of requests, such as ['my_service']."
        )
    return list(requires)


def _make(source: Source) -> AbstractAsyncContextManager[FeatureStore]:
    if source is None or isinstance(source, str | sa.URL):
        return FeatureStore(source)
    made = source()
    if not isinstance(made, AbstractAsyncContextManager):
        raise DefinitionError(
            f"The function that makes the store gave {type(made).__name__}: give one that returns "
            f"a FeatureStore, or an async context manager of one."
        )
    return made
