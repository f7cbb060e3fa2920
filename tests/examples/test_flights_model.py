"""The example's model: JSON and back, one flight at a time or many."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


@pytest.fixture
def flights() -> pd.DataFrame:
    """Flights that are late in wind, and with one carrier more than with the other."""
    rows = [
        {
            "carrier": carrier,
            "origin": "JFK",
            "wind_speed": None if wind == 0 else float(wind),
            "distance": 187,
            "arr_delay": 60 if wind > limit else 0,
        }
        for wind in [*range(40)] * 25
        for carrier, limit in (("AA", 30), ("B6", 20))
    ]
    return pd.DataFrame(rows)


def test_it_learns_saves_and_loads(
    flights: pd.DataFrame, example_path: Path, tmp_path: Path
) -> None:
    from model import LateModel, evaluate

    model = LateModel.fit(flights, ["wind_speed", "distance"])
    model.save(tmp_path / "model.json")
    assert LateModel.load(tmp_path / "model.json") == model
    assert evaluate(model, flights).auc > 0.95

    calm = {"carrier": "AA", "origin": "JFK", "wind_speed": 5.0, "distance": 187}
    assert model.probability(calm) < 0.1 < 0.9 < model.probability(calm | {"wind_speed": 39.0})
    assert model.probability(calm | {"wind_speed": 25.0, "carrier": "B6"}) > 0.9
    assert model.probability(calm | {"wind_speed": 25.0}) < 0.1


def test_one_flight_at_a_time_is_the_same_as_many(
    flights: pd.DataFrame, example_path: Path
) -> None:
    from model import LateModel

    model = LateModel.fit(flights[flights["carrier"] == "AA"], ["wind_speed", "distance"])
    many = model.probabilities(flights)  # with a carrier that it has never seen, and nulls
    for flight, probability in zip(flights.to_dict("records"), many, strict=True):
        if math.isnan(flight["wind_speed"]):
            flight["wind_speed"] = None
        assert model.probability(flight) == pytest.approx(probability)


def test_no_flights_are_no_answers(flights: pd.DataFrame, example_path: Path) -> None:
    from model import LateModel

    assert LateModel.fit(flights, ["wind_speed"]).predict([]) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"roots": [10_000]}, id="a root that is not there"),
        pytest.param({"depth": -1}, id="a depth that cannot be"),
        pytest.param({"depth": 10**12}, id="a way without an end"),
        pytest.param({"baseline": float("nan")}, id="no number"),
        pytest.param({"numbers": []}, id="splits on columns that are not there"),
        pytest.param({"nodes": {}}, id="no nodes"),
        pytest.param({"colour": "blue"}, id="an unknown entry"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    flights: pd.DataFrame, example_path: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    from model import LateModel

    path = tmp_path / "model.json"
    LateModel.fit(flights, ["distance", "wind_speed"]).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="holds no model of late flights"):
        LateModel.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="holds no model of late flights"):
        LateModel.load(path)
