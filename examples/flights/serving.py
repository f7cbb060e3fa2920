"""What both services share: predictions off the event loop, gathered, and as a stream of lines."""

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from model import LateModel, departure_features

import featurestore as fs

SERVICE = "arrival_delay"

# What is wanted of a flight; `departure` in the airport's local time, ISO 8601.
FLIGHT = {
    "carrier": str,
    "tailnum": str | None,
    "origin": str,
    "distance": int,
    "departure": str,
}
FLIGHTS_AT_ONCE = 256  # of one list, and of one step of a stream: a few milliseconds of the loop
MAX_LINE = 10_000  # bytes of one flight

Flight = Mapping[str, Any]

_ENDED = "The service has ended; ask another."

log = logging.getLogger("flights")


@dataclass(eq=False)
class _Call:
    flights: Sequence[Flight]
    risks: "asyncio.Future[list[float]]"


class Predictor:
    """The model in a thread of its own, where it predicts for all who wait at once.

    Computing on the loop would make everyone wait, and a thread for each call costs more than its
    prediction. So there is one thread: a lone call is predicted at once, and those that come
    meanwhile are gathered into the next batch, of `batch` flights at most. For 200 callers on two
    cores that is 19,700 predictions a second, on the loop 5,000, in threads of their own 3,600;
    a lone caller waits 0.2 ms. No more than `waiting` flights wait, and none for longer than
    `seconds`: beyond that it is `fs.OverloadedError`.
    """

    def __init__(
        self, model: LateModel, *, batch: int = 256, waiting: int = 10_000, seconds: float = 2.0
    ) -> None:
        self.batches = 0  # how many were predicted, for those who measure
        self._model = model
        self._batch, self._most, self._seconds = batch, waiting, seconds
        self._calls: OrderedDict[_Call, None] = OrderedDict()
        self._waiting = 0
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predictor")

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="predictor")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._most = -1
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._end(self._calls)
        await asyncio.to_thread(self._thread.shutdown)

    async def predict(self, flights: Sequence[Flight]) -> list[float]:
        """The probability of each flight to be late. More flights than a batch go one batch after
        the other, between those of other callers."""
        risks: list[float] = []
        for first in range(0, len(flights), self._batch):
            risks += await self._predict(flights[first : first + self._batch])
        return risks

    async def _predict(self, flights: Sequence[Flight]) -> list[float]:
        if self._most < 0:
            raise fs.OverloadedError(_ENDED)
        if self._waiting + len(flights) > self._most:
            raise fs.OverloadedError(f"{self._waiting:,} flights wait for the model; try later.")
        call = _Call(flights, asyncio.get_running_loop().create_future())
        self._calls[call] = None
        self._waiting += len(flights)
        self._some.set()
        try:
            async with asyncio.timeout(self._seconds):
                return await call.risks
        except TimeoutError:
            raise fs.OverloadedError(
                f"The model has not come to it within {self._seconds:g} s; try later."
            ) from None
        finally:
            self._take(call)  # a caller who has gone waits no more

    def _take(self, call: _Call) -> None:
        if call in self._calls:
            del self._calls[call]
            self._waiting -= len(call.flights)

    async def _work(self) -> None:
        while True:
            await self._some.wait()
            if calls := self._next_batch():
                try:
                    await self._answer(calls)
                finally:
                    self._end(calls)  # no news where they are answered
            else:
                self._some.clear()

    def _next_batch(self) -> list[_Call]:
        calls: list[_Call] = []
        room = self._batch
        while self._calls and len((call := next(iter(self._calls))).flights) <= room:
            self._take(call)
            calls.append(call)
            room -= len(call.flights)
        return calls

    async def _answer(self, calls: list[_Call]) -> None:
        loop = asyncio.get_running_loop()
        flights = [flight for call in calls for flight in call.flights]
        try:
            risks = await loop.run_in_executor(self._thread, self._model.predict, flights)
        except Exception as error:  # noqa: BLE001 (it is the callers' to handle)
            if len(calls) > 1:  # whoever's flight it was fails alone
                for call in calls:
                    await self._answer([call])
            elif not calls[0].risks.done():
                calls[0].risks.set_exception(error)
            return
        self.batches += 1
        first = 0
        for call in calls:
            last = first + len(call.flights)
            if not call.risks.done():
                call.risks.set_result(risks[first:last])
            first = last

    @staticmethod
    def _end(calls: Iterable[_Call]) -> None:
        for call in calls:
            if not call.risks.done():
                call.risks.set_exception(fs.OverloadedError(_ENDED))


