"""`featurestore serve` as a program: how it starts, how it ends, several workers on a port."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_serving import (
    DRIVERS,
    ONLINE,
    PUSH,
    SECONDS,
    Program,
    asked,
    held,
    is_running,
    row,
    rows_in,
    wait_until,
)

import featurestore as fs

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def url(featurestore_url: str) -> str:
    async def apply() -> None:
        async with fs.FeatureStore(featurestore_url) as store:
            await store.apply([DRIVERS])

    asyncio.run(apply())
    return featurestore_url


def post(program: Program, path: str, body: Any) -> httpx.Response:
    return httpx.post(program.url + path, json=body, timeout=SECONDS)


@both
def test_it_serves_and_ends(url: str):
    with Program(url) as program:
        assert post(program, PUSH, {"rows": [row(1)]}).json()["rows_written"] == 1
        assert post(program, ONLINE, asked(1)).json()["rows"] == [[1, 0.5]]
        program.signal()
        status, said = program.ended()
    assert status == 0
    assert said.splitlines() == [
        f"Serving project default on {program.url} (docs: {program.url}/docs).",
        "Requests from this machine need no key until the project has one.",
        "Ending: requests under way are answered; again ends it at once.",
        "Ended.",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_under_way_are_answered(url: str, number: signal.Signals):
    with Program(url) as program, ThreadPoolExecutor(1) as pool:
        with held(url):
            pushing = pool.submit(post, program, PUSH, {"rows": [row(1)]})
            wait_until(lambda: _under_way(program) == 2)  # the asking for it is one
            program.signal(number)
            wait_until(program.refuses)
            assert not pushing.done()
        assert pushing.result(timeout=SECONDS).status_code == 200
        assert pushing.result().headers["connection"] == "close"
        assert program.ended()[0] == 0
    assert rows_in(url) == 1


def test_the_second_signal_ends_it_at_once(url: str):
    with Program(url) as program, ThreadPoolExecutor(1) as pool:
        with held(url):
            pushing = pool.submit(post, program, PUSH, {"rows": [row(1)]})
            wait_until(lambda: _under_way(program) == 2)
            program.signal()
            wait_until(program.refuses)
            program.signal()
            status, said = program.ended()
        with pytest.raises(httpx.HTTPError):
            pushing.result(timeout=SECONDS)
    assert status == 128 + signal.SIGTERM
    assert said.endswith("Ended at once: requests under way had no answer.\n")
    assert rows_in(url) == 0


def _under_way(program: Program) -> float:
    text = httpx.get(program.url + "/metrics", timeout=SECONDS).text
    (line,) = [one for one in text.splitlines() if one.startswith("featurestore_requests_in_fl")]
    return float(line.rpartition(" ")[2])


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
def test_nothing_that_was_answered_is_lost(url: str, workers: str):
    """Clients push while the server ends: what had its answer is there, each row once."""
    answered: list[int] = []
    unanswered: list[int] = []

    def push(first: int) -> None:
        with httpx.Client(base_url=program.url, timeout=SECONDS) as client:
            for number in range(first, 10**9, 4):
                try:
                    answer = client.post(PUSH, json={"rows": [row(number)]})
                except httpx.HTTPError:
                    unanswered.append(number)
                    return
                assert answer.status_code == 200, answer.text
                answered.append(number)

    with Program(url, "--workers", workers) as program, ThreadPoolExecutor(4) as pool:
        pushing = [pool.submit(push, first) for first in range(4)]
        wait_until(lambda: len(answered) > 50)
        program.signal()
        assert program.ended()[0] == 0
        for one in pushing:
            one.result(timeout=SECONDS)

    async def stored() -> list[int]:
        async with fs.FeatureStore(url) as store:
            history = await store.repository("drivers").history()
            return sorted(history.column("driver_id").to_pylist())

    rows = asyncio.run(stored())
    assert sorted(answered) == [number for number in rows if number not in unanswered]
    assert len(unanswered) == 4  # each client's last, which found nobody


# --- several workers ------------------------------------------------------------------------


def _workers(program: Program) -> dict[str, float]:
    """Worker → whether it gave its figures; and those whose figures are there."""
    text = httpx.get(program.url + "/metrics", timeout=SECONDS).text
    return {
        line.split('"')[1]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("featurestore_worker_up{")
    }


@pytest.mark.slow
def test_workers_share_the_port_and_tell_of_all(url: str):
    with Program(url, "--workers", "2") as program:
        assert len(program.children()) == 2
        post(program, PUSH, {"rows": [row(1)]})
        for _ in range(40):  # each on a connection of its own
            assert post(program, ONLINE, asked(1)).status_code == 200
        text = httpx.get(program.url + "/metrics", timeout=SECONDS).text
        counts = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("featurestore_request_seconds_count") and f'"{ONLINE}"' in line
        ]
        assert sum(counts) == 40
        assert len(counts) == 2  # all 40 on one worker: once in 10^12
        assert _workers(program) == {"0": 1, "1": 1}
        workers = program.children()
        program.signal()
        status, said = program.ended()
    assert status == 0
    assert said.splitlines()[-1] == "Ended."
    assert not any(map(is_running, workers))


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(url: str):
    with Program(url, "--workers", "2") as program:
        before = set(program.children())
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(set(program.children()) - before) == 1)
        wait_until(lambda: _answering(program) == {"0": 1, "1": 1})
        program.signal()
        status, said = program.ended()
    assert status == 0
    assert "ended (signal 9); another one starts in 0.5 s." in said


def _answering(program: Program) -> dict[str, float]:
    try:
        return _workers(program)
    except httpx.HTTPError:  # a connection that waited for the worker that was killed
        return {}


@pytest.mark.slow
def test_workers_end_with_their_parent(url: str):
    """Killed, the parent cannot tell them."""
    with Program(url, "--workers", "2") as program:
        workers = program.children()
        program.process.kill()
        program.process.communicate(timeout=SECONDS)
        wait_until(lambda: not any(map(_serves, workers)))


def _serves(pid: int) -> bool:
    try:
        return "featurestore" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_a_second_signal_ends_all_workers_at_once(url: str):
    with Program(url, "--workers", "2") as program, ThreadPoolExecutor(1) as pool:
        workers = program.children()
        with held(url):
            pushing = pool.submit(post, program, PUSH, {"rows": [row(1)]})
            time.sleep(0.5)
            program.signal()
            wait_until(program.refuses)
            program.signal()
            assert program.ended()[0] == 128 + signal.SIGTERM
        with pytest.raises(httpx.HTTPError):
            pushing.result(timeout=SECONDS)
        wait_until(lambda: not any(map(_serves, workers)))
    assert rows_in(url) == 0


@pytest.mark.slow
def test_the_workers_command_line_has_no_password(url: str):
    with Program(url, "--workers", "2") as program:
        for worker in program.children():
            shown = Path(f"/proc/{worker}/cmdline").read_text()
            assert "featurestore.server.workers" in shown
            assert "sqlite" not in shown
