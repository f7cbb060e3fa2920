"""A store in FastAPI and Starlette apps: opened, found, checked and closed; errors as answers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from web_services import BOTH, NOT_READY, fill, nowhere, rates, row, run_service

import featurestore as fs
from featurestore.integrations import starlette as for_starlette
from featurestore.integrations.fastapi import (
    Store,
    add_error_handlers,
    check_store,
    get_store,
    lifespan,
    store_named,
    store_of,
)

Prices = Annotated[fs.FeatureStore, Depends(store_named("prices"))]


def make_app(life: Any, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=life)
    add_error_handlers(app, **options)

    @app.get("/drivers/{driver_id}")
    async def driver(driver_id: int, store: Store, feature: str = "eta") -> dict[str, Any]:
        answer = await store.get_online_features(feature, [{"driver_id": driver_id}])
        return answer.to_dicts()[0]

    @app.post("/drivers")
    async def push(rows: list[dict[str, Any]], store: Store) -> int:
        return (await store.push("rates", rows)).rows_written

    @app.get("/ready")
    async def ready(store: Store) -> str:
        await check_store(store, requires=["eta"], seconds=5)
        return "ready"

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, store: Store) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            answer = await store.get_online_features("eta", [{"driver_id": int(text)}])
            await websocket.send_json(answer.to_dicts()[0])

    return app


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """As servers run an app: the lifespan's state is with each request."""
    async with app.router.lifespan_context(app) as state:

        async def served(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def talk(app: Any, *texts: str) -> list[Any]:
    """What a websocket at /socket gets for some texts, the closing message last."""
    sent = [{"type": "websocket.connect"}]
    sent += [{"type": "websocket.receive", "text": text} for text in texts]
    sent += [{"type": "websocket.disconnect", "code": 1000}]
    messages = iter(sent)
    got: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        got.append(message)

    scope = {"type": "websocket", "path": "/socket", "query_string": b"", "headers": []}
    async with app.router.lifespan_context(app) as state:
        await app({**scope, "state": dict(state)}, receive, send)
    assert got.pop(0)["type"] == "websocket.accept"
    return got


# --- opening and closing ----------------------------------------------------------------------


@pytest.mark.parametrize("featurestore_url", BOTH, indirect=True)
async def test_an_app_has_its_store_from_start_to_end(featurestore_url: str):
    await fill(featurestore_url)
    app = make_app(lifespan(featurestore_url, requires=["eta", ["rates:conv_rate"]]))
    async with running(app) as client:
        answer = await client.get("/drivers/1")
        assert answer.json() == {"driver_id": 1, "conv_rate": 0.5}
        assert (await client.get("/ready")).json() == "ready"
        pool = store_of(app).engine.pool
        assert pool.checkedin() > 0
    # The fixture of the database fails if the server still has a connection.
    assert pool.checkedin() == 0
    with pytest.raises(fs.DefinitionError, match="No feature store is open"):
        store_of(app)
    async with running(app) as client:  # and again: an app can be started twice
        assert (await client.get("/drivers/1")).status_code == 200


async def test_the_url_is_that_of_the_environment(
    featurestore_url: str, monkeypatch: pytest.MonkeyPatch
):
    await fill(featurestore_url)
    monkeypatch.setenv("FEATURESTORE_URL", featurestore_url)
    async with running(make_app(lifespan())) as client:
        assert (await client.get("/drivers/1")).json()["conv_rate"] == 0.5


@pytest.mark.parametrize("featurestore_url", BOTH, indirect=True)
async def test_a_function_makes_the_store_and_what_is_beneath_it(featurestore_url: str):
    await fill(featurestore_url, project="own")
    disposed = False

    @asynccontextmanager
    async def own_store() -> AsyncIterator[fs.FeatureStore]:
        nonlocal disposed
        async with fs.FeatureStore(featurestore_url) as other:
            driver_url = other.engine.url
        engine = create_async_engine(driver_url)
        async with fs.FeatureStore(engine=engine, project="own") as store:
            yield store
        await engine.dispose()
        disposed = True

    async with running(make_app(lifespan(own_store))) as client:
        assert (await client.get("/drivers/1")).json()["conv_rate"] == 0.5
        assert not disposed
    assert disposed

    plain = lifespan(lambda: fs.FeatureStore(featurestore_url, project="own"))
    async with running(make_app(plain)) as client:
        assert (await client.get("/drivers/1")).json()["conv_rate"] == 0.5


async def test_the_apps_own_lifespan_runs_inside(featurestore_url: str):
    await fill(featurestore_url)
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        seen.append(type(store_of(app)).__name__)
        yield {"model": "mine"}
        await store_of(app).list_views()  # not closed before
        seen.append("closed")

    app = make_app(lifespan(featurestore_url, inner=own))

    @app.get("/model")
    async def model(request: Request, store: Store) -> str:
        await store.list_views()
        return str(request.state.model)

    async with running(app) as client:
        assert (await client.get("/model")).json() == "mine"
    assert seen == ["FeatureStore", "closed"]


async def test_a_lifespan_that_fails_closes_the_store(featurestore_url: str):
    await fill(featurestore_url)
    pools = []

    @asynccontextmanager
    async def broken(app: FastAPI) -> AsyncIterator[None]:
        pools.append(store_of(app).engine.pool)
        raise RuntimeError("no model")
        yield

    app = make_app(lifespan(featurestore_url, inner=broken))
    with pytest.raises(RuntimeError, match="no model"):
        async with running(app):
            pytest.fail("it started")
    assert pools[0].checkedin() == 0
    with pytest.raises(fs.DefinitionError):
        store_of(app)


async def test_several_stores(featurestore_url: str, tmp_path: Path):
    second = f"sqlite:///{tmp_path / 'prices.db'}"
    await fill(featurestore_url, 0.5)
    await fill(second, 0.9)
    app = make_app(lifespan(featurestore_url, inner=lifespan(second, name="prices")))

    @app.get("/prices/{driver_id}")
    async def prices(driver_id: int, store: Prices, other: Store) -> list[float]:
        rows = [{"driver_id": driver_id}]
        found = [await one.get_online_features("eta", rows) for one in (store, other)]
        return [answer.to_dicts()[0]["conv_rate"] for answer in found]

    async with running(app) as client:
        assert (await client.get("/prices/1")).json() == [0.9, 0.5]
    assert store_named("prices") is store_named("prices")  # or it could not be overridden

    twice = make_app(lifespan(featurestore_url, inner=lifespan(second)))
    with pytest.raises(fs.DefinitionError, match="another name"):
        async with running(twice):
            pytest.fail("it started")


async def test_a_router_may_bring_the_store(featurestore_url: str):
    await fill(featurestore_url)
    router = APIRouter(lifespan=lifespan(featurestore_url))

    @router.get("/views")
    async def views(store: Store) -> list[str]:
        return [view.name for view in await store.list_views()]

    app = FastAPI()
    app.include_router(router)
    async with running(app) as client:
        assert (await client.get("/views")).json() == ["rates"]


async def test_an_app_mounted_in_another_finds_the_store_of_that(featurestore_url: str):
    await fill(featurestore_url)
    app = FastAPI(lifespan=lifespan(featurestore_url))
    app.mount("/inner", make_app(None))
    async with running(app) as client:
        assert (await client.get("/inner/drivers/1")).json()["conv_rate"] == 0.5


async def test_a_test_overrides_the_store(featurestore_url: str):
    """And needs no lifespan then."""
    await fill(featurestore_url)
    app = make_app(lifespan("sqlite:////nowhere/at/all.db"))
    transport = httpx.ASGITransport(app)
    async with (
        fs.FeatureStore(featurestore_url) as other,
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        app.dependency_overrides[get_store] = lambda: other
        assert (await client.get("/drivers/1")).json()["conv_rate"] == 0.5


async def test_without_its_lifespan_an_app_says_what_is_missing(caplog: pytest.LogCaptureFixture):
    transport = httpx.ASGITransport(make_app(lifespan("sqlite://")))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answer = await client.get("/drivers/1")
    assert answer.status_code == 500
    assert "run its lifespan or override the dependency" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"source": 7}, "int is no source", id="no source"),
        pytest.param({"source": fs.FeatureStore("sqlite://")}, "lambda: FeatureStore", id="store"),
        pytest.param({"requires": "eta"}, r"\['my_service'\]", id="a text for a list"),
        pytest.param({"requires": 7}, "list of requests", id="no list"),
        pytest.param({"on_unready": "wait"}, "'fail' or 'serve'", id="unknown word"),
        pytest.param({"name": "two words"}, "identifier", id="no name"),
    ],
)
def test_mistakes_are_told_where_they_are_made(options: dict[str, Any], message: str):
    with pytest.raises(fs.DefinitionError, match=message):
        lifespan(**options)


