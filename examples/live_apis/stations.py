"""The view that the APIs fill, and how an observation becomes a row of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import featurestore as fs

STATIONS = ("EWR", "JFK", "LGA")

station = fs.Entity("station", join_keys={"station": fs.String}, description="FAA code")

weather = fs.FeatureView(
    "weather",
    entities=[station],
    fields=[
        fs.Field("temperature", fs.Float64, description="°F"),
        fs.Field("humidity", fs.Float64, description="%"),
        fs.Field("wind_speed", fs.Float64, description="mph"),
        fs.Field("pressure", fs.Float64, description="mbar at sea level"),
    ],
    timestamp_field="observed_at",
    description="What the stations' APIs report, hour by hour",
)


def row_of(observation: dict[str, Any]) -> dict[str, Any]:
    """An observation as the APIs give it (text and nested units) as a row of the view.

    What is missing or malformed raises KeyError, TypeError or ValueError; values that do not fit
    are the store's affair: it sets them aside.
    """
    wind = observation["wind"] or {}
    return {
        "station": observation["station"],
        "observed_at": datetime.fromisoformat(observation["observed_at"]),
        "temperature": observation["temperature_f"],
        "humidity": observation["humidity_percent"],
        "wind_speed": wind.get("speed_mph"),
        "pressure": observation["pressure_mbar"],
    }
