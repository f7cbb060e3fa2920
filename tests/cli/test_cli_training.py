"""`featurestore training-set`, `replay` and `mark`: files that can be made again."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import DAY, Run, command, many_rows
from cli_terminal import SECONDS, Terminal

import featurestore as fs

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

FEATURES = """
import featurestore as fs

driver = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
rates = fs.FeatureView(
    "rates",
    entities=[driver],
    fields=[fs.Field("rate", fs.Float64)],
    timestamp_field="at",
    created_timestamp_field="created",
    source=fs.ParquetSource("rates.parquet"),
)
eta = fs.FeatureService("eta", features=[rates])
"""
HOURS = [DAY + dt.timedelta(hours=n) for n in range(10)]
RATES = pa.table(
    {
        "driver_id": pa.array([1, 1, 1, 2], pa.int64()),
        "at": pa.array([HOURS[0], HOURS[1], HOURS[2], HOURS[1]], fs.Timestamp.arrow),
        # The row of 02:00 was filled in at 09:00.
        "created": pa.array([HOURS[0], HOURS[1], HOURS[9], HOURS[1]], fs.Timestamp.arrow),
        "rate": [0.0, 0.1, 0.2, 0.9],
    }
)
LABELS = pa.table(
    {
        "driver_id": pa.array([1, 2, 3, 1], pa.int64()),
        "event_timestamp": pa.array([HOURS[3], HOURS[3], HOURS[3], HOURS[1]], fs.Timestamp.arrow),
        "late": [True, False, True, False],
    }
)


@pytest.fixture(autouse=True)
def rates(run: Run, folder: Path, featurestore_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view `rates`, loaded, and `labels.parquet`."""
    monkeypatch.setenv("FEATURESTORE_URL", featurestore_url)
    (folder / "features.py").write_text(FEATURES)
    pq.write_table(RATES, folder / "rates.parquet")
    pq.write_table(LABELS, folder / "labels.parquet")
    run("apply")
    run("ingest", "rates")


def push(run: Run, folder: Path, hour: int, rate: float) -> None:
    row = {"driver_id": 1, "at": HOURS[hour].isoformat(), "created": HOURS[hour].isoformat()}
    (folder / "rows.json").write_text(json.dumps(row | {"rate": rate}))
    run("push", "rates", "rows.json")


def rates_in(path: str) -> list[float | None]:
    values: list[float | None] = pq.read_table(path)["rate"].to_pylist()
    return values


@both
@pytest.mark.parametrize("engine", ["auto", "sql", "duckdb"])
def test_each_engine_writes_the_same_file(run: Run, engine: str) -> None:
    done = run(
        *("training-set", "labels.parquet", "eta", "-o", "set.parquet", "--engine", engine),
        *("--memory-limit", "128MiB"),
    )
    assert done.out == "view   rows with a value\nrates              75.0%\n"
    used = "sql" if engine == "auto" else engine
    told = rf"set\.parquet: 4 rows, 4 columns; engine {used}, \d+\.\d\d s\n"
    assert re.fullmatch(told, done.err), done.err
    table = pq.read_table("set.parquet")
    assert table.column_names == ["driver_id", "event_timestamp", "late", "rate"]
    assert table.select(LABELS.column_names).equals(LABELS)
    assert rates_in("set.parquet") == [0.2, 0.9, None, 0.1]


@both
def test_json_has_what_the_set_knows_of_itself(run: Run) -> None:
    told = run("training-set", "labels.parquet", "eta", "-o", "set.parquet", "--json").json
    assert told.pop("seconds") >= 0
    assert told == {
        "output": "set.parquet",
        "rows": 4,
        "columns": 4,
        "match_rate": {"rates": 0.75},
        "leaked": {"rates": 1},
        "engine": "sql",
        "reason": "up to 5,000 entity rows are looked up at once",
        "mark": str(fs.Manifest.load("set.parquet").mark),
        "warnings": [],
    }


