"""Predictions off the loop, gathered and bounded; flights as a stream of lines."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import featurestore as fs


@pytest.fixture
def serving(example_path: Path) -> ModuleType:
    import serving

    return serving


class Model:
    """The delay of a flight itself; it waits while it is told to, in whatever thread it is in."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.batches: list[list[float]] = []
        self.threads: set[str] = set()

    def predict(self, flights: Sequence[Any]) -> list[float]:
        self.threads.add(threading.current_thread().name)
        self.batches.append([flight["delay"] for flight in flights])
        assert self.go.wait(10)
        if any(flight["delay"] < 0 for flight in flights):
            raise ValueError("a flight that cannot be")
        return [flight["delay"] / 100 for flight in flights]


def flights(*delays: float) -> list[dict[str, float]]:
    return [{"delay": delay} for delay in delays]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_those_who_come_meanwhile_share_a_batch(serving: ModuleType):
    model = Model()
    async with serving.Predictor(model, batch=4) as predictor:
        assert await predictor.predict(flights(1)) == [0.01]
        assert await predictor.predict([]) == []
        model.go.clear()
        calls = [asyncio.create_task(predictor.predict(flights(0)))]
        await until(lambda: len(model.batches) == 2)
        calls += [asyncio.create_task(predictor.predict(flights(n))) for n in range(1, 10)]
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(*calls) == [[n / 100] for n in range(10)]
    assert model.batches[1:] == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert len(model.threads) == 1
    assert threading.current_thread().name not in model.threads
    assert not [one for one in threading.enumerate() if one.name in model.threads]


async def test_many_flights_go_batch_by_batch(serving: ModuleType):
    model = Model()
    async with serving.Predictor(model, batch=4, waiting=4) as predictor:
        assert await predictor.predict(flights(*range(10))) == [n / 100 for n in range(10)]
    assert [len(batch) for batch in model.batches] == [4, 4, 2]


async def test_a_flight_that_cannot_be_fails_alone(serving: ModuleType):
    model = Model()
    async with serving.Predictor(model) as predictor:
        model.go.clear()
        calls = [asyncio.create_task(predictor.predict(flights(n))) for n in (0, 1, -1, 2)]
        await until(lambda: len(model.batches) == 1)
        model.go.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [found[0], found[1], found[3]] == [[0], [0.01], [0.02]]
        assert isinstance(found[2], ValueError)
        assert await predictor.predict(flights(3)) == [0.03]


async def test_a_caller_who_has_gone_is_left_out(serving: ModuleType):
    model = Model()
    async with serving.Predictor(model) as predictor:
        model.go.clear()
        calls = [asyncio.create_task(predictor.predict(flights(0)))]
        await until(lambda: len(model.batches) == 1)
        calls += [asyncio.create_task(predictor.predict(flights(n))) for n in (1, 2)]
        await asyncio.sleep(0)
        calls[0].cancel()  # its batch is under way
        calls[1].cancel()
        await asyncio.sleep(0)
        model.go.set()
        assert await calls[2] == [0.02]
        assert model.batches == [[0], [2]]
        assert calls[0].cancelled()
        assert calls[1].cancelled()


async def test_no_more_wait_than_may_and_none_longer(serving: ModuleType):
    model = Model()
    async with serving.Predictor(model, waiting=2, seconds=0.2) as predictor:
        model.go.clear()
        calls = [asyncio.create_task(predictor.predict(flights(0)))]
        await until(lambda: len(model.batches) == 1)
        calls += [asyncio.create_task(predictor.predict(flights(n))) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(fs.OverloadedError, match="2 flights wait"):
            await predictor.predict(flights(3))
        for call in calls:
            with pytest.raises(fs.OverloadedError, match=r"within 0\.2 s"):
                await call
        model.go.set()
        assert await predictor.predict(flights(4, 5)) == [0.04, 0.05]


async def test_who_waits_at_the_end_is_told(serving: ModuleType):
    model = Model()
    async with serving.Predictor(model) as predictor:
        model.go.clear()
        first = asyncio.create_task(predictor.predict(flights(0)))
        await until(lambda: len(model.batches) == 1)
        second = asyncio.create_task(predictor.predict(flights(1)))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, model.go.set)
    done = await asyncio.gather(first, second, return_exceptions=True)
    assert ["has ended" in str(one) for one in done] == [True, True]
    assert all(isinstance(one, fs.OverloadedError) for one in done)
    with pytest.raises(fs.OverloadedError, match="has ended"):
        await predictor.predict(flights(1))


