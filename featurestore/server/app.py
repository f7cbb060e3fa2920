"""The ASGI application: routes, their keys' scopes, and errors in one form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from featurestore import __version__
from featurestore.server.answers import refusal
from featurestore.server.endpoint import Endpoint, Handler
from featurestore.server.features import FeatureRoutes
from featurestore.server.health import Health
from featurestore.server.limits import ServerLimits
from featurestore.server.openapi import document
from featurestore.server.peers import Peers
from featurestore.server.registry import RegistryRoutes
from featurestore.server.state import Auth, ServerState
from featurestore.storage.api_keys import Scope as KeyScope
from featurestore.store import FeatureStore

_DEFAULT_LIMITS = ServerLimits()


def create_app(
    store: FeatureStore,
    *,
    auth: Auth = "required",
    limits: ServerLimits = _DEFAULT_LIMITS,
    peers: Peers | None = None,
) -> FastAPI:
    """The application that serves ``store``, which stays its maker's to close.

    ``auth`` says whether callers need a key: ``"required"``; ``"if-keys"`` from the first key on
    that the project has (for loopback); ``"none"``. ``peers`` are the other workers of the
    server. The server that runs it must run its lifespan, which looks after the requests.
    """
    state = ServerState(store, limits, auth, peers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with state.running():
            yield

    app = _App(title="featurestore", version=__version__, lifespan=lifespan)
    app.state.server = state
    app.document = document(__version__, store.project, auth)
    app.add_exception_handler(HTTPException, _in_our_form)
    routes = _routes(state)
    app.router.routes[:0] = routes
    app.endpoints = {
        (method, route.path): route.app
        for route in routes
        for method in route.methods or ()
        if "{" not in route.path
    }
    return app


class _App(FastAPI):
    """FastAPI, with a short way to routes whose paths hold no names: its own middleware and
    routing take a fifth of the time of an online read."""

    endpoints: Mapping[tuple[str, str], ASGIApp] = {}
    document: dict[str, Any]

    def openapi(self) -> dict[str, Any]:
        return self.document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            endpoint = self.endpoints.get((scope["method"], scope["path"]))
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def _routes(state: ServerState) -> list[Route]:
    features, registry, health = FeatureRoutes(state), RegistryRoutes(state), Health(state)

    def route(
        method: str,
        path: str,
        handler: Handler,
        scope: KeyScope | None = KeyScope.READ,
        *,
        counted: bool = True,
    ) -> Route:
        writes = scope is KeyScope.WRITE
        endpoint = Endpoint(state, path, handler, scope=scope, counted=counted, writes=writes)
        one = Route(path, endpoint, methods=[method])
        one.methods = {method}  # without the HEAD that comes with GET
        return one

    return [
        route("POST", "/v1/online-features", features.online),
        route("POST", "/v1/views/{view}/rows", features.push, KeyScope.WRITE),
        route("POST", "/v1/historical-features", features.historical),
        route("GET", "/v1/views", registry.views),
        route("GET", "/v1/entities", registry.entities),
        route("GET", "/v1/services", registry.services),
        route("GET", "/v1/views/{name}", registry.view),
        route("GET", "/v1/entities/{name}", registry.entity),
        route("GET", "/v1/services/{name}", registry.service),
        route("GET", "/health", health.health, None, counted=False),
        route("GET", "/health/live", health.live, None, counted=False),
        route("GET", "/health/ready", health.ready, None, counted=False),
        route("GET", "/metrics", health.metrics, counted=False),
    ]


async def _in_our_form(request: Request, error: Exception) -> Response:
    """What routing refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"There is no {request.url.path}; /docs shows what there is."
    else:
        message = f"{request.method} {request.url.path}: {error.detail}."
    answer = refusal(error.status_code, message)
    return Response(answer.body, answer.status, error.headers, "application/json")
