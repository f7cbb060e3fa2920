"""A store in a Starlette app: :func:`lifespan`, :func:`store_of`, :func:`add_error_handlers`.

::

    app = Starlette(routes=…, lifespan=lifespan("postgresql://…"))
    add_error_handlers(app)

    async def driver(request: Request) -> Response:
        answer = await store_of(request).get_online_features("eta", [request.path_params])
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

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
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse, Response
    from starlette.websockets import WebSocket
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{__name__} needs Starlette: pip install starlette", name=error.name
    ) from error

__all__ = ["Lifespan", "add_error_handlers", "check_store", "lifespan", "store_of"]

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
"""What Starlette and FastAPI take as ``lifespan``: from the app to a context manager of its
state, if it has one."""

_DEFAULT = "default"
_INTERNAL_ERROR, _TRY_AGAIN_LATER, _POLICY_VIOLATION = 1011, 1013, 1008  # of closing a websocket


def lifespan(
    source: Source = None,
    *,
    name: str = _DEFAULT,
    requires: Iterable[Features] = (),
    on_unready: OnUnready = "fail",
    inner: Lifespan | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """A lifespan that opens a store when the app starts and closes it when the app ends.

    ``source`` is a URL, by default ``FEATURESTORE_URL``, or a function without arguments that
    makes the store, or an async context manager of one. ``name`` tells several stores of one app
    apart. ``inner`` is the app's own lifespan: it runs while the store is open, and finds it by
    ``store_of(app)``; its state is kept.

    Before the app serves, its store is looked at (:func:`check_store`): the database must answer
    and be migrated, and each request of ``requires``, such as the name of a service, be there. If
    not, the start fails with that error, or with ``on_unready="serve"`` the app starts with a
    warning in the log, and each request gets the error until the store is there.
    """
    required = check_arguments(source, requires, on_unready)
    key = _key(name)

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        if hasattr(app.state, key):
            raise DefinitionError(
                f"The app has a store named {name!r} already: give one of them another name."
            )
        async with opened(source, required, on_unready) as store:
            # The state of the app is there in tests that run the lifespan by themselves, that of
            # the lifespan in apps that are mounted in this one.
            setattr(app.state, key, store)
            try:
                if inner is None:
                    yield {key: store}
                else:
                    async with inner(app) as state:
                        yield {**(state or {}), key: store}
            finally:
                delattr(app.state, key)

    return run


def store_of(where: HTTPConnection | Starlette, name: str = _DEFAULT) -> FeatureStore:
    """The store of a request's app, a websocket's, or of the app itself."""
    key = _key(name)
    if isinstance(where, HTTPConnection):
        found = where.scope.get("state", {}).get(key)
        app = where.scope.get("app")
    else:
        found, app = None, where
    if found is None:
        found = getattr(getattr(app, "state", None), key, None)
    if found is None:
        other = "" if name == _DEFAULT else f"name={name!r}"
        raise DefinitionError(
            f"No feature store is open in this app{f' as {name!r}' if other else ''}: make the app "
            f"with lifespan=lifespan({other}), and in tests run its lifespan or override the "
            f"dependency."
        )
    store: FeatureStore = found
    return store


def add_error_handlers(app: Starlette, *, statuses: Statuses | None = None) -> None:
    """Answer requests that end in an error of featurestore: 404 for what is not registered, 422
    for rows that cannot be, 503 with Retry-After while the database is away or overloaded.

    The body is ``{"detail": message, "error": {"type": …, "message": …}}``, as
    ``featurestore serve`` gives it, and FastAPI's ``detail`` beside it. Of 500 and above the caller
    is told in general and the log, ``featurestore.integrations``, in full. ``statuses`` has
    other statuses for classes of errors. A websocket is closed with the matching code.
    """
    table = check_statuses(statuses)

    async def handle(connection: HTTPConnection, error: Exception) -> Response | None:
        assert isinstance(error, FeatureStoreError)
        path = connection.scope.get("path", "")
        asked = f"{connection.scope.get('method', 'websocket')} {path}"
        answer = answer_to(error, table, asked)
        if isinstance(connection, WebSocket):
            code = _POLICY_VIOLATION if answer.status < 500 else _INTERNAL_ERROR
            if answer.status == 503:
                code = _TRY_AGAIN_LATER
            # A reason may have 123 bytes.
            await connection.close(code, answer.message.encode()[:123].decode(errors="ignore"))
            return None
        body = {"detail": answer.message, "error": answer.error}
        return JSONResponse(body, answer.status, answer.headers)

    app.add_exception_handler(FeatureStoreError, handle)  # type: ignore[arg-type]


def _key(name: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise DefinitionError(f"name={name!r}: the name of a store is an identifier.")
    return f"featurestore_{name}"
