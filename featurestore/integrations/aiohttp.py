"""A store in an aiohttp app: :func:`store_context`, :data:`STORE`, :func:`error_middleware`.

::

    app = web.Application(middlewares=[error_middleware()])
    app.cleanup_ctx.append(store_context("postgresql://…", requires=["eta"]))

    async def driver(request: web.Request) -> web.Response:
        row = {"driver_id": int(request.match_info["driver_id"])}
        answer = await store_of(request).get_online_features("eta", [row])
        return web.json_response(answer.to_dicts()[0])
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from featurestore.errors import DefinitionError, FeatureStoreError
from featurestore.integrations._answers import Statuses, answer_to, check_statuses
from featurestore.integrations._stores import (
    OnUnready,
    Source,
    check_arguments,
    check_store,
    opened,
)
from featurestore.selection import Features
from featurestore.store import FeatureStore

try:
    from aiohttp import web
    from aiohttp.typedefs import Handler, Middleware
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{__name__} needs aiohttp: pip install aiohttp", name=error.name
    ) from error

__all__ = ["STORE", "check_store", "error_middleware", "store_context", "store_of"]

STORE = web.AppKey("featurestore", FeatureStore)
"""Where an app has its store: ``app[STORE]``. Several have keys of their own."""


def store_context(
    source: Source = None,
    *,
    key: web.AppKey[FeatureStore] = STORE,
    requires: Iterable[Features] = (),
    on_unready: OnUnready = "fail",
) -> Callable[[web.Application], AsyncIterator[None]]:
    """For ``app.cleanup_ctx``: opens a store when the app starts, closes it when the app ends.

    ``source`` is a URL, by default ``FEATURESTORE_URL``, or a function without arguments that
    makes the store, or an async context manager of one. Several stores of one app have a ``key``
    each. Contexts that come after this one in ``cleanup_ctx`` find the store open.

    Before the app serves, its store is looked at (:func:`check_store`): the database must answer
    and be migrated, and each request of ``requires``, such as the name of a service, be there. If
    not, the start fails with that error, or with ``on_unready="serve"`` the app starts with a
    warning in the log, and each request gets the error until the store is there.
    """
    required = check_arguments(source, requires, on_unready)

    async def run(app: web.Application) -> AsyncIterator[None]:
        if key in app:
            raise DefinitionError(
                f"The app has a store at {key} already: make a web.AppKey for each."
            )
        async with opened(source, required, on_unready) as store:
            app[key] = store
            yield

    return run


def store_of(request: web.Request, key: web.AppKey[FeatureStore] = STORE) -> FeatureStore:
    """The store of the request's app, or of an app around it."""
    store = request.config_dict.get(key)
    if store is None:
        raise DefinitionError(
            f"No feature store is open in this app at {key}: append store_context() to its "
            f"cleanup_ctx, or to that of the app around it."
        )
    return store


def error_middleware(*, statuses: Statuses | None = None) -> Middleware:
    """Answer requests that end in an error of featurestore: 404 for what is not registered, 422
    for rows that cannot be, 503 with Retry-After while the database is away or overloaded.

    The body is ``{"error": {"type": …, "message": …}}``, as ``featurestore serve`` gives it. Of 500
    and above the caller is told in general and the log, ``featurestore.integrations``, in full.
    ``statuses`` has other statuses for classes of errors.
    """
    table = check_statuses(statuses)

    @web.middleware
    async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except FeatureStoreError as error:
            if request.writer.output_size > 0:  # half an answer is out: its end must be missed
                raise
            answer = answer_to(error, table, f"{request.method} {request.path}")
            body = {"error": answer.error}
            return web.json_response(body, status=answer.status, headers=answer.headers)

    return answer_errors