@asynccontextmanager
async def of_text() -> AsyncIterator[str]:
    yield "store"


@pytest.mark.parametrize("source", [lambda: "store", of_text])
async def test_a_function_that_makes_no_store(source: Any):
    with pytest.raises(fs.DefinitionError, match="gave str"):
        async with running(make_app(lifespan(source))):
            pytest.fail("it started")


# --- not ready --------------------------------------------------------------------------------


async def test_the_start_fails_where_the_store_cannot_serve(
    featurestore_url: str, featurestore_postgres: Any
):
    async def start(url: str, **options: Any) -> None:
        async with running(make_app(lifespan(url, **options))):
            pytest.fail("it started")

    with pytest.raises(fs.MigrationRequiredError, match="featurestore migrate"):
        await start(featurestore_url)
    await fill(featurestore_url)
    with pytest.raises(fs.NotFoundError, match="Did you mean 'eta'"):
        await start(featurestore_url, requires=["etas"])
    offline = fs.FeatureView(
        "offline", entities=[], fields=rates.fields, timestamp_field="known_at", online=False
    )
    async with fs.FeatureStore(featurestore_url) as store:
        await store.apply(offline)
    with pytest.raises(fs.DefinitionError, match="offline"):
        await start(featurestore_url, requires=["rates:*", "offline:*"])
    with pytest.raises(fs.StoreUnavailableError) as caught:
        await start(nowhere())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["empty", "away"])
