"""The client against servers that fail: what is tried again, what is not, and what is said."""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import inspect
import itertools
import logging
import socket
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
import pytest
from wire_server import Answer, Do, Reply, Request, WireServer

import featurestore as fs
from featurestore import wire
from featurestore.client import AsyncClient, Client
from featurestore.client import connections as connections_module
from featurestore.client import transport as transport_module
from featurestore.client.connections import Way

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
VIEW = fs.FeatureView(
    "stats",
    entities=[fs.Entity("driver", {"driver_id": fs.Int64})],
    fields=[fs.Field("rate", fs.Float64)],
    timestamp_field="known_at",
)
ROW = {"driver_id": 1, "known_at": NOON, "rate": 0.5}
KEY = "fs_abc_very-secret-word"

VECTORS = fs.OnlineFeatures(
    {"driver_id": fs.Int64},
    {"rate": fs.Float64},
    [{"driver_id": 1}],
    [{"rate": 0.5}],
    [{"rate": fs.Status.PRESENT}],
    [{"stats": NOON}],
)
TRAINING = fs.TrainingSet(pa.table({"driver_id": [1], "rate": [0.5]}), {"stats": 1.0})


def good(request: Request) -> Reply:
    """What a server answers when all is well."""
    if request.method == "GET":
        body = wire.encode_view(VIEW)
        return Reply(body if request.path.endswith("/stats") else {"views": [body]})
    if request.path.endswith("/rows"):
        return Reply(wire.encode_push(fs.PushReport("stats", 7, 1)))
    if request.path.startswith("/v1/historical"):
        body = wire.write_stream(wire.training_table(TRAINING))
        return Reply(body, headers={"Content-Type": wire.ARROW_STREAM})
    return Reply(wire.encode_online(VECTORS))


def refusal(error: fs.FeatureStoreError, **headers: str) -> Reply:
    return Reply(wire.encode_error(error), wire.status_of(error), headers)


def at_first(*wrong: Reply | Do) -> Answer:
    """The first answers to what is no question for the view's types, then good ones."""
    left = list(wrong)

    def answer(request: Request) -> Reply | Do:
        if left and not (request.method == "GET" and request.path.endswith("/stats")):
            return left.pop(0)
        return good(request)

    return answer


async def online(client: AsyncClient) -> Any:
    assert await client.get_online_features(["stats:rate"], [{"driver_id": 1}]) == VECTORS


async def historical(client: AsyncClient) -> Any:
    entities = pa.table({"driver_id": [1], "event_timestamp": [NOON]})
    found = await client.get_historical_features(entities, ["stats:rate"])
    assert found.to_arrow() == TRAINING.table


async def listed(client: AsyncClient) -> Any:
    assert await client.list_views() == [VIEW]


async def push(client: AsyncClient) -> Any:
    assert await client.push("stats", [ROW]) == fs.PushReport("stats", 7, 1)


Ask = Callable[[AsyncClient], Awaitable[Any]]
READS: list[Ask] = [online, historical, listed]
every_read = pytest.mark.parametrize("ask", READS)
every_call = pytest.mark.parametrize("ask", [*READS, push])


@asynccontextmanager
async def asked(answer: Answer, **options: Any) -> AsyncIterator[tuple[WireServer, AsyncClient]]:
    async with (
        WireServer(answer) as server,
        AsyncClient(server.url, **{"timeout": 10, **options}) as client,
    ):
        yield server, client


def pushes(server: WireServer) -> int:
    return sum(request.path.endswith("/rows") for request in server.requests)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "BACKOFF", 0.01)


# --- reads are tried again --------------------------------------------------------------------

PASSING: list[Reply | Do] = [
    Do.CUT,
    Do.RESET,
    Do.HALF,
    Reply(b"<html>Bad Gateway</html>", 502),
    Reply(b"<html>no backend</html>", 503),
    Reply(b"", 504),
    refusal(fs.StoreUnavailableError("the database broke off")),
    refusal(fs.OverloadedError("later")),
]


