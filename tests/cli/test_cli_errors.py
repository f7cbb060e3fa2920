"""What goes wrong is said in a line or two on standard error, with the way out."""

from __future__ import annotations

import socket
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Run, driver_table


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ingest", "driver_stat"], "Did you mean 'driver_stats'?"),
        (["ingest", "driver_stats", "none.parquet"], "none.parquet"),
        (["ingest", "driver_stats", "no/*.parquet"], "no/*.parquet"),
        (["ingest", "driver_stats", ""], "'' names no file: give a path, glob, folder or URL."),
        (["push", "driver_stat", "rows.json"], "Did you mean 'driver_stats'?"),
        (["materialize", "driver"], "Did you mean 'driver_stats'?"),
        (["online", "driver_stat:trips", "driver_id=1"], "Did you mean 'driver_stats'?"),
        (["online", "driver_stats:trip", "driver_id=1"], "Did you mean 'trips'?"),
        (["online", "driver_stats", "driver_id=1"], "a view: write 'driver_stats:*'"),
        (["online", "eta", "driver_id=1"], "no feature service 'eta'"),
        (["training-set", "none.parquet", "driver_stats:*", "-o", "x"], "no such Parquet file"),
        (["training-set", "rows.csv", "driver_stats:*", "-o", "x"], "rows.csv cannot be read"),
        (
            ["training-set", "driver_stats.parquet", "driver_stats:trips", "-o", "x"],
            "Rename the column, or read with --full-feature-names.",
        ),
        (
            ["training-set", "driver_stats.parquet", "driver_stats:*", "-o", "x"],
            "or read with --full-feature-names.",
        ),
        (["training-set", "driver_stats.parquet", "driver_stats", "-o", "x"], "'driver_stats:*'"),
        (["training-set", "*.parquet", "driver_stats:*", "-o", "x"], "not a pattern of them"),
        (
            ["training-set", "keys.parquet", "driver_stats:*", "-o", "x", "--engine", "daft"],
            "--engine daft joins from Parquet copies, and view 'driver_stats' has none here. Run "
            "featurestore export driver_stats FOLDER first.",
        ),
        (["undo", "77"], "77"),
        (["loads", "driver"], "Did you mean 'driver_stats'?"),
    ],
)
def test_what_is_not_there(run: Run, args: list[str], words: str) -> None:
    Path("rows.json").write_text('{"driver_id": 1}')
    Path("rows.csv").write_text("a,b\n1\n")
    pq.write_table(driver_table().select(["driver_id", "event_timestamp"]), "keys.parquet")
    done = run(*args, status=1)
    assert words in done.err
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) <= 3
    assert done.out == ""


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Say of which entity: --entity driver_id=… (may be repeated)"),
        (["--entity", "1001"], "'1001': write an entity's key as key=value"),
        (["--entity", "driver_id=x"], "driver_id is of type int64: 'x' is no integer"),
        (["--entity", "id=1"], "'id' is no key of these features; they have: driver_id"),
        (["--entity", "driver_id=1", "driver_id=2"], "not both"),
        (["driver_id=1", "driver_id=2"], "driver_id stands twice"),
        (["--entity", "{}"], "lacks driver_id"),
        (["--entity", "{"], "no JSON object"),
    ],
)
def test_entities_that_cannot_be_are_wrong_use(run: Run, args: list[str], words: str) -> None:
    done = run("online", "driver_stats:*", *args, status=2)
    assert words in done.err
    assert done.out == ""


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "rows.json is no JSON: Expecting property name"),
        ('{"driver_id": 1}\n\n1', "Row 1 of rows.json is no JSON object"),
        ('[{"driver_id": 1}, 2]', "Row 1 of rows.json is no JSON object"),
        ('{"driver": 1}', "'driver', which is no column of the view"),
        (
            '{"driver_id": 1, "event_timestamp": "soon", "conv_rate": 1, "trips": 1, "city": ""}',
            "row 0: event_timestamp: 'soon' is no time such as 2024-01-31T12:00:00Z",
        ),
        (
            '{"driver_id": 1, "event_timestamp": "2024-01-01", "conv_rate": 1, "trips": 3e9, '
            '"city": ""}',
            "row 0: trips 3000000000 does not fit int32",
        ),
    ],
)
def test_rows_that_cannot_be_pushed(run: Run, text: str, words: str) -> None:
    Path("rows.json").write_text(text)
    assert words in run("push", "driver_stats", "rows.json", status=1).err
    assert run("loads", "--json").json[-1]["kind"] == "file"


def test_pushing_what_is_no_file_or_text(run: Run) -> None:
    assert "none.json cannot be read: No such file" in run("push", "v", "none.json", status=1).err
    Path("rows.json").write_bytes(b"\xff\xfe")
    assert "rows.json is no UTF-8 text" in run("push", "v", "rows.json", status=1).err


def test_pushing_nothing_is_no_error(run: Run, loaded: Path) -> None:
    Path("rows.json").write_text("\n")
    assert "0 rows written" in run("push", "driver_stats", "rows.json").err


def test_a_damaged_file_is_named(run: Run, loaded: Path) -> None:
    content = bytearray(loaded.read_bytes())
    content[4:200] = bytes(196)
    Path("damaged.parquet").write_bytes(content)
    done = run("ingest", "driver_stats", "damaged.parquet", status=1)
    assert "damaged.parquet" in done.err
    assert done.err.startswith("error: ")
    Path("cut.parquet").write_bytes(loaded.read_bytes()[:-100])
    assert "cut.parquet" in run("ingest", "driver_stats", "cut.parquet", status=1).err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://localhost/x", "'mysql' is no driver that featurestore runs on"),
        ("nonsense", "The database URL cannot be read"),
        ("sqlite:///no/such/folder/x.db", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be(run: Run, url: str, words: str) -> None:
    done = run("status", "--url", url, status=1)
    assert words in done.err
    assert done.err.startswith("error: ")


def test_a_server_that_is_not_there(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run("status", "--url", f"postgresql://me:secret@127.0.0.1:{port}/x", status=1)
    assert "cannot be reached" in done.err
    assert "secret" not in done.err


@pytest.mark.parametrize("command", [["status"], ["loads"], ["ingest", "v"], ["online", "v:x"]])
def test_an_empty_database_is_told_from_one_without_the_view(run: Run, command: list[str]) -> None:
    done = run(*command, status=1)
    assert "featurestore apply" in done.err


def test_a_database_of_another_version_has_the_command_to_run(run: Run) -> None:
    run("migrate", "--url", "sqlite:///x.db")
    with sqlite3.connect("x.db") as database:
        (table,) = database.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%version%'"
        ).fetchone()
        database.execute(f"UPDATE \"{table}\" SET version_num = '9999'")  # noqa: S608
    database.close()
    done = run("status", "--url", "sqlite:///x.db", status=1)
    assert "newer than this code" in done.err


def test_the_unexpected_is_one_line_and_debug_tells_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("featurestore.cli.commands.ledger.open_store", fail)
    done = run("status", status=1)
    assert done.err == "error: KeyError: 'x' (unexpected; --debug shows where it comes from)\n"
    assert "Traceback (most recent call last)" in run("status", "--debug", status=1).err


def test_a_file_that_may_not_be_written(run: Run) -> None:
    done = run("init", "--definitions", "no/folder/features.py", status=1)
    assert done.err == "error: no/folder/features.py: No such file or directory\n"
