"""A store in aiohttp apps: opened, found, checked and closed; errors as answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer
from web_services import BOTH, NOT_READY, fill, nowhere, row, run_service

import featurestore as fs
from featurestore.integrations.aiohttp import (
    STORE,
    check_store,
    error_middleware,
    store_context,
    store_of,
)

PRICES = web.AppKey("prices", fs.FeatureStore)

Context = Callable[[web.Application], AsyncIterator[None]]


async def driver(request: web.Request) -> web.Response:
    keys = {"driver_id": int(request.match_info["driver_id"])}
    feature = request.query.get("feature", "eta")
    answer = await store_of(request).get_online_features(feature, [keys])
    return web.json_response(answer.to_dicts()[0])


async def push(request: web.Request) -> web.Response:
    report = await store_of(request).push("rates", await request.json())
    return web.json_response(report.rows_written)


async def ready(request: web.Request) -> web.Response:
    await check_store(store_of(request), requires=["eta"], seconds=5)
    return web.json_response("ready")


def make_app(*contexts: Context, **options: Any) -> web.Application:
    app = web.Application(middlewares=[error_middleware(**options)])
    app.cleanup_ctx.extend(contexts)
    app.router.add_get("/drivers/{driver_id}", driver)
    app.router.add_post("/drivers", push)
    app.router.add_get("/ready", ready)
    return app


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestServer(app) as server, TestClient(server) as client:
        yield client


async def get(client: TestClient[Any, Any], path: str) -> tuple[int, Any]:
    async with client.get(path) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("featurestore_url", BOTH, indirect=True)
async def test_an_app_has_its_store_from_start_to_end(featurestore_url: str):
    await fill(featurestore_url)
    app = make_app(store_context(featurestore_url, requires=["eta"]))
    async with running(app) as client:
        assert await get(client, "/drivers/1") == (200, {"driver_id": 1, "conv_rate": 0.5})
        assert await get(client, "/ready") == (200, "ready")
        pool = app[STORE].engine.pool
        assert pool.checkedin() > 0
    # The fixture of the database fails if the server still has a connection.
    assert pool.checkedin() == 0


async def test_later_contexts_find_it_open_and_end_before(featurestore_url: str):
    await fill(featurestore_url)
    seen: list[str] = []

    async def own(app: web.Application) -> AsyncIterator[None]:
        seen.append((await app[STORE].list_views())[0].name)
        yield
        seen.append((await app[STORE].list_views())[0].name)

    async with running(make_app(store_context(featurestore_url), own)):
        assert seen == ["rates"]
    assert seen == ["rates", "rates"]


async def test_several_stores_and_apps_within_an_app(featurestore_url: str, tmp_path: Path):
    second = f"sqlite:///{tmp_path / 'prices.db'}"
    await fill(featurestore_url, 0.5)
    await fill(second, 0.9)

    async def price(request: web.Request) -> web.Response:
        found = await store_of(request, PRICES).get_online_features("eta", [{"driver_id": 1}])
        return web.json_response(found.to_dicts()[0]["conv_rate"])

    app = make_app(
        store_context(featurestore_url),
        store_context(lambda: fs.FeatureStore(second), key=PRICES),
    )
    app.router.add_get("/price", price)
    app.add_subapp("/inner", make_app())
    async with running(app) as client:
        assert await get(client, "/price") == (200, 0.9)
        assert (await get(client, "/drivers/1"))[1]["conv_rate"] == 0.5
        assert (await get(client, "/inner/drivers/1"))[1]["conv_rate"] == 0.5

    twice = make_app(store_context(featurestore_url), store_context(second))
    with pytest.raises(fs.DefinitionError, match=r"make a web\.AppKey for each"):
        async with running(twice):
            pytest.fail("it started")


async def test_an_app_without_a_store_says_what_is_missing(caplog: pytest.LogCaptureFixture):
    async with running(make_app()) as client:
        assert (await get(client, "/drivers/1"))[0] == 500
    assert "append store_context() to its cleanup_ctx" in caplog.text


async def test_the_start_fails_where_the_store_cannot_serve(featurestore_url: str):
    async def start(url: str, **options: Any) -> None:
        async with running(make_app(store_context(url, **options))):
            pytest.fail("it started")

    with pytest.raises(fs.MigrationRequiredError, match="featurestore migrate"):
        await start(featurestore_url)
    await fill(featurestore_url)
    with pytest.raises(fs.NotFoundError, match="Did you mean 'eta'"):
        await start(featurestore_url, requires=["etas"])
    with pytest.raises(fs.StoreUnavailableError) as caught:
        await start(nowhere())
    assert "secret" not in str(caught.value)
    with pytest.raises(fs.DefinitionError, match="lambda: FeatureStore"):
        store_context(fs.FeatureStore(featurestore_url))  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["empty", "away"])
async def test_told_to_it_starts_and_is_ready_later(
    url: str, featurestore_url: str, caplog: pytest.LogCaptureFixture
):
    source = featurestore_url if url == "empty" else nowhere()
    caplog.set_level(logging.WARNING, "featurestore.integrations")
    app = make_app(store_context(source, requires=["eta"], on_unready="serve"))
    async with running(app) as client:
        assert "starts although its feature store is not ready" in caplog.text
        async with client.get("/ready") as response:
            assert response.status == 503
            assert ("Retry-After" in response.headers) == (url == "away")
            text = await response.text()
        assert "127.0.0.1" not in text
        assert "secret" not in caplog.text
        if url == "empty":
            assert NOT_READY in text
            await fill(featurestore_url)
            assert (await get(client, "/ready"))[0] == 200
            assert (await get(client, "/drivers/1"))[1]["conv_rate"] == 0.5


@pytest.mark.parametrize("featurestore_url", BOTH, indirect=True)
async def test_errors_are_answers(featurestore_url: str):
    await fill(featurestore_url)
    async with running(make_app(store_context(featurestore_url))) as client:
        status, body = await get(client, "/drivers/1?feature=etas")
        assert status == 404
        assert body["error"]["candidates"] == ["eta"]
        bad = {**row(1, 0.5), "known_at": None}
        async with client.post("/drivers", json=[bad]) as response:
            assert response.status == 422
            assert (await response.json())["error"]["rows"][0]["row"] == 0
        async with client.post("/drivers", json=[{"colour": "blue"}]) as response:
            assert response.status == 422
        assert (await get(client, "/drivers/1"))[0] == 200


async def test_statuses_of_ones_own(featurestore_url: str):
    await fill(featurestore_url)
    app = make_app(store_context(featurestore_url), statuses={fs.NotFoundError: 500})
    async with running(app) as client:
        status, body = await get(client, "/drivers/1?feature=etas")
    assert status == 500
    assert "etas" not in body["error"]["message"]


async def test_an_error_in_the_middle_of_an_answer_breaks_it_off():
    """Whoever reads it must not take what came for the whole."""

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half of it")
        raise fs.StoreUnavailableError("gone")

    app = make_app()
    app.router.add_get("/half", half)
    async with running(app) as client, client.get("/half") as response:
        assert response.status == 200
        with pytest.raises(ClientPayloadError):
            await response.read()


@pytest.mark.slow
def test_a_process_without_its_store_ends_and_says_why(tmp_path: Path):
    (tmp_path / "service.py").write_text(
        "from aiohttp import web\n"
        "from featurestore.integrations.aiohttp import store_context\n"
        "app = web.Application()\n"
        "app.cleanup_ctx.append(store_context())\n"
        "web.run_app(app, host='127.0.0.1', port=0)\n"
    )
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    done = run_service(["-W", "error", "service.py"], tmp_path, url)
    assert done.returncode == 1
    assert "holds no feature store yet. Run `featurestore migrate`" in done.stderr
