"""`featurestore explain`: why a value is what it is."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from cli_helpers import Run

import featurestore as fs
from featurestore.cli.commands.explaining import shown
from featurestore.cli.output import table_lines

pytestmark = pytest.mark.usefixtures("loaded")


def push(folder: Path, run: Run, **changes: object) -> None:
    row = {"driver_id": 1001, "event_timestamp": "2024-01-02", "conv_rate": 0.9, "trips": 9}
    (folder / "rows.json").write_text(json.dumps(row | {"city": None} | changes), encoding="utf-8")
    run("push", "driver_stats", "rows.json")


def test_it_shows_the_rows_and_says_why(run: Run, folder: Path) -> None:
    push(folder, run)
    done = run("explain", "driver_stats", "driver_id=1001", "--at", "2024-01-02T12:00")
    question, heads, *rows, reason = done.out.splitlines()
    assert question == "driver_stats driver_id=1001 at 2024-01-02 12:00:00Z, ttl none"
    assert heads.split() == [
        *("verdict", "event", "time", "created", "conv_rate", "trips", "city"),
        *("load", "row", "source"),
    ]
    assert [(row.split()[0], row.split()[-3:]) for row in rows] == [
        ("AFTER", ["1", "8", "driver_stats.parquet"]),
        ("WINNER", ["2", "0", "rows"]),
        ("TIED_CREATED", ["1", "4", "driver_stats.parquet"]),
        ("OLDER", ["1", "0", "driver_stats.parquet"]),
    ]
    assert reason.startswith(
        "At 2024-01-02 12:00:00Z the newest row that counts is of 2024-01-02 00:00:00Z; "
    )
    assert "It came with load 2 (push: rows)." in reason
    assert done.err == ""


def test_json_has_all_of_it(run: Run, folder: Path) -> None:
    push(folder, run)
    at = ("--at", "2024-01-02")
    found = run("explain", "driver_stats", "driver_id=1001", *at, "--json").json
    assert found["keys"] == {"driver_id": 1001}
    assert found["at"] == "2024-01-02T00:00:00Z"
    assert (found["rows"], found["ttl_seconds"], found["oldest"]) == (4, None, None)
    assert (found["known_by"], found["online"]) == (None, None)
    assert found["values"] == {"conv_rate": 0.9, "trips": 9, "city": None}
    assert [one["verdict"] for one in found["candidates"]] == [
        *("AFTER", "WINNER", "TIED_CREATED", "OLDER"),
    ]
    assert found["winner"] == found["candidates"][1]
    assert found["winner"]["event_timestamp"] == "2024-01-02T00:00:00Z"
    assert found["reason"]

    few = run("explain", "driver_stats", "driver_id=1001", *at, "--json", "--limit", "1").json
    assert [one["verdict"] for one in few["candidates"]] == ["WINNER"]
    assert few["rows"] == 4
    early = run(
        *("explain", "driver_stats", "driver_id=1001", *at, "--json"),
        *("--known-by", "created_timestamp"),
    ).json
    assert early["winner"] is None
    assert early["candidates"][-1]["verdict"] == "NOT_KNOWN_YET"


def test_without_a_time_online_is_compared(run: Run) -> None:
    done = run("explain", "driver_stats", "driver_id=1001")
    assert "online: PRESENT. It gives the same row.\n" in done.out
    found = run("explain", "driver_stats", "driver_id=7", "--json").json
    assert (found["online"]["status"], found["online"]["agrees"]) == ("NOT_FOUND", True)
    assert "has no row of driver_id=7" in found["reason"]


def test_what_is_not_shown_is_counted(run: Run) -> None:
    done = run("explain", "driver_stats", "driver_id=1001", "--limit", "2")
    assert "2 of 3 rows of the key are shown.\n" in done.out


MOMENT = dt.datetime(2024, 5, 1, 3, 12, 1, 312_345, tzinfo=dt.UTC)
VALUES = {
    **{"rate": 0.17300740157905092, "trips": 3, "city": "a name of many words, all the way"},
    **{"load": 7, "lags": [0.25] * 20},
}
TOLD = fs.Explanation(
    view="driver_stats",
    keys={"driver_id": 1001},
    at=MOMENT,
    ttl=dt.timedelta(days=30),
    oldest=MOMENT - dt.timedelta(days=30),
    known_by=None,
    values=VALUES,
    candidates=(
        fs.Candidate(
            event_timestamp=MOMENT.replace(second=0, microsecond=0),
            created_timestamp=MOMENT,
            arrival=1,
            load_id=1,
            kind="file",
            source="folder/with/a/long/name/driver_stats.parquet",
            position=8,
            loaded_at=MOMENT,
            values=VALUES,
            verdict=fs.Verdict.TIED_CREATED,
            reason="",
        ),
    ),
    rows=1,
)
DECIDING = ["verdict", "event time", "created"]


@pytest.mark.parametrize(
    ("room", "features", "after", "lacking"),
    [
        (None, [*VALUES], ["load", "row", "source"], ""),
        (
            80,
            ["load"],
            ["load", "row"],
            "4 features (rate, trips, city, lags) and the source of each row found no room",
        ),
        (
            120,
            ["rate", "trips", "load"],
            ["load", "row"],
            "2 features (city, lags) and the source of each row found no room",
        ),
        (200, [*VALUES], ["load", "row", "source"], ""),
    ],
)
def test_a_narrow_terminal_keeps_what_decides_and_whole_numbers(
    room: int | None, features: list[str], after: list[str], lacking: str
) -> None:
    table, said = shown(TOLD, [], room)
    assert table.titles == [*DECIDING, *features, *after]
    lines = list(table_lines(table))
    assert room is None or max(map(len, lines)) <= room
    assert ("0.17300740157905092" in lines[1]) == ("rate" in features)
    if room == 200:
        assert "a name of many words, a…  7     [0.25, 0.25, 0.25, …]  " in lines[1]
        assert lines[1].endswith("…me/driver_stats.parquet")
    assert "".join(said).startswith(lacking)


def test_features_that_are_chosen_are_shown_however_narrow_it_is() -> None:
    table, said = shown(TOLD, ["rate"], 60)
    assert table.titles == [*DECIDING, "rate", "load"]
    assert list(said) == ["The source of each row finds no room: --json has it."]


def test_features_can_be_chosen(run: Run) -> None:
    done = run("explain", "driver_stats", "driver_id=1001", "--feature", "trips")
    assert done.out.splitlines()[1].split() == [
        *("verdict", "event", "time", "created", "trips", "load", "row", "source"),
    ]


@pytest.mark.parametrize(
    ("args", "words", "status"),
    [
        (["driver_stats"], "lacks driver_id; its keys: driver_id", 2),
        (["driver_stats", "1001"], "'1001': write an entity's key as key=value", 2),
        (["driver_stats", "driver_id=x"], "driver_id is of type int64: 'x' is no integer", 2),
        (["driver_stats", "id=1"], "'id' is no key of these features", 2),
        (
            ["driver_stats", "driver_id=1", "driver_id=2"],
            "A key stands twice: give one entity at a time",
            2,
        ),
        (
            ["driver_stats", "driver_id=1", "--feature", "trip"],
            "driver_stats has no feature 'trip'; its features: conv_rate, trips, city",
            2,
        ),
        (["driver_stat", "driver_id=1"], "Did you mean 'driver_stats'?", 1),
    ],
)
def test_what_cannot_be_explained_is_said(
    run: Run, args: list[str], words: str, status: int
) -> None:
    done = run("explain", *args, status=status)
    assert words in done.err
    assert done.out == ""


GLOBAL = """
import featurestore as fs

fuel = fs.FeatureView(
    "fuel", entities=[], fields=[fs.Field("price", fs.Float64)], timestamp_field="at"
)
"""


@pytest.mark.parametrize("command", [("explain", "fuel"), ("online", "fuel:*")])
def test_a_view_without_keys_is_said_to_be_global(
    run: Run, folder: Path, command: tuple[str, str]
) -> None:
    (folder / "fuel.py").write_text(GLOBAL, encoding="utf-8")
    run("apply", "--definitions", "fuel.py")
    done = run(*command, "x=1", status=2)
    assert "'x' is no key: what is asked for is global, without keys. Leave it out." in done.err
    run(*command)