async def test_told_to_it_starts_and_is_ready_later(
    url: str, featurestore_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = featurestore_url if url == "empty" else nowhere()
    app = make_app(lifespan(source, requires=["eta"], on_unready="serve"))
    caplog.set_level(logging.WARNING, "featurestore.integrations")
    async with running(app) as client:
        assert "starts although its feature store is not ready" in caplog.text
        for path in ("/ready", "/drivers/1"):
            answer = await client.get(path)
            assert answer.status_code == 503
            # A store that was never made will not be there in a second.
            assert ("Retry-After" in answer.headers) == (url == "away")
            # The caller learns nothing of hosts and files.
            assert answer.json()["detail"] == answer.json()["error"]["message"]
            assert "127.0.0.1" not in answer.text
            assert str(tmp_path) not in answer.text
        assert "secret" not in caplog.text
        assert "GET /drivers/1" in caplog.text
        if url == "empty":
            assert answer.json()["detail"] == NOT_READY
            await fill(featurestore_url)
            assert (await client.get("/ready")).status_code == 200
            assert (await client.get("/drivers/1")).json()["conv_rate"] == 0.5


@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_a_check_waits_no_longer_than_told(featurestore_url: str):
    await fill(featurestore_url)
    connection = await asyncpg.connect(featurestore_url.replace("+asyncpg", ""))
    try:
        async with connection.transaction(), fs.FeatureStore(featurestore_url) as store:
            await connection.execute("LOCK TABLE featurestore_view IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(fs.StoreUnavailableError, match=r"did not answer within 0\.2 s"):
                await check_store(store, seconds=0.2)
    finally:
        await connection.close()


@pytest.mark.slow
def test_a_process_without_its_store_ends_and_says_why(tmp_path: Path):
    (tmp_path / "service.py").write_text(
        "from fastapi import FastAPI\n"
        "from featurestore.integrations.fastapi import lifespan\n"
        "app = FastAPI(lifespan=lifespan())\n"
    )
    command = ["-W", "error", "-m", "uvicorn", "service:app", "--port", "0"]
    done = run_service(command, tmp_path, f"sqlite:///{tmp_path / 'empty.db'}")
    assert done.returncode == 3
    assert "holds no feature store yet. Run `featurestore migrate`" in done.stderr
    assert "Application startup failed" in done.stderr


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("featurestore_url", BOTH, indirect=True)
async def test_errors_are_answers(featurestore_url: str):
    await fill(featurestore_url)
    async with running(make_app(lifespan(featurestore_url))) as client:
        answer = await client.get("/drivers/1", params={"feature": "etas"})
        assert answer.status_code == 404
        assert "Did you mean 'eta'" in answer.json()["detail"]
        assert answer.json()["error"]["type"] == "NotFoundError"
        assert answer.json()["error"]["candidates"] == ["eta"]

        late = {**row(1, 0.5), "known_at": "never"}
        bad = [{**row(1, 0.5), "known_at": None}, late]
        answer = await client.post("/drivers", json=bad)
        assert answer.status_code == 422
        answer = await client.post("/drivers", json=bad[:1])
        assert answer.status_code == 422
        assert answer.json()["error"]["type"] == "InvalidRowsError"
        assert answer.json()["error"]["rows"][0]["row"] == 0
        assert answer.json()["error"]["count"] == 1

        answer = await client.post("/drivers", json=[{"colour": "blue"}])
        assert answer.status_code == 422
        assert answer.json()["error"]["type"] == "SchemaMismatchError"

        assert (await client.get("/drivers/1")).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "told", "again"),
    [
        (fs.OverloadedError("10,000 wait"), 503, "Too many", True),
        (fs.StoreUnavailableError("db.internal is away"), 503, "cannot be reached", True),
        (fs.MigrationRequiredError("at 0002"), 503, NOT_READY, False),
        (fs.DefinitionError("two features named x"), 500, "cannot answer", False),
        (fs.SourceError("/data/x.parquet"), 500, "cannot answer", False),
        (fs.FeatureStoreError("else"), 500, "cannot answer", False),
    ],
)
async def test_what_the_caller_cannot_help_is_told_in_general(
    error: fs.FeatureStoreError,
    status: int,
    told: str,
    again: bool,
    caplog: pytest.LogCaptureFixture,
):
    app = make_app(None)

    @app.get("/fail")
    async def fail() -> None:
        raise error

    async with running(app) as client:
        answer = await client.get("/fail")
    assert answer.status_code == status
    assert told in answer.json()["detail"]
    assert str(error) not in answer.text
    assert str(error) in caplog.text
    assert answer.json()["error"]["type"] == type(error).__name__
    assert answer.headers.get("Retry-After") == ("1" if again else None)


