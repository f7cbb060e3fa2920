"""The example's training script and its services, on the database that the demo left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp.test_utils
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flights_example import EXAMPLES, Demo

import featurestore as fs
from featurestore.integrations.fastapi import get_store

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
    used = {model["numbers"][place] for place in model["nodes"]["feature"] if place < 17}
    assert {"late_share_20", "last_arr_delay", "wind_speed"} <= used


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


async def test_fastapi_answers_lists(fastapi_client: httpx.AsyncClient) -> None:
    response = await fastapi_client.post("/late", json=[FLIGHT, {**FLIGHT, "tailnum": None}])
    assert response.status_code == 200
    one = (await fastapi_client.get("/late", params=FLIGHT)).json()
    first, second = (answer["probability"] for answer in response.json())
    assert first == pytest.approx(one["probability"])
    assert first != second
    assert (await fastapi_client.post("/late", json=[FLIGHT] * 257)).status_code == 422
    assert (await fastapi_client.post("/late", content=b"[" * 200_000)).status_code == 413
    too_many = b"\n" * 2_100_000
    assert (await fastapi_client.post("/late/stream", content=too_many)).status_code == 413


async def test_fastapi_waits_no_longer_than_told_for_a_body(
    fastapi_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import service_fastapi

    monkeypatch.setattr(service_fastapi, "BODY_SECONDS", 0.05)

    async def body() -> AsyncIterator[bytes]:
        yield json.dumps(FLIGHT).encode()
        await asyncio.sleep(30)

    response = await fastapi_client.post("/late/stream", content=body())
    assert response.status_code == 408


async def test_fastapi_is_overloaded(fastapi_app: Any, fastapi_client: httpx.AsyncClient) -> None:
    import serving

    model = fastapi_app.state.predictor._model
    async with serving.Predictor(model, waiting=0) as fastapi_app.state.predictor:
        response = await fastapi_client.get("/late", params=FLIGHT)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"


async def test_fastapi_takes_another_store_in_a_test(
    fastapi_app: Any, fastapi_client: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'empty.db'}") as empty:
        fastapi_app.dependency_overrides[get_store] = lambda: empty
        try:
            response = await fastapi_client.get("/late", params=FLIGHT)
        finally:
            fastapi_app.dependency_overrides.clear()
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "MigrationRequiredError"


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


# --- both ------------------------------------------------------------------------------------


async def test_both_services_say_the_same(
    fastapi_client: httpx.AsyncClient, aiohttp_client: aiohttp.test_utils.TestClient
) -> None:
    one = (await fastapi_client.get("/late", params=FLIGHT)).json()
    async with aiohttp_client.post("/late", json=[FLIGHT]) as response:
        (other,) = await response.json()
    assert one["probability"] == pytest.approx(other["probability"])

    lines = [json.dumps(FLIGHT), "nonsense", json.dumps({**FLIGHT, "tailnum": None})]
    body = "\n".join(lines * 200)
    streamed = await fastapi_client.post("/late/stream", content=body)
    async with aiohttp_client.post("/late/stream", data=body) as response:
        assert response.content_type == "application/x-ndjson"
        assert (await response.text()) == streamed.text
    answers = [json.loads(line) for line in streamed.text.splitlines()]
    assert [answer["line"] for answer in answers] == [*range(1, 601)]
    assert ["error" in answer for answer in answers] == [False, True, False] * 200
    assert answers[3]["probability"] == pytest.approx(one["probability"])


async def test_aiohttp_answers_while_flights_are_coming(
    aiohttp_client: aiohttp.test_utils.TestClient,
) -> None:
    more: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        while (piece := await more.get()) is not None:
            yield piece

    line = json.dumps(FLIGHT).encode() + b"\n"
    more.put_nowait(line)
    async with aiohttp_client.post("/late/stream", data=body()) as response:
        for number in range(1, 4):  # each is answered before the next is sent
            assert json.loads(await response.content.readline())["line"] == number
            more.put_nowait(line[:20])
            more.put_nowait(line[20:])
        more.put_nowait(None)
        assert json.loads(await response.content.readline())["line"] == 4
        assert await response.content.read() == b""


@pytest.fixture(params=["aiohttp", "fastapi"])
def running(request: pytest.FixtureRequest, demo: Demo, environment: None) -> Iterator[str]:
    """The address of a service that is a process of its own."""
    port = free_port()
    programs = {
        "aiohttp": [EXAMPLES / "service_aiohttp.py", "--port", str(port)],
        "fastapi": ["-m", "uvicorn", "service_fastapi:app", "--port", str(port)],
    }
    base = f"http://localhost:{port}"
    command = [sys.executable, "-W", "error", *programs[request.param]]
    with subprocess.Popen(command, cwd=EXAMPLES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:  # fmt: skip
        try:
            wait_until_ready(base, process)
            yield base
            process.terminate()
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "Traceback" not in output


def wait_until_ready(base: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{base}/health/ready", timeout=10).status_code == 200:
                return
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def run(demo: Demo, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / program, *arguments],
        cwd=demo.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_client_and_the_load(demo: Demo, running: str) -> None:
    done = run(demo, "client.py", running, "--count", "2500")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2,500 flights; most at risk:\n")
    assert len(re.findall(r"^ *\d+%  \w\w \w+ from \w{3}$", done.stdout, re.M)) == 5

    done = run(demo, "load.py", running, "--rate", "20", "--seconds", "2.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("50 requests, 0 errors\np50 ")


def test_a_service_that_is_not_there(demo: Demo) -> None:
    base = f"http://localhost:{free_port()}"
    done = run(demo, "client.py", base, "--count", "10")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(demo, "load.py", base, "--rate", "20", "--seconds", "0.2")
    assert done.returncode == 1
    assert done.stdout == "4 requests, 4 errors\n  4 × ClientConnectorError\n"
    assert run(demo, "load.py", base, "--rate", "0").returncode == 2
    done = run(demo, "load.py", base, "--flights", "nowhere.parquet")
    assert done.returncode == 1
    assert "nowhere.parquet" in done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
