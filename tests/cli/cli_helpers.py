"""What the tests of the command line share."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

DAY = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
"""Drivers have one row a day from this one on."""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Done]


def command(*args: str | Path) -> list[str]:
    """The command line of `featurestore args…` in this environment."""
    return [sys.executable, "-m", "featurestore.cli", *map(str, args)]


def driver_table(days: int = 3, drivers: int = 4) -> pa.Table:
    """`days` rows of each driver 1001…, a day apart; conv_rate is the day's number / 10."""
    numbers = [(day, driver) for day in range(days) for driver in range(drivers)]
    return pa.table(
        {
            "driver_id": pa.array([1001 + driver for _, driver in numbers], pa.int64()),
            "event_timestamp": pa.array(
                [DAY + dt.timedelta(days=day) for day, _ in numbers], pa.timestamp("us", "UTC")
            ),
            "conv_rate": pa.array([day / 10 for day, _ in numbers], pa.float64()),
            "trips": pa.array([day * 10 + driver for day, driver in numbers], pa.int32()),
            "city": pa.array(["Oslo" if driver % 2 else None for _, driver in numbers]),
        }
    )