async def test_statuses_of_ones_own(featurestore_url: str):
    await fill(featurestore_url)
    statuses = {fs.NotFoundError: 500, fs.SchemaMismatchError: 400}
    async with running(make_app(lifespan(featurestore_url), statuses=statuses)) as client:
        answer = await client.get("/drivers/1", params={"feature": "etas"})
        assert answer.status_code == 500
        assert "etas" not in answer.text
        answer = await client.post("/drivers", json=[{"colour": "blue"}])
        assert answer.status_code == 400
    for wrong in ({fs.NotFoundError: 200}, {ValueError: 400}, {fs.NotFoundError: "404"}):
        with pytest.raises(fs.DefinitionError, match="statuses"):
            add_error_handlers(FastAPI(), statuses=wrong)  # type: ignore[arg-type]


async def test_a_websocket_has_the_store_and_is_closed_with_the_reason(featurestore_url: str):
    await fill(featurestore_url)
    app = make_app(lifespan(featurestore_url))
    answer, closed = await talk(app, "1", str(2**70))  # no key of 64 bits
    assert json.loads(answer["text"]) == {"driver_id": 1, "conv_rate": 0.5}
    assert closed["type"] == "websocket.close"
    assert closed["code"] == 1008
    assert "driver_id" in closed["reason"]
    assert len(closed["reason"].encode()) <= 123


async def test_a_websocket_is_told_to_come_again():
    app = make_app(lifespan(nowhere(), on_unready="serve"))
    (closed,) = await talk(app, "1")
    assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
    assert "127.0.0.1" not in closed["reason"]


# --- Starlette alone --------------------------------------------------------------------------


@pytest.mark.parametrize("featurestore_url", BOTH, indirect=True)
async def test_starlette(featurestore_url: str):
    await fill(featurestore_url)

    async def driver(request: Request) -> JSONResponse:
        keys = {"driver_id": int(request.path_params["driver_id"])}
        answer = await for_starlette.store_of(request).get_online_features("eta", [keys])
        return JSONResponse(answer.to_dicts()[0])

    routes = [Route("/drivers/{driver_id}", driver)]
    app = Starlette(
        routes=[*routes, Mount("/inner", Starlette(routes=routes))],
        lifespan=for_starlette.lifespan(featurestore_url),
    )
    for_starlette.add_error_handlers(app)
    async with running(app) as client:
        assert (await client.get("/drivers/1")).json()["conv_rate"] == 0.5
        assert (await client.get("/inner/drivers/1")).json()["conv_rate"] == 0.5
        assert (await client.get(f"/drivers/{2**70}")).status_code == 422


# --- importing --------------------------------------------------------------------------------


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["fastapi", "starlette", "aiohttp"])
def test_a_framework_that_is_not_installed_is_named(name: str):
    out = run(
        f"import sys; sys.modules[{name!r}] = None\n"
        f"try: import featurestore.integrations.{name}\n"
        "except ModuleNotFoundError as error: print(error, error.name)"
    )
    assert f"pip install {name}" in out


def test_the_room_itself_imports_no_framework():
    out = run("import sys, featurestore.integrations; print(*sys.modules)").split()
    assert not {"fastapi", "starlette", "aiohttp", "httpx"} & set(out)
    out = run("import sys, featurestore.integrations.starlette; print(*sys.modules)").split()
    assert "fastapi" not in out