@every_read
@pytest.mark.parametrize("wrong", PASSING, ids=str)
async def test_a_read_is_tried_again(ask: Ask, wrong: Reply | Do):
    async with asked(at_first(wrong, wrong)) as (server, client):
        await ask(client)
    assert len(server.requests) == 3
    assert len({(request.path, request.body) for request in server.requests}) == 1


@every_read
async def test_tries_end(ask: Ask):
    async with asked(lambda request: Do.CUT, retries=2) as (server, client):
        with pytest.raises(fs.StoreUnavailableError, match="broke off"):
            await ask(client)
    assert len(server.requests) == 3


@every_call
async def test_no_retries_is_one_try(ask: Ask):
    answer = at_first(*[refusal(fs.OverloadedError("later"))] * 9)
    async with asked(answer, retries=0) as (server, client):
        with pytest.raises(fs.OverloadedError, match="later"):
            await ask(client)
    assert sum(request.method == "POST" or ask is listed for request in server.requests) == 1


LASTING = [
    fs.DefinitionError("no"),
    fs.NotFoundError("no view", name="stat", candidates=["stats"]),
    fs.SchemaMismatchError("no column"),
    fs.InvalidRowsError("the rows", [fs.InvalidRow(3, "is null")], count=7),
    fs.MigrationRequiredError("migrate"),
    fs.FeatureStoreError("it failed"),
]


@every_call
@pytest.mark.parametrize("error", LASTING, ids=lambda one: type(one).__name__)
async def test_what_does_not_pass_is_raised_at_once_as_it_is(ask: Ask, error: fs.FeatureStoreError):
    async with asked(at_first(refusal(error))) as (server, client):
        with pytest.raises(type(error)) as caught:
            await ask(client)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)
    assert len(server.requests) - (ask is push) == 1


async def test_a_server_that_starts_late_is_waited_for():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    late = WireServer(good)

    async def start() -> None:
        await asyncio.sleep(0.3)
        late._server = await asyncio.start_server(late._serve, "127.0.0.1", port)

    starting = asyncio.create_task(start())
    try:
        async with AsyncClient(f"http://127.0.0.1:{port}", retries=50, timeout=20) as client:
            await push(client)  # certainly not written yet, so it may be tried again
    finally:
        await starting
        await late.__aexit__(None, None, None)
    assert pushes(late) == 1


@every_call
async def test_nobody_there_is_one_clear_error(ask: Ask):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}"
        async with AsyncClient(url, retries=1) as client:
            with pytest.raises(fs.StoreUnavailableError) as caught:
                await ask(client)
    assert str(caught.value).startswith(f"{url} cannot be reached: ")
    assert "written" not in str(caught.value)
    assert caught.value.__cause__ is not None


# --- a push happens once ----------------------------------------------------------------------

LOST: list[Reply | Do] = [
    Do.CUT,
    Do.RESET,
    Do.HALF,
    Reply(b"<html>Bad Gateway</html>", 502),
    Reply(b"<html>no backend</html>", 503),
    Reply(b"", 504),
    Reply(b"<html>welcome</html>", 200),
    Reply({"hello": "world"}, 200),
    Reply({"error": "x"}, 500),
]


@pytest.mark.parametrize("lost", LOST, ids=str)
async def test_a_push_whose_answer_is_lost_is_not_sent_again(lost: Reply | Do):
    async with asked(at_first(lost)) as (server, client):
        with pytest.raises(fs.StoreUnavailableError, match="may have been written"):
            await push(client)
        assert pushes(server) == 1
        await push(client)  # and the client is of use afterwards
    assert pushes(server) == 2


async def test_a_push_that_gets_no_answer_in_time_is_not_sent_again():
    async with asked(at_first(Do.HANG), timeout=0.3) as (server, client):
        with pytest.raises(
            fs.StoreUnavailableError, match=r"no answer .* within 0.3 s.* may have been written"
        ):
            await push(client)
        assert pushes(server) == 1
        await push(client)


async def test_a_push_that_the_server_did_not_begin_is_sent_again():
    busy = refusal(fs.OverloadedError("later"))
    async with asked(at_first(busy, busy)) as (server, client):
        await push(client)
    assert pushes(server) == 3


