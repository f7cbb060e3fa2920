"""A store behind its server, on a socket, in the test's own loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

import featurestore as fs
from featurestore.server import create_app
from featurestore.server.connections import Connection


class _Quiet(uvicorn.Server):
    """uvicorn without its signal handlers: they are the test run's."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


@asynccontextmanager
async def served(store: fs.FeatureStore, **options: Any) -> AsyncIterator[str]:
    """The URL of a server of ``store``; ``options`` are those of ``create_app``."""
    app = await asyncio.to_thread(lambda: create_app(store, **{"auth": "none", **options}))
    # With the protocol said, asyncio switches Nagle's algorithm off for what connects to it.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = _Quiet(config)
    running = asyncio.create_task(server.serve([listening]))
    try:
        while not server.started:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
        listening.close()
