"""The example's data: flights followed by hand, and rules that hold for all of them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def flights(data: ModuleType) -> pd.DataFrame:
    return data.read_flights().set_index("flight_id", drop=False)


@pytest.fixture(scope="module")
def prepared(data: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def tables(prepared: Path) -> dict[str, pd.DataFrame]:
    return {file.stem: pq.read_table(file).to_pandas() for file in prepared.iterdir()}


def test_every_flight_is_there(tables: dict[str, pd.DataFrame]) -> None:
    flights = tables["flights"]
    assert len(flights) == 336_776
    assert flights["tailnum"].isna().sum() == 2_512
    assert flights["arr_delay"].isna().sum() == 9_430  # 8,255 cancelled, 1,175 diverted
    assert flights["flight_id"].is_unique
    assert flights["event_timestamp"].min() == pd.Timestamp("2013-01-01 10:15Z")
    assert flights["event_timestamp"].max() == pd.Timestamp("2014-01-01 04:59Z")


def test_every_feature_row_has_its_key_and_time(tables: dict[str, pd.DataFrame]) -> None:
    keys = {"weather": "airport", "aircraft_delays": "tailnum", "carrier_delays": "carrier"}
    rows = {"weather": 26_115, "aircraft_delays": 327_346, "carrier_delays": 336_776}
    for view, key in keys.items():
        table = tables[view]
        assert len(table) == rows[view]
        assert table[[key, "event_timestamp"]].notna().all(axis=None)
        assert table["event_timestamp"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("flight_id", "departs", "known"),
    [
        # Newark 5:15 to Houston, due 8:19 Central Time, 11 minutes late
        pytest.param(1, "2013-01-01 10:15Z", "2013-01-01 14:30Z", id="central"),
        # JFK 9:00 to Honolulu, due 15:30 there, 14 minutes early: the next day in UTC
        pytest.param(163, "2013-01-01 14:00Z", "2013-01-02 01:16Z", id="honolulu"),
        # JFK 5:45 to Aguadilla, which is not in the list of airports, due 10:22
        pytest.param(4, "2013-01-01 10:45Z", "2013-01-01 14:04Z", id="caribbean"),
        # Newark 6:58 to Phoenix, due 9:15 without daylight saving, 20 minutes early
        pytest.param(250_537, "2013-07-01 10:58Z", "2013-07-01 15:55Z", id="no daylight saving"),
        # JFK 9:00 to Honolulu, due 15:30, 1,272 minutes late: the longest delay of the year
        pytest.param(7_073, "2013-01-09 14:00Z", "2013-01-10 22:42Z", id="a day late"),
        # JFK 22:50 to Rochester, due 0:05 the next day, 10 minutes early
        pytest.param(144_504, "2013-03-10 03:50Z", "2013-03-10 04:55Z", id="past midnight"),
        # Newark 16:30 to Raleigh, cancelled: known when it was due, 18:15
        pytest.param(839, "2013-01-01 21:30Z", "2013-01-01 23:15Z", id="cancelled"),
        # Newark 14:59 to St. Louis, due 16:47 Central Time, left 29 minutes late, diverted
        pytest.param(478, "2013-01-01 19:59Z", "2013-01-01 23:16Z", id="diverted"),
    ],
)
def test_flights_followed_by_hand(
    flights: pd.DataFrame, flight_id: int, departs: str, known: str
) -> None:
    flight = flights.loc[flight_id]
    assert flight["event_timestamp"] == pd.Timestamp(departs)
    assert flight["known_at"] == pd.Timestamp(known)


def test_no_outcome_is_known_before_the_flight_has_been_in_the_air(flights: pd.DataFrame) -> None:
    """The times in the air are recorded apart from the schedule: they confirm every time zone."""
    assert (flights["known_at"] > flights["event_timestamp"]).all()
    arrived = flights[flights["arr_delay"].notna()]
    left = arrived["event_timestamp"] + pd.to_timedelta(arrived["dep_delay"], unit="min")
    on_the_ground = (arrived["known_at"] - left).dt.total_seconds() / 60 - arrived["air_time"]
    assert on_the_ground.between(5, 240).all()
    assert on_the_ground.groupby(arrived["dest"]).median().between(20, 50).all()


def test_weather_is_known_when_its_hour_is_over(tables: dict[str, pd.DataFrame]) -> None:
    weather = tables["weather"].set_index(["airport", "event_timestamp"])
    assert weather.index.is_unique
    # The package's first row: Newark on January 1, the hour from 1:00, 6:00 in UTC.
    first = weather.loc[("EWR", pd.Timestamp("2013-01-01 07:00Z"))]
    assert first["temperature"] == 39.02
    assert first["humidity"] == 59.37
    # A wind of 1,048 miles per hour was no wind.
    assert pd.isna(weather.loc[("EWR", pd.Timestamp("2013-02-12 09:00Z")), "wind_speed"])
    assert weather["wind_speed"].max() < 50


def test_an_aircraft_followed_by_hand(tables: dict[str, pd.DataFrame]) -> None:
    delays = tables["aircraft_delays"]
    rows = delays[delays["tailnum"] == "N14228"].head(4)
    assert rows["event_timestamp"].tolist() == [
        pd.Timestamp("2013-01-01 14:30Z"),
        pd.Timestamp("2013-01-08 22:17Z"),
        pd.Timestamp("2013-01-09 13:12Z"),
        pd.Timestamp("2013-01-09 19:25Z"),
    ]
    assert rows["last_dep_delay"].tolist() == [2, -5, 17, -1]
    assert rows["last_arr_delay"].tolist() == [11, -29, -3, -20]
    assert rows["mean_arr_delay_3"].tolist() == [11, -9, -7, pytest.approx(-52 / 3)]
    assert rows["mean_arr_delay_10"].tolist() == [11, -9, -7, -10.25]


def test_carriers_agree_with_a_slow_and_simple_reckoning(
    data: ModuleType, flights: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    """The same from the raw file, by loops instead of running sums."""
    outcomes: dict[str, list[tuple[Any, int, dict[str, str]]]] = defaultdict(list)
    for flight_id, raw in enumerate(_raw_flights(data.package_folder()), start=1):
        if raw["carrier"] in ("HA", "OO", "AS"):
            known = flights.at[flight_id, "known_at"]
            outcomes[raw["carrier"]].append((known, flight_id, raw))

    delays = tables["carrier_delays"]
    for carrier, known_flights in outcomes.items():
        known_flights.sort(key=lambda outcome: outcome[:2])
        computed = delays[delays["carrier"] == carrier]
        assert len(computed) == len(known_flights)
        for end, row in enumerate(computed.itertuples(), start=1):
            last = [raw for _, _, raw in known_flights[max(0, end - 20) : end]]
            arrived = [int(raw["arr_delay"]) for raw in last if raw["arr_delay"] != "NA"]
            assert row.event_timestamp == known_flights[end - 1][0]
            assert row.cancelled_share_20 == pytest.approx(
                sum(raw["dep_time"] == "NA" for raw in last) / len(last)
            )
            if not arrived:
                assert pd.isna(row.mean_arr_delay_20)
                assert pd.isna(row.late_share_20)
                continue
            assert row.mean_arr_delay_20 == pytest.approx(sum(arrived) / len(arrived))
            late = sum(delay > 15 for delay in arrived)
            assert row.late_share_20 == pytest.approx(late / len(arrived))


def test_prepared_again_the_files_are_the_same(
    data: ModuleType, prepared: Path, tmp_path: Path
) -> None:
    """So a store recognises them, and skips them."""
    assert sorted(data.prepare(tmp_path)) == sorted(file.stem for file in prepared.iterdir())
    for file in prepared.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def _raw_flights(package: Path) -> Any:
    archive = package / "data" / "flights.csv.zip"
    with zipfile.ZipFile(archive) as files, files.open("flights.csv") as file:
        yield from csv.DictReader(io.TextIOWrapper(file, encoding="ascii"))
