"""The example's training script and its services, on the database that the demo left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp.test_utils
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flights_example import EXAMPLES, Demo

import featurestore as fs

pytestmark = pytest.mark.slow

FLIGHT = {
    "carrier": "DL",
    "tailnum": "N718TW",
    "origin": "JFK",
    "distance": 2586,
    "departure": "2013-12-31T17:30",
}


def test_train_as_a_script(demo: Demo, tmp_path: Path) -> None:
    """On every tenth flight."""
    flights = pq.read_table(demo.folder / "data" / "flights.parquet")
    pq.write_table(flights.take(pa.array(range(0, len(flights), 10))), tmp_path / "flights.parquet")
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "train.py", "flights.parquet"],
        cwd=tmp_path,
        env={**os.environ, "FEATURESTORE_URL": demo.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = [float(score) for score in re.findall(r"ROC AUC (\S+),", done.stdout)]
    assert scores[0] < 0.65 < 0.70 < scores[1]
    model = json.loads((tmp_path / "model.json").read_text())
    assert model["weights"]["late_share_20"] > 0


@pytest.fixture
def environment(demo: Demo, example_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_URL", demo.url)
    monkeypatch.setenv("FLIGHTS_MODEL", str(demo.folder / "model.json"))


# --- FastAPI ---------------------------------------------------------------------------------


@pytest.fixture
def fastapi_app(environment: None) -> Any:
    import service_fastapi

    return service_fastapi.app


@pytest.fixture
async def fastapi_client(fastapi_app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(fastapi_app, raise_app_exceptions=False)
    async with (
        fastapi_app.router.lifespan_context(fastapi_app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


async def test_fastapi_predicts(fastapi_client: httpx.AsyncClient) -> None:
    response = await fastapi_client.get("/late", params=FLIGHT)
    assert response.status_code == 200
    answer = response.json()
    assert 0.02 < answer["probability"] < 0.6
    assert answer["features"]["last_arr_delay"] == 8
    assert answer["statuses"]["last_arr_delay"] == "PRESENT"
    assert answer["statuses"]["temperature"] == "OUTSIDE_MAX_AGE"


async def test_fastapi_does_without_what_is_not_known(fastapi_client: httpx.AsyncClient) -> None:
    unknown = {**FLIGHT, "tailnum": "NOBODY", "carrier": "??"}
    answer = (await fastapi_client.get("/late", params=unknown)).json()
    assert 0 < answer["probability"] < 1
    assert answer["statuses"]["last_arr_delay"] == "NOT_FOUND"

    without_aircraft = {name: value for name, value in FLIGHT.items() if name != "tailnum"}
    assert (await fastapi_client.get("/late", params=without_aircraft)).status_code == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param({"distance": "far"}, 422, id="no number"),
        pytest.param({"distance": "9" * 400}, 422, id="no distance on Earth"),
        pytest.param({"departure": "soon"}, 422, id="no time"),
        pytest.param({"tailnum": "N\0"}, 422, id="a key that cannot be"),
        pytest.param({"colour": "blue"}, 422, id="unknown parameter"),
    ],
)
async def test_fastapi_refuses(
    fastapi_client: httpx.AsyncClient, change: dict[str, str], status: int
) -> None:
    response = await fastapi_client.get("/late", params={**FLIGHT, **change})
    assert response.status_code == status
    assert response.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (fs.OverloadedError("busy"), 503),
        (fs.StoreUnavailableError("gone"), 503),
        (fs.NotFoundError("no service"), 500),
    ],
)
async def test_fastapi_maps_errors(
    fastapi_app: Any, fastapi_client: httpx.AsyncClient, error: Exception, status: int
) -> None:
    import service_fastapi

    fastapi_app.dependency_overrides[service_fastapi.get_store] = lambda: Failing(error)
    try:
        response = await fastapi_client.get("/late", params=FLIGHT)
    finally:
        fastapi_app.dependency_overrides.clear()
    assert response.status_code == status
    assert ("Retry-After" in response.headers) == (status == 503)


class Failing:
    """A store whose database has gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def get_online_features(self, *args: object) -> None:
        raise self.error


# --- aiohttp ---------------------------------------------------------------------------------


@pytest.fixture
async def aiohttp_client(environment: None) -> AsyncIterator[aiohttp.test_utils.TestClient]:
    import service_aiohttp

    server = aiohttp.test_utils.TestServer(service_aiohttp.create_app())
    async with aiohttp.test_utils.TestClient(server) as client:
        yield client


async def test_aiohttp_predicts_many_at_once(aiohttp_client: aiohttp.test_utils.TestClient) -> None:
    evening = FLIGHT
    morning = {**FLIGHT, "departure": "2013-12-31T06:00"}
    unknown = {**FLIGHT, "tailnum": None}
    async with aiohttp_client.post("/late", json=[evening, morning, unknown]) as response:
        assert response.status == 200
        answers = [answer["probability"] for answer in await response.json()]
    assert len(answers) == 3
    assert answers[0] > answers[1]

    async with aiohttp_client.post("/late", json=[]) as response:
        assert await response.json() == []


@pytest.mark.parametrize(
    "flights",
    [
        pytest.param({}, id="no list"),
        pytest.param([1], id="no flights"),
        pytest.param([{**FLIGHT, "distance": "far"}], id="no number"),
        pytest.param([{**FLIGHT, "distance": 10**400}], id="no distance on Earth"),
        pytest.param([{**FLIGHT, "departure": "soon"}], id="no time"),
        pytest.param([{**FLIGHT, "tailnum": "N\0"}], id="a key that cannot be"),
        pytest.param([FLIGHT, {"carrier": "DL"}], id="incomplete"),
    ],
)
async def test_aiohttp_refuses(
    aiohttp_client: aiohttp.test_utils.TestClient, flights: object
) -> None:
    async with aiohttp_client.post("/late", json=flights) as response:
        assert response.status == 422
        assert (await response.json())["error"]


async def test_both_services_say_the_same(
    fastapi_client: httpx.AsyncClient, aiohttp_client: aiohttp.test_utils.TestClient
) -> None:
    one = (await fastapi_client.get("/late", params=FLIGHT)).json()
    async with aiohttp_client.post("/late", json=[FLIGHT]) as response:
        (other,) = await response.json()
    assert one["probability"] == pytest.approx(other["probability"])
