"""One worker: the application in uvicorn, from the first connection to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from featurestore.server.app import create_app
from featurestore.server.connections import Connection
from featurestore.server.limits import ServerLimits
from featurestore.server.peers import Peers
from featurestore.server.state import Auth
from featurestore.store import FeatureStore

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients and load balancers keep theirs, so
that it is mostly they who close."""

DRAIN_SECONDS = 0.3
"""At the end, idle connections are kept this long: a request may be on its way on one of them."""

BACKLOG = 2_048


@dataclass(frozen=True)
class Serving:
    """What is served, and how. ``folder`` is where workers find one another."""

    url: str | None = field(repr=False)  # it may hold a password
    project: str
    auth: Auth
    limits: ServerLimits
    workers: int = 1
    number: int = 0
    folder: Path | None = None

    @property
    def peers(self) -> Peers | None:
        """The other workers, if there are any."""
        if self.folder is None or self.workers == 1:
            return None
        return Peers(self.folder, self.number, self.workers)


class Server(uvicorn.Server):
    """uvicorn's server, which ends without losing a request, or at once when it is told twice.

    ``on_started`` is called when connections are taken, ``on_ending`` when no more are.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: Any,
        on_started: Callable[[], None],
        on_ending: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_started = on_started
        self._on_ending = on_ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.ending = True
        self._on_ending()
        await asyncio.sleep(0)  # connections that the system has taken for us are taken
        for server in self.servers:
            server.close()
        # A client that keeps its connection may be sending on it at this moment. Its answer tells
        # it to close.
        await asyncio.sleep(DRAIN_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        before = {one: signal.signal(one, self._ended) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _ended(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os.write(2, b"Ended at once: requests under way had no answer.\n")
            os._exit(128 + number)
        self.should_exit = True

    def end(self) -> None:
        """End as on the first signal."""
        self.should_exit = True


async def serve(
    serving: Serving,
    listening: socket.socket,
    on_started: Callable[[], None],
    on_ending: Callable[[], None] = lambda: None,
    on_made: Callable[[Server], None] = lambda server: None,
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT; ``on_made`` is given the server."""
    async with FeatureStore(serving.url, project=serving.project) as store:
        app = create_app(store, auth=serving.auth, limits=serving.limits, peers=serving.peers)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            # Each request has its own deadline: this one is for what has none.
            timeout_graceful_shutdown=int(2 * serving.limits.seconds) + 5,
        )
        server = Server(config, app.state.server, on_started, on_ending)
        on_made(server)
        await server.serve([listening])


def run_loop(work: Any) -> None:
    """Run a coroutine to its end, on uvloop where there is one."""
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


def log_to_stderr() -> None:
    """Warnings and errors on standard error, a line each, with time and process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s [%(process)d] %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # What is no HTTP has its answer; anybody could fill a disk with it.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def bind(address: tuple[Any, ...], family: int, *, shared: bool) -> socket.socket:
    """A socket bound to ``address``; ``shared`` with others that say so as well."""
    # Without the protocol, asyncio leaves Nagle's algorithm on for what connects: 40 ms per answer.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound
