"""One service for both sides: a model is served the columns it was trained on, in their order."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from builders import AIRPORT, DRIVER, hour, report, weather
from sklearn.linear_model import LinearRegression

import featurestore as fs

DRIVERS = range(40)
VIEW = fs.FeatureView(
    "driver_stats",
    entities=[DRIVER],
    # Not in the order of the alphabet, nor in that of the service.
    fields=[
        fs.Field("trips", fs.Float64),
        fs.Field("age", fs.Float64),
        fs.Field("rating", fs.Float64),
    ],
    timestamp_field="event_timestamp",
)
THERE = weather().with_name("there").with_join_key_map({"airport": "dest"})
SERVICE = fs.FeatureService(
    "eta", features=[VIEW[["rating"]], weather(), VIEW[["age", "trips"]], THERE]
)
WEIGHTS = {
    "driver_stats__rating": 100.0,
    "weather__temp": -3.0,
    "driver_stats__age": 10.0,
    "driver_stats__trips": 1.0,
    "there__temp": 0.25,
}
COLUMNS = list(WEIGHTS)


def label(row: dict[str, Any]) -> float:
    """What the model is to find: each column weighs something else."""
    return sum(weight * row[name] for name, weight in WEIGHTS.items())


@pytest.fixture
async def eta(store: fs.FeatureStore) -> fs.FeatureStore:
    chance = random.Random(7)
    await store.apply([AIRPORT, VIEW, weather(), SERVICE])
    rows = [
        {"driver_id": driver, "event_timestamp": hour(n)}
        | {name: float(chance.randint(0, 50)) for name in ("trips", "age", "rating")}
        for driver in DRIVERS
        for n in range(3)
    ]
    await store.push(VIEW, rows)
    temperatures = [report(name, hour(n), float(n * n - size)) for n in range(3)
                    for size, name in enumerate(["jfk", "lax", "bos", "ewr"])]  # fmt: skip
    await store.push("weather", temperatures)
    return store


def _train(table: pa.Table) -> LinearRegression:
    frame = table.select(COLUMNS).to_pandas()
    return LinearRegression().fit(frame, [label(row) for row in table.to_pylist()])


async def test_a_model_predicts_online_as_it_was_trained(eta: fs.FeatureStore):
    chance = random.Random(3)
    names = ["jfk", "lax", "bos", "ewr"]
    count = 300
    asked = pa.table(
        {
            "driver_id": [chance.choice(DRIVERS) for _ in range(count)],
            "airport": [chance.choice(names) for _ in range(count)],
            "dest": [chance.choice(names) for _ in range(count)],
            "event_timestamp": [hour(chance.randint(0, 4)) for _ in range(count)],
        }
    )
    trained = {}
    for engine in ("sql", "duckdb"):
        found = await eta.get_historical_features(
            asked, "eta", engine=engine, full_feature_names=True
        )
        assert found.to_arrow().column_names == [*asked.column_names, *COLUMNS]
        assert list(found.features) == COLUMNS
        trained[engine] = await asyncio.to_thread(_train, found.to_arrow())
    replayed = await eta.replay(found.manifest)
    assert replayed.to_arrow().column_names == [*asked.column_names, *COLUMNS]

    entities = [
        {"driver_id": driver, "airport": names[driver % 4], "dest": names[driver % 3]}
        for driver in DRIVERS
    ]
    answer = await eta.get_online_features("eta", entities, full_feature_names=True)
    rows = answer.to_dicts()
    assert [list(row)[-len(COLUMNS) :] for row in rows] == [COLUMNS] * len(rows)
    assert answer.to_arrow().column_names[-len(COLUMNS) :] == COLUMNS
    wanted = [label(row) for row in rows]
    for model in trained.values():
        assert list(model.feature_names_in_) == COLUMNS
        # By names: scikit-learn refuses columns of another order.
        by_name = model.predict(answer.to_pandas()[COLUMNS])
        np.testing.assert_allclose(by_name, wanted, rtol=1e-6)
        # By position, as a server that has no pandas does it.
        vectors = np.array([list(row.values())[-len(COLUMNS) :] for row in rows])
        np.testing.assert_allclose(vectors @ model.coef_ + model.intercept_, wanted, rtol=1e-6)