async def test_a_push_that_the_database_broke_off_is_not_sent_again():
    broken = refusal(fs.StoreUnavailableError("whether it was kept is not known"))
    async with asked(at_first(broken)) as (server, client):
        with pytest.raises(fs.StoreUnavailableError, match=r"^whether it was kept is not known$"):
            await push(client)
    assert pushes(server) == 1


@pytest.mark.parametrize("status", [404, 405, 413, 301])
async def test_a_push_that_something_else_refuses_is_not_said_to_be_written(status: int):
    page = Reply(b"<html>no</html>", status, {"Location": "http://other.example/"})
    async with asked(at_first(page)) as (server, client):
        with pytest.raises(fs.StoreUnavailableError, match=rf"status {status} ") as caught:
            await push(client)
    assert "may have been" not in str(caught.value)
    assert pushes(server) == 1


async def test_an_idle_connection_that_the_server_closed_does_not_lose_a_push():
    async with asked(good) as (server, client):
        await push(client)
        for task in list(server._tasks):
            task.cancel()
        await asyncio.gather(*server._tasks, return_exceptions=True)
        await push(client)
    assert pushes(server) == 2
    assert server.connections == 2


# --- waiting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("ask", [online, push])
async def test_retry_after_is_honoured(ask: Ask, form: str):
    times: list[float] = []

    def answer(request: Request) -> Reply | Do:
        if request.method == "GET":
            return good(request)
        times.append(time.monotonic())
        # A date has whole seconds: two ahead is at least one from now.
        date = email.utils.formatdate(time.time() + 2, usegmt=True)
        wait = {"Retry-After": "1" if form == "seconds" else date}
        return good(request) if len(times) > 1 else refusal(fs.OverloadedError("later"), **wait)

    async with asked(answer) as (_, client):
        await ask(client)
    assert len(times) == 2
    assert times[1] - times[0] >= 0.9


async def test_who_is_told_to_wait_beyond_the_deadline_is_told_so_at_once():
    busy = refusal(fs.OverloadedError("later"), **{"Retry-After": "60"})
    started = time.monotonic()
    async with asked(at_first(busy), timeout=20) as (server, client):
        with pytest.raises(fs.OverloadedError, match="later"):
            await online(client)
    assert len(server.requests) == 1
    assert time.monotonic() - started < 10


async def test_a_deadline_holds_for_all_tries_together():
    answer = itertools.chain([Do.CUT, Do.CUT], itertools.repeat(Do.HANG))
    started = time.monotonic()
    async with asked(lambda request: next(answer), timeout=2) as (server, client):
        with pytest.raises(fs.StoreUnavailableError, match=r"within 2 s in 3 tries") as caught:
            await online(client)
    assert time.monotonic() - started < 10
    assert len(server.requests) == 3
    assert "broke off" in str(caught.value.__cause__)


async def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr(transport_module.random, "uniform", uniform)
    monkeypatch.setattr(transport_module, "BACKOFF_CAP", 0.05)
    async with asked(lambda request: Do.CUT, retries=5) as (_, client):
        with pytest.raises(fs.StoreUnavailableError):
            await online(client)
    assert [high for _, high in drawn] == [0.02, 0.04, 0.05, 0.05, 0.05, 0.05]


async def test_requests_under_way_are_bounded_and_connections_are_used_again():
    async with asked(good, max_connections=3) as (server, client):
        await asyncio.gather(*(online(client) for _ in range(50)))
    assert len(server.requests) == 50
    assert server.most_open == server.connections == 3


@every_call
async def test_who_gets_no_connection_in_time_is_told_so(ask: Ask):
    async with asked(good, max_connections=1, timeout=0.3) as (server, client):
        async with client._transport._connections.one(Way()):
            with pytest.raises(fs.OverloadedError, match=r"No connection .* free within 0.3 s"):
                await ask(client)
        assert not server.requests
        await ask(client)