@both
def test_known_by_leaves_out_what_was_filled_in_later(run: Run) -> None:
    done = run(
        *("training-set", "labels.parquet", "eta", "-o", "set.parquet"),
        *("--known-by", "created_timestamp"),
    )
    assert done.out.splitlines() == [
        "view   rows with a value  created too late",
        "rates              75.0%                 1",
    ]
    assert rates_in("set.parquet") == [0.1, 0.9, None, 0.1]


@both
def test_a_query_of_the_database_may_ask(run: Run) -> None:
    query = (
        "SELECT driver_id, __event_time AS event_timestamp FROM default__rates__history "
        "ORDER BY rate"
    )
    run("training-set", query, "eta", "-o", "set.parquet")
    assert rates_in("set.parquet") == [0.0, 0.1, 0.2, 0.9]
    assert fs.Manifest.load("set.parquet").entity_source == query

    failed = run("training-set", "SELECT no FROM here", "eta", "-o", "no.parquet", status=1)
    assert "here" in failed.err
    assert not Path("no.parquet").exists()


def test_a_file_is_no_query_whatever_its_name(run: Run, folder: Path) -> None:
    for name in ("table.parquet", "with-labels.parquet", "select labels.parquet"):
        pq.write_table(LABELS, folder / name)
        run("training-set", name, "eta", "-o", "set.parquet")
        assert rates_in("set.parquet") == [0.2, 0.9, None, 0.1]
        assert fs.Manifest.load("set.parquet").entity_source == name


def test_files_are_joined_without_being_loaded(run: Run) -> None:
    run("undo", "1")
    history = run("training-set", "labels.parquet", "eta", "-o", "none.parquet", "--json").json
    assert history["match_rate"] == {"rates": 0.0}
    source = run(
        *("training-set", "labels.parquet", "eta", "-o", "set.parquet", "--json"),
        *("--read-from", "source"),
    ).json
    assert (source["engine"], source["match_rate"]) == ("duckdb", {"rates": 0.75})
    assert rates_in("set.parquet") == [0.2, 0.9, None, 0.1]


@both
def test_an_earlier_state_is_read_by_its_mark_or_its_time(run: Run, folder: Path) -> None:
    mark = run("mark").out.strip()
    then = dt.datetime.now(dt.UTC).isoformat()
    push(run, folder, 3, 0.7)
    for state, rate in ((None, 0.7), (mark, 0.2), (then, 0.2)):
        given = () if state is None else ("--as-of", state)
        run("training-set", "labels.parquet", "eta", "-o", "set.parquet", *given)
        assert rates_in("set.parquet")[0] == rate

    told = run("mark", "--json").json
    assert told["mark"].startswith(f"{told['arrival']}@")
    assert told["arrival"] > int(mark.partition("@")[0])


@both
def test_what_was_undone_since_is_warned_of(run: Run) -> None:
    mark = run("mark").out.strip()
    run("undo", "1")
    done = run("training-set", "labels.parquet", "eta", "-o", "set.parquet", "--as-of", mark)
    assert "warning: rates: undoing load 1 has since taken 4 rows out" in done.err
    assert rates_in("set.parquet") == [None] * 4


@both
def test_a_set_is_made_again_though_data_came_in(run: Run, folder: Path) -> None:
    run("training-set", "labels.parquet", "eta", "-o", "set.parquet")
    push(run, folder, 3, 0.7)
    again = run("replay", "set.parquet", "-o", "again.parquet", "--engine", "duckdb")
    assert again.out == "view   rows with a value\nrates              75.0%\n"
    assert pq.read_table("again.parquet").equals(pq.read_table("set.parquet"))
    # What was made again can be made again.
    told = run("replay", "again.parquet", "-o", "third.parquet", "--json").json
    assert told["match_rate"] == {"rates": 0.75}
    assert pq.read_table("third.parquet").equals(pq.read_table("set.parquet"))