# --- lines ------------------------------------------------------------------------------------

GOOD = {
    "carrier": "DL",
    "tailnum": "N718TW",
    "origin": "JFK",
    "distance": 2586,
    "departure": "2013-12-31T17:30",
}


@pytest.fixture
async def store(feature_store: fs.FeatureStore, example_path: Path) -> fs.FeatureStore:
    import features

    kinds = fs.Entity | fs.FeatureView | fs.FeatureService
    await feature_store.apply([one for one in vars(features).values() if isinstance(one, kinds)])
    return feature_store


class Distance:
    def predict(self, flights: Sequence[Any]) -> list[float]:
        return [flight["distance"] / 10_000 for flight in flights]


async def ask(serving: ModuleType, store: fs.FeatureStore, *pieces: bytes) -> list[dict[str, Any]]:
    async def given() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with serving.Predictor(Distance()) as predictor:
        found = [one async for one in serving.late_lines(store, predictor, given())]
    return [json.loads(line) for line in b"".join(found).splitlines()]


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("size", [1, 7, 1_000, 100_000])
async def test_lines_are_answered_in_order(serving: ModuleType, store: fs.FeatureStore, size: int):
    rows = [{**GOOD, "distance": n + 1} for n in range(40 if size < 100 else 600)]
    body = "\n".join(map(json.dumps, rows)).encode()
    pieces = [body[first : first + size] for first in range(0, len(body), size)]
    answers = await ask(serving, store, *pieces)
    assert answers == [
        {"line": n + 1, "probability": pytest.approx((n + 1) / 10_000)} for n in range(len(rows))
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b"\xff", "utf-8", id="no text"),
        pytest.param(b"[1]", "a flight is an object", id="no object"),
        pytest.param(b"[" * 5_000, "", id="nested"),
        pytest.param({"carrier": None}, "carrier is missing", id="missing"),
        pytest.param({"carrier": "D\0"}, "carrier is no code", id="no code"),
        pytest.param({"carrier": "\ud800"}, "carrier is no code", id="half a character"),
        pytest.param({"tailnum": "N" * 2_000}, "tailnum is no code", id="long"),
        pytest.param({"distance": True}, "distance is missing or", id="no number"),
        pytest.param({"distance": 10**400}, "none on Earth", id="far"),
        pytest.param({"departure": "soon"}, "soon", id="no time"),
    ],
)
async def test_a_line_that_holds_no_flight_is_told_and_the_rest_goes_on(
    serving: ModuleType, store: fs.FeatureStore, line: Any, reason: str
):
    good = json.dumps(GOOD).encode()
    bad = line if isinstance(line, bytes) else json.dumps(GOOD | line).encode()
    first, second, third = await ask(serving, store, good + b"\n" + bad + b"\n" + good + b"\n")
    assert (first["line"], third["line"]) == (1, 3)
    assert first["probability"] == third["probability"]
    assert set(second) == {"line", "error"}
    assert reason in second["error"]


async def test_a_line_without_an_end_ends_the_stream(serving: ModuleType, store: fs.FeatureStore):
    good = json.dumps(GOOD).encode() + b"\n"
    asked = 0

    async def given() -> AsyncIterator[bytes]:
        nonlocal asked
        yield good
        while True:
            asked += 1
            yield b"x" * 6_000

    async with serving.Predictor(Distance()) as predictor:
        found = [one async for one in serving.late_lines(store, predictor, given())]
    assert "longer than 10,000 bytes" in json.loads(found[-1])["error"]
    assert len(found) == 2
    assert asked == 2


async def test_an_error_of_the_store_ends_the_stream_and_is_told_in_general(
    serving: ModuleType, tmp_path: Path
):
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'empty.db'}") as empty:
        (answer,) = await ask(serving, empty, json.dumps(GOOD).encode())
    assert answer["error"] == "The service cannot go on at the moment; try again."


async def test_no_more_lines_are_asked_for_than_answers_are_taken(
    serving: ModuleType, store: fs.FeatureStore
):
    asked = 0

    async def given() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield json.dumps(GOOD).encode() + b"\n"

    async with serving.Predictor(Distance()) as predictor:
        lines = serving.late_lines(store, predictor, given())
        for taken in range(1, 6):
            assert json.loads(await anext(lines))["line"] == taken
            await asyncio.sleep(0.01)
            assert asked == taken
        await lines.aclose()