@dataclass(frozen=True)
class Answer:
    """The risk of a flight, and what it was reckoned from."""

    risk: float
    features: dict[str, Any]
    statuses: dict[str, fs.Status]


async def late(
    store: fs.FeatureStore, predictor: Predictor, flights: Sequence[Flight]
) -> list[Answer]:
    """For each of the flights, in order, from one read of the store as of now."""
    online = await store.get_online_features(SERVICE, flights)
    known = online.to_dicts()
    risks = await predictor.predict(
        [
            {**features, **flight, **departure_features(departure_of(flight))}
            for features, flight in zip(known, flights, strict=True)
        ]
    )
    return [
        Answer(risk, features, statuses)
        for risk, features, statuses in zip(risks, known, online.statuses, strict=True)
    ]


async def late_lines(
    store: fs.FeatureStore, predictor: Predictor, pieces: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """A stream of flights, a JSON object a line (NDJSON), answered a line each, in their order.

    Lines are read only when those before them are answered and taken: whoever reads slowly is
    sent, and asked for, no more than that. A line that holds no flight is answered with its
    error, and the rest goes on. An error of the store ends the stream with a line that says so.
    """
    number = 0
    try:
        async for lines in _lines(pieces):
            answers: list[dict[str, Any]] = []
            flights: list[Flight] = []
            for line in lines:
                number += 1
                answers.append({"line": number})
                try:
                    flights.append(flight_of(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    answers[-1]["error"] = str(error)
            found = iter(await late(store, predictor, flights))
            for answer in answers:
                if "error" not in answer:
                    answer["probability"] = next(found).risk
            yield "".join(f"{json.dumps(answer)}\n" for answer in answers).encode()
    except (fs.FeatureStoreError, ValueError, TimeoutError) as error:
        wrong = isinstance(error, ValueError | fs.InvalidRowsError)  # what the caller sent
        if not wrong:
            log.warning("A stream of flights broke off: %s", error)
        reason = str(error) if wrong else "The service cannot go on at the moment; try again."
        yield f"{json.dumps({'error': reason, 'line': number})}\n".encode()


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The whole lines of what has come, some at a time."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE:
            raise ValueError(f"a line is longer than {MAX_LINE:,} bytes")
        for first in range(0, len(lines), FLIGHTS_AT_ONCE):
            yield lines[first : first + FLIGHTS_AT_ONCE]
    if rest:
        yield [rest]


def departure_of(flight: Flight) -> datetime:
    departure = flight["departure"]
    return departure if isinstance(departure, datetime) else datetime.fromisoformat(departure)


def flight_of(given: Any) -> dict[str, Any]:
    """The flight that was sent, or ValueError."""
    if not isinstance(given, dict):
        raise ValueError("a flight is an object")
    flight: dict[str, Any] = {name: given.get(name) for name in FLIGHT}
    for name, kinds in FLIGHT.items():
        if not isinstance(flight[name], kinds) or isinstance(flight[name], bool):
            raise ValueError(f"{name} is missing or of a wrong type")
    for name in ("carrier", "tailnum", "origin"):
        text = flight[name] or ""
        if len(text) > 10 or not text.isprintable():
            raise ValueError(f"{name} is no code")
    if not 0 < flight["distance"] < 13_000:
        raise ValueError("distance: that is none on Earth")
    departure_of(flight)
    return flight