def test_of_a_manifest_alone_the_entity_table_is_given(run: Run, folder: Path) -> None:
    (folder / "labels.csv").write_text("driver_id,event_timestamp\n1,2024-01-01T03:00Z\n")
    run("training-set", "labels.csv", "eta", "-o", "set.parquet")
    fs.Manifest.load("set.parquet").save("set.json")

    failed = run("replay", "set.json", "-o", "again.parquet", status=1)
    assert "does not hold the entity table" in failed.err
    failed = run(
        *("replay", "set.json", "-o", "again.parquet", "--entities", "labels.parquet"), status=1
    )
    assert "The entity table is not the one of the manifest" in failed.err
    assert not Path("again.parquet").exists()

    run("replay", "set.json", "-o", "again.parquet", "--entities", "labels.csv")
    assert pq.read_table("again.parquet").equals(pq.read_table("set.parquet"))


@both
def test_where_rows_are_gone_nothing_is_made_again(run: Run, folder: Path) -> None:
    run("training-set", "labels.parquet", "eta", "-o", "set.parquet")
    (folder / "again.parquet").write_text("mine")
    run("undo", "1")
    failed = run("replay", "set.parquet", "-o", "again.parquet", status=1)
    assert "rates: 4 rows of load 1 (rates.parquet), undone at" in failed.err
    assert (folder / "again.parquet").read_text() == "mine"
    assert not list(folder.glob(".featurestore-*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "none.parquet cannot be read"),
        ("{}", "none.parquet: this is no manifest of a training set. A manifest is a file"),
        ("no JSON", "none.parquet: this is no manifest of a training set. A manifest is a file"),
    ],
)
def test_what_holds_no_manifest_is_not_replayed(run: Run, content: str | None, words: str) -> None:
    if content is not None:
        Path("none.parquet").write_text(content)
    failed = run("replay", "none.parquet", "-o", "again.parquet", status=1)
    assert words in failed.err
    without = run("replay", "labels.parquet", "-o", "again.parquet", status=1)
    assert "labels.parquet has no manifest in it" in without.err


def test_what_is_read_is_not_written_over(run: Run, folder: Path) -> None:
    run("training-set", "labels.parquet", "eta", "-o", "set.parquet")
    (folder / "link.parquet").symlink_to("labels.parquet")
    before = (folder / "labels.parquet").read_bytes()
    for words in (
        ("training-set", "labels.parquet", "eta", "-o", "labels.parquet"),
        ("training-set", "labels.parquet", "eta", "-o", "link.parquet"),
        ("replay", "set.parquet", "-o", "set.parquet"),
    ):
        assert "is what the set is made from" in run(*words, status=2).err
    assert (folder / "labels.parquet").read_bytes() == before


def test_what_is_no_file_is_not_replaced(run: Run, folder: Path) -> None:
    os.mkfifo(folder / "queue")
    for target in ("queue", os.devnull):
        failed = run("training-set", "labels.parquet", "eta", "-o", target, status=2)
        assert "is no regular file" in failed.err
    assert (folder / "queue").is_fifo()
    (folder / "lost").symlink_to(Path("nowhere", "set.parquet"))
    lost = run("training-set", "labels.parquet", "eta", "-o", "lost", status=2)
    assert f"lost: there is no folder {folder.resolve() / 'nowhere'}" in lost.err


LARGE = 250_000


@both
def test_ctrl_c_leaves_no_file(folder: Path) -> None:
    """While rows are written: a part of the file is on the disk then."""
    pq.write_table(many_rows(LARGE).select(["driver_id", "event_timestamp"]), "many.parquet")
    words = ("training-set", "many.parquet", "eta", "-o", "set.parquet", "--engine", "sql")
    with subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True) as process:
        while not list(folder.glob(".featurestore-*")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Interrupted: set.parquet was not written."
    assert list(folder.glob("set.parquet*")) == []


def test_a_terminal_shows_how_far_it_is(folder: Path) -> None:
    pq.write_table(many_rows(LARGE).select(["driver_id", "event_timestamp"]), "many.parquet")
    words = ("training-set", "many.parquet", "eta", "-o", "set.parquet", "--engine", "sql")
    with Terminal(*words) as terminal:
        terminal.until(r"set.parquet .*[1-9]\d*% .* rows")
        terminal.press_ctrl_c()
        assert terminal.end() == (130, "")
    assert terminal.last_line == "Interrupted: set.parquet was not written."
    assert list(folder.glob("set.parquet*")) == []
