"""What the HTTP server does not take on: size, number, time, clients who leave."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pyarrow as pa
import pytest
from http_serving import (
    ARROW,
    DAY,
    DRIVERS,
    HISTORICAL,
    ONLINE,
    PUSH,
    SECONDS,
    asked,
    client_of,
    held_aside,
    listening,
    row,
    rows_in,
)

import featurestore as fs
from featurestore import wire
from featurestore.server import ServerLimits, connections

SMALL = ServerLimits(body_bytes=2_000, values=40, requests=3, bytes_in_flight=2_500, seconds=0.4)


@pytest.fixture
async def store(feature_store: fs.FeatureStore) -> fs.FeatureStore:
    await feature_store.apply([DRIVERS])
    return feature_store


@pytest.fixture
async def client(store: fs.FeatureStore) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, limits=SMALL) as client:
        yield client


def refused(answer: httpx.Response, status: int) -> str:
    """The message of a refusal, which has the form of all errors."""
    assert answer.status_code == status, answer.text
    assert (answer.headers.get("retry-after") == "1") == (status == 503)
    error = wire.decode_error(answer.json())
    assert isinstance(error, fs.OverloadedError) == (status == 503)
    return str(error)


# --- size ---------------------------------------------------------------------------------


async def test_a_large_body_is_refused_by_its_length(client: httpx.AsyncClient):
    said = refused(await client.post(ONLINE, json=asked(*range(1_000))), 413)
    assert "2,000 bytes" in said


async def test_a_large_body_without_a_length_is_refused_as_it_comes(client: httpx.AsyncClient):
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 500
            yield b" " * 500

    headers = {"Content-Type": "application/json"}
    refused(await client.post(ONLINE, content=body(), headers=headers), 413)
    assert sent <= 3_000


async def test_a_body_in_parts_is_taken(client: httpx.AsyncClient):
    async def body() -> AsyncIterator[bytes]:
        yield b'{"features": ["drivers:rate"], '
        yield b'"entities": [{"driver_id": 1}]}'

    headers = {"Content-Type": "application/json"}
    answer = await client.post(ONLINE, content=body(), headers=headers)
    assert answer.json()["rows"] == [[1, None]]


async def test_too_many_values_are_refused(client: httpx.AsyncClient):
    features = ["drivers:*"]
    assert (await client.post(ONLINE, json=asked(*range(20), features=features))).is_success
    said = refused(await client.post(ONLINE, json=asked(*range(21), features=features)), 413)
    assert "21 rows of 2 features" in said
    said = refused(await client.post(PUSH, json={"rows": [row(n) for n in range(11)]}), 413)
    assert "11 rows of 4 columns" in said
    entities = [{"driver_id": n, "event_timestamp": DAY.isoformat()} for n in range(21)]
    request = {"features": features, "entities": entities}
    assert "21 rows" in refused(await client.post(HISTORICAL, json=request), 413)


async def test_too_many_features_are_refused(store: fs.FeatureStore):
    async with client_of(store) as client:
        answer = await client.post(ONLINE, json=asked(1, features=["drivers:rate"] * 10_001))
    assert "10,000 features" in refused(answer, 413)


def stream_of(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def with_text(text: pa.Array) -> pa.Table:
    times = pa.array([DAY] * len(text), pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "driver_id": pa.array(range(len(text)), pa.int64()),
            "at": times,
            "rate": pa.nulls(len(text), pa.float64()),
            "city": text,
        }
    )


def shared(kind: str, rows: int, size: int) -> pa.Array:
    """One text of ``size`` bytes in all ``rows``: little to send, much to decode."""
    if kind == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * size])
    view = struct.pack("<i4sii", size, b"xxxx", 0, 0)
    buffers = [None, pa.py_buffer(view * rows), pa.py_buffer(b"x" * size)]
    views = pa.Array.from_buffers(pa.string_view(), rows, buffers)
    if kind == "view":
        return views
    return pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), views)


@pytest.mark.parametrize("kind", ["dictionary", "view", "list"])
async def test_text_that_unfolds_is_refused(store: fs.FeatureStore, kind: str):
    limits = ServerLimits(body_bytes=100_000)
    headers = {"Content-Type": ARROW}
    async with client_of(store, limits=limits) as client:
        small = stream_of(with_text(shared(kind, 3, 1_000)))
        answer = await client.post(PUSH, content=small, headers=headers)
        assert answer.status_code == (422 if kind == "list" else 200)
        large = stream_of(with_text(shared(kind, 1_000, 50_000)))
        assert len(large) < 100_000
        answer = await client.post(PUSH, content=large, headers=headers)
        assert "400,000 bytes" in refused(answer, 413)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
async def test_compressed_buffers_are_refused(store: fs.FeatureStore, compression: str):
    text = pa.array(["x" * 1_000] * 1_000)
    bodies = [
        stream_of(with_text(text), compression=compression),
        stream_of(with_text(text.dictionary_encode()), compression=compression),
    ]
    async with client_of(store) as client:
        for body in bodies:
            answer = await client.post(PUSH, content=body, headers={"Content-Type": ARROW})
            assert "uncompressed" in refused(answer, 422)


async def test_rows_that_take_no_bytes_are_counted(store: fs.FeatureStore):
    body = await asyncio.to_thread(lambda: stream_of(pa.table({"nothing": pa.nulls(10**9)})))
    async with client_of(store) as client:
        answer = await client.post(PUSH, content=body, headers={"Content-Type": ARROW})
    assert "1,000,000,000 rows" in refused(answer, 413)


@pytest.mark.parametrize("kind", ["run ends", "list views", "lists in a dictionary"])
async def test_columns_that_could_unfold_otherwise_are_refused(store: fs.FeatureStore, kind: str):
    if kind == "run ends":
        column = pa.RunEndEncodedArray.from_arrays(pa.array([1_000], pa.int32()), pa.array(["x"]))
    elif kind == "list views":
        column = pa.array([[1]] * 1_000, pa.list_view(pa.int32()))
    else:
        first = pa.array([0] * 1_000, pa.int32())
        column = pa.DictionaryArray.from_arrays(first, pa.array([[1, 2]]))
    table = with_text(pa.array(["x"] * 1_000)).append_column("more", column)
    async with client_of(store) as client:
        body = stream_of(table)
        answer = await client.post(PUSH, content=body, headers={"Content-Type": ARROW})
    assert "'more'" in refused(answer, 422)


@pytest.mark.parametrize("body", [b"", b"ARROW1", b"\xff\xff\xff\xff\x10\0\0\0" + b"\0" * 64])
async def test_what_is_no_stream_is_refused(client: httpx.AsyncClient, body: bytes):
    answer = await client.post(PUSH, content=body, headers={"Content-Type": ARROW})
    assert "Arrow stream" in refused(answer, 422)


async def test_a_damaged_stream_is_refused(client: httpx.AsyncClient):
    """Whatever byte is wrong: an answer, and no crash."""
    whole = stream_of(with_text(pa.array(["a", "b"])))
    for position in range(0, len(whole), 7):
        body = bytearray(whole)
        body[position] ^= 0xFF
        answer = await client.post(PUSH, content=bytes(body), headers={"Content-Type": ARROW})
        assert answer.status_code in (200, 413, 422), (position, answer.text)


# --- number and time ------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def _under_way(client: Any) -> int:
    return len(client.state.watch.calls)


async def test_requests_beyond_the_limit_are_refused(
    client: httpx.AsyncClient, featurestore_url: str
):
    """Pushes wait for somebody who holds the database; a fourth request does not."""
    async with held_aside(featurestore_url):
        waiting = [
            asyncio.create_task(client.post(PUSH, json={"rows": [row(n)]})) for n in (1, 2, 3)
        ]
        await until(lambda: _under_way(client) == 3)
        assert "Too many requests" in refused(await client.post(ONLINE, json=asked(1)), 503)
        # Whoever looks after the server gets an answer all the same.
        assert (await client.get("/health")).status_code == 200
        assert 'refused_total{limit="requests"' in (await client.get("/metrics")).text
    await asyncio.gather(*waiting)
    assert (await client.post(ONLINE, json=asked(1))).status_code == 200


async def test_bodies_together_are_bounded(client: httpx.AsyncClient, featurestore_url: str):
    rows = [row(n, city="x" * 150) for n in range(6)]
    async with held_aside(featurestore_url):
        first = asyncio.create_task(client.post(PUSH, json={"rows": rows}))
        await until(lambda: _under_way(client) == 1)
        assert "memory" in refused(await client.post(PUSH, json={"rows": rows}), 503)
    await first
    assert (await client.post(PUSH, json={"rows": rows})).status_code == 200


async def test_a_push_that_takes_too_long_leaves_nothing(
    client: httpx.AsyncClient, featurestore_url: str
):
    async with held_aside(featurestore_url):
        answer = await client.post(PUSH, json={"rows": [row(1)]})
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["type"] == "StoreUnavailableError"  # a client must not push again by itself
        assert "not known" in error["message"]
    assert await asyncio.to_thread(rows_in, featurestore_url) == 0
    assert (await client.post(PUSH, json={"rows": [row(1)]})).status_code == 200


async def test_a_body_that_does_not_come_has_an_end(store: fs.FeatureStore):
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async with client_of(store, limits=ServerLimits(seconds=0.2)) as client:
        headers = {"Content-Type": "application/json"}
        answer = await client.post(ONLINE, content=body(), headers=headers)
    assert "took too long" in refused(answer, 503)


async def test_training_reads_beyond_the_limit_are_refused(store: fs.FeatureStore):
    async with client_of(store, limits=ServerLimits(training_reads=1)) as client:
        await client.post(PUSH, json={"rows": [row(1)]})
        entities = [{"driver_id": 1, "event_timestamp": DAY.isoformat()}]
        request = {"features": ["drivers:rate"], "entities": entities}
        answers = await asyncio.gather(*(client.post(HISTORICAL, json=request) for _ in range(8)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses[0] == 200
        assert statuses[-1] == 503
        assert (await client.post(HISTORICAL, json=request)).status_code == 200


# --- clients who leave ----------------------------------------------------------------------


async def counted(client: httpx.AsyncClient, what: str) -> None:
    """Wait until the metrics have it."""
    async with asyncio.timeout(SECONDS):
        while what not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def test_a_client_that_leaves_cancels_its_call(store: fs.FeatureStore, featurestore_url: str):
    async with listening(featurestore_url) as port, held_aside(featurestore_url):
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url) as leaving:
            with pytest.raises(httpx.ReadTimeout):
                await leaving.post(PUSH, json={"rows": [row(1)]}, timeout=0.3)
        async with httpx.AsyncClient(base_url=url) as client:
            await counted(client, 'route="/v1/views/{view}/rows",status="499"')
    assert await asyncio.to_thread(rows_in, featurestore_url) == 0


async def test_a_client_that_leaves_while_it_sends(store: fs.FeatureStore, featurestore_url: str):
    async with listening(featurestore_url) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await counted(client, 'status="499"')


HEAD = b"POST /v1/online-features HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def all_from(port: int, *sent: bytes) -> bytes:
    """All that a connection answers until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in sent:
            with contextlib.suppress(ConnectionError):
                writer.write(part)
                await writer.drain()
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
        return b""
    finally:
        writer.close()


async def test_connections_that_say_nothing_have_an_end(
    store: fs.FeatureStore, featurestore_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with listening(featurestore_url) as port:
        assert await all_from(port) == b""
        assert await all_from(port, HEAD) == b""  # a head without its end
        answered = await all_from(port, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /")
        assert answered.endswith(b'{"status":"live"}')


async def test_a_body_nobody_reads_has_an_end(
    store: fs.FeatureStore, featurestore_url: str, monkeypatch: pytest.MonkeyPatch
):
    """A body that is refused by its length need not come; if it does not, that is the end."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with listening(featurestore_url, SMALL) as port:
        answered = await all_from(port, HEAD + b"Content-Length: 5000\r\n\r\n" + b" " * 100)
    assert answered.startswith(b"HTTP/1.1 413 ")


async def test_a_head_without_end_is_refused(store: fs.FeatureStore, featurestore_url: str):
    async with listening(featurestore_url) as port:
        endless = [b"X-%d: %s\r\n" % (n, b"y" * 8_000) for n in range(20)]
        answered = await all_from(port, HEAD, *endless)
        assert answered == b"" or answered.startswith(b"HTTP/1.1 400 ")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post(ONLINE, json=asked(1))).status_code == 200
