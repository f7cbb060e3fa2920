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
import pyarrow.compute as pc

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


def many_rows(count: int, first: int = 0) -> pa.Table:
    """`count` rows of 1,024 drivers, a second apart, from number `first` on."""
    numbers = pa.arange(first, first + count)
    seconds = pc.add(pa.scalar(int(DAY.timestamp())), numbers)
    return pa.table(
        {
            "driver_id": pc.bit_wise_and(numbers, 1023),
            "event_timestamp": seconds.cast(pa.timestamp("s", "UTC")),
            "x": numbers.cast(pa.float64()),
            "text": numbers.cast(pa.string()),
        }
    )


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
