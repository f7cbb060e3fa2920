"""The main path as a user walks it: real programs, one after the other, on SQLite."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Run, command, driver_table


def test_from_a_file_to_features_and_back(program: Run, driver_stats: Path) -> None:
    assert "features.py is written" in program("init", "--from", driver_stats.name).err
    assert "Applied: 2 changes." in program("apply").err

    loaded = program("ingest", "driver_stats")
    head, row = (line.split() for line in loaded.out.splitlines())
    assert head == ["source", "load", "read", "written", "rejected", "seconds", "note"]
    assert row[:5] == ["driver_stats.parquet", "1", "12", "12", "0"]
    assert "driver_stats: 12 rows of 1 file in" in loaded.err

    vector = program("online", "driver_stats:conv_rate", "driver_stats:city", "driver_id=1001")
    assert vector.out == "driver_id  conv_rate  city\n1001       0.2        NULL_VALUE\n"
    assert vector.err == ""

    built = program(
        *("training-set", driver_stats.name, "driver_stats:conv_rate", "-o", "set.parquet"),
        "--full-feature-names",
    )
    assert built.out == "view          rows with a value\ndriver_stats             100.0%\n"
    assert re.fullmatch(
        r"set\.parquet: 12 rows, 6 columns; engine sql, \d+\.\d\d s\n", built.err
    ), built.err
    table = pq.read_table("set.parquet")
    assert table.column("driver_stats__conv_rate").equals(table.column("conv_rate"))

    assert program("loads").out.splitlines()[1].split()[:3] == ["1", "driver_stats", "file"]
    undone = program("undo", "1").err
    assert undone == (
        "Load 1 is undone: 12 rows of driver_stats removed; online, 4 keys are gone.\n"
    )
    status = program("status", "--json").json
    assert [(view["name"], view["rows"]) for view in status["views"]] == [("driver_stats", 0)]


def test_plan_shows_what_apply_does(run: Run, driver_stats: Path) -> None:
    run("init", "--from", driver_stats)
    planned = run("plan")
    assert "+ view driver_stats" in planned.out
    assert "To carry it out: featurestore apply" in planned.err
    applied = run("apply")
    assert applied.out == planned.out
    for name in ("plan", "apply"):
        again = run(name)
        assert again.out == ""
        assert "Nothing to change" in again.err


def test_what_loses_data_has_to_be_allowed(run: Run, loaded: Path) -> None:
    text = Path("features.py").read_text()
    Path("features.py").write_text(
        text.replace('Field("trips", fs.Int32)', 'Field("age", fs.Int32)')
    )
    planned = run("plan")
    assert "featurestore apply --allow drop" in planned.err
    changes = {change["name"]: change for change in run("plan", "--json").json["changes"]}
    assert changes["driver_stats.trips"]["requires"] == "drop"
    assert "drop" in run("apply", status=1).err
    assert "Applied: 2 changes." in run("apply", "--allow", "drop", "--allow", "narrow").err


@pytest.mark.usefixtures("loaded")
def test_json_is_all_there_is_on_standard_output(run: Run) -> None:
    ingested = run("ingest", "driver_stats", "--force", "--json").json
    assert ingested["rows_written"] == 12
    assert ingested["loads"][0]["load_id"] == 2
    vectors = run("online", "driver_stats:*", "--entity", "driver_id=1002", "--json").json
    assert vectors == {
        "rows": [{"driver_id": 1002, "conv_rate": 0.2, "trips": 21, "city": "Oslo"}],
        "statuses": [{"conv_rate": "PRESENT", "trips": "PRESENT", "city": "PRESENT"}],
        "event_timestamps": [{"driver_stats": "2024-01-03T00:00:00Z"}],
    }
    assert run("plan", "--json").json == {"applied": False, "changes": []}
    assert [load["kind"] for load in run("loads", "--json").json] == ["file", "file"]


@pytest.mark.usefixtures("loaded")
def test_rows_come_through_a_pipe(program: Run, run: Run) -> None:
    now = dt.datetime.now(dt.UTC).isoformat()
    rows = [
        {"driver_id": n, "event_timestamp": now, "conv_rate": 0.7, "trips": n, "city": "Ålesund"}
        for n in (1001, 1005)
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert (
        "driver_stats: 2 rows written (load 2)" in program("push", "driver_stats", stdin=lines).err
    )
    found = run("online", "driver_stats:*", "driver_id=1005").out
    assert found.splitlines()[1].split() == ["1005", "0.7", "1005", "Ålesund"]


@pytest.mark.usefixtures("loaded")
def test_a_reader_that_leaves_is_no_failure(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        done = subprocess.run(
            command("online", "driver_stats:*", "driver_id=1001"),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_several_files_are_reported_one_by_one(run: Run, folder: Path) -> None:
    (folder / "data").mkdir()
    for number in range(3):
        pq.write_table(driver_table(days=number + 1), folder / "data" / f"{number}.parquet")
    run("init", "--from", "data", "--view", "drivers")
    run("apply")
    run("ingest", "drivers", "data/1.parquet")
    done = run("ingest", "drivers")
    assert [line.partition(": ")[2] for line in done.err.splitlines()[:3]] == [
        "4 rows",
        "skipped, loaded before",
        "12 rows",
    ]
    assert "(2 of 3)" in done.err.splitlines()[1]
    assert [line.split()[6:] for line in done.out.splitlines()] == [["note"], [], ["skipped"], []]
    assert [Path(line.split()[0]).name for line in done.out.splitlines()[1:]] == [
        "0.parquet",
        "1.parquet",
        "2.parquet",
    ]
