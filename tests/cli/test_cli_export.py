"""featurestore export: a copy of history from the shell."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
from cli_helpers import Run, many_rows
from cli_terminal import Terminal

from featurestore.export.copy import read_copy


def test_a_copy_is_made_and_brought_up_to_date(run: Run, loaded: Path, folder: Path) -> None:
    done = run("export", "driver_stats", "copy", "--buckets", "3")
    assert done.out == ""
    first, second = done.err.splitlines()
    assert re.fullmatch(
        r"driver_stats: 12 rows added, 0 removed in \d+\.\d\d s; 12 in .*/copy", first
    )
    assert second.startswith("3 files written, 0 replaced; mark ")
    run("undo", "1")
    report = run("export", "driver_stats", "copy", "--json").json
    assert (report["rows_added"], report["rows_removed"], report["rows"]) == (0, 12, 0)
    assert report["path"] == str(folder / "copy")
    run("ingest", "driver_stats")
    assert run("export", "driver_stats", "copy", "--json").json["rows_added"] == 12
    copy = read_copy(folder / "copy")
    assert copy is not None
    rows = sum(pq.read_metadata(folder / "copy" / file.path).num_rows for file in copy.files)
    assert rows == 12


def test_a_terminal_shows_how_far_it_is(run: Run, folder: Path) -> None:
    pq.write_table(many_rows(100_000), folder / "drivers.parquet")
    run("init", "--from", "drivers.parquet", "--view", "drivers")
    run("apply")
    run("ingest", "drivers")
    with Terminal("export", "drivers", "copy") as terminal:
        status, out = terminal.end()
    assert (status, out) == (0, "")
    assert re.search(r"drivers .*[1-9]\d*% .* rows", terminal.text)
    assert terminal.drawn.count("\x1b[?25l") == terminal.drawn.count("\x1b[?25h") == 1
    assert re.search(r"drivers: 100,000 rows added, 0 removed in ", terminal.text)


def test_what_cannot_be_is_told_in_a_line(run: Run, loaded: Path, folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    assert "it has 'notes.txt'" in run("export", "driver_stats", "full", status=1).err
    assert "Did you mean 'driver_stats'?" in run("export", "driver_stat", "copy", status=1).err
    assert "1<=x<=512" in run("export", "driver_stats", "c", "--buckets", "0", status=2).err
    run("export", "driver_stats", status=2)