async def test_the_deadline_of_a_push_is_one_with_that_for_its_types():
    def slow_types(request: Request) -> Reply | Do:
        return good(request) if request.method == "GET" else Do.HANG

    async with asked(slow_types, timeout=2) as (server, client):
        server.pause = 1.2
        started = time.monotonic()
        with pytest.raises(fs.StoreUnavailableError, match=r"within 2 s"):
            await push(client)
    assert time.monotonic() - started < 3
    assert pushes(server) == 1


async def test_too_many_callers_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections_module, "MAX_WAITING", 2)
    async with asked(lambda request: Do.HANG, max_connections=1, timeout=0.5) as (_, client):
        results = await asyncio.gather(*(listed(client) for _ in range(4)), return_exceptions=True)
    refused = [str(one) for one in results if "2 callers wait" in str(one)]
    assert len(refused) == 1


async def test_a_cancelled_call_leaves_its_place_to_others():
    async with asked(at_first(*[Do.HANG] * 5), max_connections=2) as (server, client):
        calls = [asyncio.create_task(online(client)) for _ in range(5)]
        while len(server.requests) < 2:  # noqa: ASYNC110 - what the other end sees has no event
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in results)
        server.answer = good
        await asyncio.wait_for(asyncio.gather(*(online(client) for _ in range(10))), 5)
    assert server.most_open <= 4  # two that were cut off, and two new ones


async def test_nothing_is_left_when_a_client_is_closed():
    async with WireServer(good) as server:
        before = asyncio.all_tasks()
        async with AsyncClient(server.url) as client:
            await asyncio.gather(*(online(client) for _ in range(5)))
        for _ in range(100):
            if not server.open:
                break
            await asyncio.sleep(0.01)
        assert server.open == 0
        assert asyncio.all_tasks() - before == set()
        with pytest.raises(fs.DefinitionError, match="closed"):
            await online(client)
        await client.close()


async def test_a_call_under_way_when_the_client_is_closed_fails():
    async with asked(lambda request: Do.HANG, retries=0) as (server, client):
        calls = [asyncio.create_task(ask(client)) for ask in (online, push)]
        while len(server.requests) < 2:  # noqa: ASYNC110 - what the other end sees has no event
            await asyncio.sleep(0.01)
        await client.close()
        done, _ = await asyncio.wait(calls, timeout=5)
    assert [type(task.exception()) for task in done] == [fs.StoreUnavailableError] * 2


# --- answers of others ------------------------------------------------------------------------

PAGE = Reply(b"<html>Welcome to nginx</html>", 200)
OTHERS = [
    PAGE,
    Reply({"detail": "Not Found"}, 404),
    Reply(b"<html>forbidden</html>", 403),
    Reply({"hello": "world"}, 200),
    Reply(b"", 200),
    Reply([1, 2], 200),
    Reply(b"moved", 301, {"Location": "https://other.example/v1/views"}),
    Reply(b'{"views": [', 200, {"Content-Type": "application/json"}),
    Reply(b"not arrow", 200, {"Content-Type": wire.ARROW_STREAM}),
]


@every_read
@pytest.mark.parametrize("other", OTHERS, ids=str)
async def test_an_answer_that_is_not_the_servers_is_one_clear_error(ask: Ask, other: Reply):
    async with asked(lambda request: other) as (server, client):
        with pytest.raises(
            fs.StoreUnavailableError, match=rf"status {other.status} .*no answer of featurestore"
        ) as caught:
            await ask(client)
        assert server.url in str(caught.value)
    assert len(server.requests) == 1
    assert caught.value.__cause__ is not None


async def test_a_service_on_the_port_that_speaks_no_http():
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        await reader.read(10_000)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(url, retries=1) as client:
        with pytest.raises(fs.StoreUnavailableError):
            await online(client)


# --- keys -------------------------------------------------------------------------------------


