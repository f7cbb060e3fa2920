"""The client over TLS: HTTP/2 where the server has it, certificates, cancelled streams."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypercorn
import hypercorn.asyncio
import pytest
import trustme

import featurestore as fs
from featurestore import wire
from featurestore.client import AsyncClient, Client
from featurestore.wire.text import dumps

VIEW = fs.FeatureView("stats", [], [fs.Field("rate", fs.Float64)], "known_at")
ROW = {"known_at": "2024-01-01T00:00:00Z", "rate": 0.5}


class TlsServer:
    """hypercorn in a thread. ``seen`` has (version of HTTP, client's port, path) per request;
    ``/v1/services`` never answers."""

    def __init__(self, certificate: Path, key: Path, protocols: list[str]) -> None:
        self.seen: list[tuple[str, int, str]] = []
        self.gone = threading.Event()
        self._config = hypercorn.Config()
        self._config.bind = ["127.0.0.1:0"]
        self._config.certfile, self._config.keyfile = str(certificate), str(key)
        self._config.alpn_protocols = protocols
        self._config.errorlog = None
        self._config.graceful_timeout = 1
        (listening,) = self._config.create_sockets().secure_sockets
        self.url = f"https://localhost:{listening.getsockname()[1]}"
        self._config.bind = [f"fd://{listening.detach()}"]
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tls-server")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = hypercorn.asyncio.serve(self._app, self._config, shutdown_trigger=self._end.wait)
        self._loop.run_until_complete(serving)
        self._loop.close()

    def __enter__(self) -> TlsServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _app(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.seen.append((scope["http_version"], scope["client"][1], scope["path"]))
        body = await receive()
        while body.get("more_body"):
            body = await receive()
        if scope["path"] == "/v1/services":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()
            return
        answer = {"views": [wire.encode_view(VIEW)]}
        if scope["path"].endswith("/stats"):
            answer = wire.encode_view(VIEW)
        if scope["path"].endswith("/rows"):
            answer = wire.encode_push(fs.PushReport("stats", 1, 1))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": dumps(answer)})


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=[["h2", "http/1.1"], ["http/1.1"]], ids=["2", "1.1"])
def server(
    request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path
) -> Iterator[TlsServer]:
    certificate = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    with TlsServer(chain, key, request.param) as running:
        yield running


only_2 = pytest.mark.parametrize("server", [["h2", "http/1.1"]], ids=["2"], indirect=True)


async def test_the_best_version_that_the_server_has_is_used(
    server: TlsServer, trusted: ssl.SSLContext, request: pytest.FixtureRequest
):
    version = request.node.callspec.id
    async with AsyncClient(server.url, ssl_context=trusted) as client:
        assert await client.list_views() == [VIEW]
        await asyncio.gather(*(client.list_views() for _ in range(30)))
        assert (await client.push("stats", [ROW | {"known_at": None}])).rows_written == 1
    assert {seen[0] for seen in server.seen} == {version}
    connections = len({port for _, port, _ in server.seen})
    assert connections == 1 if version == "2" else 1 < connections <= 20


async def test_without_await(server: TlsServer, trusted: ssl.SSLContext):
    def work() -> None:
        with Client(server.url, ssl_context=trusted) as client:
            assert client.list_views() == [VIEW]

    await asyncio.to_thread(work)


async def test_a_certificate_that_is_not_trusted_is_said_at_once(server: TlsServer):
    async with AsyncClient(server.url, retries=50) as client:
        with pytest.raises(fs.StoreUnavailableError, match=r"(?i)certificate"):
            await client.list_views()
        with pytest.raises(fs.StoreUnavailableError, match=r"(?i)certificate") as caught:
            await client.push("stats", [ROW])
    assert "may have been" not in str(caught.value)
    assert not server.seen


@only_2
async def test_cancelled_calls_do_not_use_up_the_streams_of_a_connection(
    server: TlsServer, trusted: ssl.SSLContext
):
    """httpx does not tell the server of them: the hundredth would be the last."""
    async with AsyncClient(server.url, ssl_context=trusted, max_connections=40) as client:
        await client.list_views()
        for _ in range(4):
            before = len(server.seen)
            hanging = [asyncio.create_task(client.list_services()) for _ in range(39)]
            while len(server.seen) < before + 39:  # noqa: ASYNC110 - it is another thread's
                await asyncio.sleep(0.01)
            answered = asyncio.create_task(client.list_views())
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
            assert await asyncio.wait_for(answered, 10) == [VIEW]
        assert await asyncio.wait_for(client.list_views(), 10) == [VIEW]
        # The server hears of it: the connection ends with the last call that needs it.
        assert await asyncio.to_thread(server.gone.wait, 10)
        lanes = client._transport._connections._here.lanes  # type: ignore[union-attr]
        assert len(lanes) == 1
    assert len({port for _, port, _ in server.seen}) == 5


@only_2
async def test_a_stream_without_an_answer_ends_at_the_deadline(
    server: TlsServer, trusted: ssl.SSLContext
):
    async with AsyncClient(server.url, ssl_context=trusted, timeout=1) as client:
        await client.list_views()
        with pytest.raises(fs.StoreUnavailableError, match="no answer to list_services within 1 s"):
            await client.list_services()
        assert await client.list_views() == [VIEW]
