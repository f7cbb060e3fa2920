"""A store in a FastAPI app: :func:`lifespan`, :data:`Store`, :func:`add_error_handlers`.

::

    app = FastAPI(lifespan=lifespan("postgresql://…", requires=["eta"]))
    add_error_handlers(app)

    @app.get("/drivers/{driver_id}")
    async def driver(driver_id: int, store: Store) -> dict[str, Any]:
        answer = await store.get_online_features("eta", [{"driver_id": driver_id}])
        return answer.to_dicts()[0]

A test gives another store with ``app.dependency_overrides[get_store] = lambda: other``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated

from featurestore.errors import DefinitionError
from featurestore.store import FeatureStore

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{__name__} needs FastAPI: pip install fastapi", name=error.name
    ) from error

from featurestore.integrations.starlette import (
    Lifespan,
    add_error_handlers,
    check_store,
    lifespan,
    store_of,
)

__all__ = [
    "Lifespan",
    "Store",
    "add_error_handlers",
    "check_store",
    "get_store",
    "lifespan",
    "store_named",
    "store_of",
]


# Not a plain function: FastAPI would hand that to a thread for each request.
async def get_store(connection: HTTPConnection) -> FeatureStore:
    """The dependency: the app's store, in requests and websockets."""
    return store_of(connection)


Store = Annotated[FeatureStore, Depends(get_store)]
"""The type of a parameter that is given the app's store."""


@cache
def store_named(name: str) -> Callable[[HTTPConnection], Awaitable[FeatureStore]]:
    """The dependency for one of several stores, the same object at each call (so that it can be
    overridden): ``Prices = Annotated[FeatureStore, Depends(store_named("prices"))]``."""
    if not isinstance(name, str):
        raise DefinitionError(f"name={name!r}: the name of a store is an identifier.")

    async def get_named_store(connection: HTTPConnection) -> FeatureStore:
        return store_of(connection, name)

    return get_named_store