@every_call
async def test_the_key_is_sent_and_never_shown(ask: Ask, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    wrong: list[Answer] = [
        good,
        lambda request: Do.CUT,
        lambda request: PAGE,
        lambda request: Reply(wire.encode_error(fs.FeatureStoreError("unknown key")), 401),
    ]
    for answer in wrong:
        async with asked(answer, api_key=KEY, retries=1) as (server, client):
            shown = [repr(client), repr(client._transport), repr(client.repository("stats"))]
            try:
                await ask(client)
            except fs.FeatureStoreError as error:
                shown += traceback.format_exception(error)
                shown.append(repr(error.__cause__))
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert "secret" not in "".join(shown)
    assert "secret" not in caplog.text


async def test_the_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEATURESTORE_API_KEY", KEY)
    async with asked(good) as (server, client):
        await online(client)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("FEATURESTORE_API_KEY", "")
    async with asked(good) as (server, client):
        await online(client)
    assert "authorization" not in server.requests[0].headers


async def test_a_key_that_may_only_write_is_enough_to_push():
    def answer(request: Request) -> Reply:
        if request.method == "GET":
            return Reply(wire.encode_error(fs.FeatureStoreError("the key may not read")), 403)
        return good(request)

    async with asked(answer, api_key=KEY) as (server, client):
        await push(client)
        await push(client)
        with pytest.raises(fs.FeatureStoreError, match="the key may not read"):
            await listed(client)
    assert [request.method for request in server.requests] == ["GET", "POST", "POST", "GET"]


@pytest.mark.parametrize("key", ["secret word", "secret\r\nX: y", "secreté", "", 7, b"secret"])
def test_a_key_that_cannot_be_is_refused_and_not_shown(key: Any):
    with pytest.raises(fs.DefinitionError, match="api_key") as caught:
        AsyncClient("http://localhost:8000", api_key=key)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "must be a URL"),
        ("postgresql://me:secret@host/db", "must be a URL"),
        (None, "must be a URL"),
        ("http://", "names no server"),
        ("http://host:port/", "is no URL"),
        ("http://me:secret@host/", "api_key"),
        ("http://host/?key=secret", "api_key"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url: Any, said: str):
    with pytest.raises(fs.DefinitionError, match=said) as caught:
        AsyncClient(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": None},
        {"timeout": True},
        {"retries": -1},
        {"retries": 1.5},
        {"max_connections": 0},
        {"max_connections": True},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]):
    with pytest.raises(fs.DefinitionError, match=next(iter(options))):
        AsyncClient("http://localhost", **options)


async def test_a_path_before_the_api_is_kept():
    async with WireServer(good) as server, AsyncClient(f"{server.url}/features/") as client:
        assert await client.list_views() == [VIEW]
    assert server.requests[0].path == "/features/v1/views"


# --- without await ----------------------------------------------------------------------------


async def test_the_client_without_await_does_the_same():
    answer = at_first(Do.CUT)
    async with WireServer(answer) as server:

        def work() -> list[Any]:
            with Client(server.url, timeout=10) as client:
                found = client.get_online_features(["stats:rate"], [{"driver_id": 1}])
                return [found, client.push("stats", ROW), client.list_views()]

        assert await asyncio.to_thread(work) == [VECTORS, fs.PushReport("stats", 7, 1), [VIEW]]


def test_a_client_may_be_used_by_one_loop_after_the_other():
    async def serve_and_ask(port: int) -> None:
        server = WireServer(good)
        server._server = await asyncio.start_server(server._serve, "127.0.0.1", port)
        try:
            await online(client)
        finally:
            for lane in client._transport._connections._here.lanes:
                await lane.http.aclose()
            await server.__aexit__(None, None, None)

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    client = AsyncClient(f"http://127.0.0.1:{port}", timeout=10)
    for _ in range(2):
        asyncio.run(serve_and_ask(port))


def test_the_twins_have_the_same_calls_as_the_store():
    missing = {"plan", "apply", "ingest", "materialize", "loads", "transaction"}
    for twin in (AsyncClient, Client):
        names = {name for name in vars(twin) if not name.startswith("_")}
        assert not names & missing
        for name in names:
            ours = list(inspect.signature(getattr(twin, name)).parameters.values())
            theirs = inspect.signature(getattr(fs.FeatureStore, name)).parameters
            kept = [theirs[one.name] for one in ours]
            assert [(o.name, o.kind, o.default) for o in ours] == [
                (o.name, o.kind, o.default) for o in kept
            ]
