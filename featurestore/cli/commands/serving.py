"""serve: a project over HTTP."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output
from featurestore.cli.amounts import Count, Size, size_in_full
from featurestore.cli.options import Command, Settings, WrongUse, pass_settings
from featurestore.cli.output import plural
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore.server.running import Serving
    from featurestore.server.state import Auth
    from featurestore.storage.api_keys import ApiKey

BODY, VALUES, REQUESTS, SECONDS = 16 << 20, 1_000_000, 1_000, 30.0
"""As in ServerLimits, which would bring the server along; a test holds them equal."""


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="Port; 0 for one that is free.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that share the port; each takes a core at most.",
)
@click.option(
    "--no-auth",
    is_flag=True,
    help="Demand no keys, and let everybody who reaches the port read and write.",
)
@click.option(
    "--max-body",
    type=Size(),
    default=BODY,
    metavar="SIZE",
    help=f"Largest body of a request. Else {size_in_full(BODY)}.",
)
@click.option(
    "--max-values",
    type=Count(),
    default=VALUES,
    metavar="N",
    help=f"Most entities × features of a request. Else {VALUES:,}.",
)
@click.option(
    "--max-requests",
    type=Count(),
    default=REQUESTS,
    metavar="N",
    help=f"Most requests under way in a worker; beyond it, 503. Else {REQUESTS:,}.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1, max=3600),
    default=SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long a request may take.",
)
@pass_settings
def serve(
    settings: Settings, host: str, port: int, workers: int, no_auth: bool, **most: Any
) -> None:
    """Serve the project's features over HTTP.

    Keys are made by featurestore keys create. On this machine alone (the default) they are
    demanded once there are any; elsewhere always.

    \b
    It ends by Ctrl-C or SIGTERM, when requests under way have their answers; at once by the
    second.
    """
    try:
        from featurestore.server.limits import ServerLimits
        from featurestore.server.running import Serving, bind, log_to_stderr
    except ImportError as error:
        raise WrongUse(
            f"featurestore serve needs more packages ({error.name} is missing): "
            f"pip install 'featurestore[server]'"
        ) from error
    family, address = _resolve(host, port)
    auth = _auth(settings, address[0], no_auth)
    limits = ServerLimits(
        body_bytes=most["max_body"],
        values=most["max_values"],
        requests=most["max_requests"],
        bytes_in_flight=max(ServerLimits().bytes_in_flight, most["max_body"]),
        seconds=most["timeout"],
    )
    serving = Serving(settings.url, settings.project, auth, limits, workers)
    if workers > 1 and not hasattr(socket, "SO_REUSEPORT"):
        raise WrongUse("This system cannot share a port among workers: use --workers 1.")
    log_to_stderr()
    try:
        bound = bind(address, family, shared=workers > 1)
    except OSError as error:
        raise WrongUse(f"{host} port {port} cannot be listened on: {error.strerror}.") from error
    try:
        _run(settings, serving, bound)
    finally:
        bound.close()


def _run(settings: Settings, serving: Serving, bound: socket.socket) -> None:
    from featurestore.server.running import run_loop
    from featurestore.server.running import serve as serve_here
    from featurestore.server.workers import supervise

    url = _url(bound.getsockname())

    def started() -> None:
        if settings.json:
            output.print_json({"url": url, "project": serving.project, "workers": serving.workers})
            sys.stdout.flush()  # whoever started the server waits for it
        workers = f", {plural(serving.workers, 'worker')}" if serving.workers > 1 else ""
        output.say(f"Serving project {serving.project} on {url} (docs: {url}/docs{workers}).")
        output.say(_AUTH[serving.auth])

    def ending() -> None:
        output.say("Ending: requests under way are answered; again ends it at once.")

    if serving.workers > 1:
        work = supervise(serving, bound, output.say, started, ending)
    else:
        work = serve_here(serving, bound, started, ending)
    run_loop(work)
    output.say("Ended.")


_AUTH = {
    "required": "Requests need a key.",
    "if-keys": "Requests from this machine need no key until the project has one.",
    "none": "Requests need no key: everybody who reaches the port may read and write.",
}


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Where to listen: the first address of ``host``."""
    try:
        flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
        found = socket.getaddrinfo(host, str(port), type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise WrongUse(f"--host {host}: {error}") from error
    return found[0][0], found[0][4]


def _url(address: Sequence[Any]) -> str:
    host, port = address[0], address[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _auth(settings: Settings, address: str, no_auth: bool) -> Auth:
    """Whether keys are demanded. It is also the first look at the database."""
    keys = run(_keys(settings), "Interrupted.")
    if no_auth:
        return "none"
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return "if-keys"
    if not any(key.revoked_at is None for key in keys):
        raise WrongUse(
            f"Others can reach {address}, and project {settings.project!r} has no key: make one by "
            f"'featurestore keys create NAME', or say --no-auth to let everybody in."
        )
    return "required"


async def _keys(settings: Settings) -> Sequence[ApiKey]:
    from featurestore.storage.api_keys import list_keys

    async with open_store(settings) as store:
        await store.list_views()  # says what is wrong with a database that is not migrated
        async with store._context.snapshot() as session:
            return await list_keys(session, store.project)
