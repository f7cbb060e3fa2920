"""Reports print as short tables."""

from __future__ import annotations

import pytest

from featurestore import IngestReport, LoadReport, UndoReport


def load(number: int, source: str = "data/a.parquet", **changes: int) -> LoadReport:
    counts = {"rows_read": 1_000, "rows_written": 990, "rows_rejected": 10, "rows_future": 0}
    return LoadReport(number, source, skipped=False, seconds=1.0, **(counts | changes))


def lines(*loads: LoadReport, warnings: tuple[str, ...] = ()) -> list[str]:
    return str(IngestReport("drivers", loads, 2.0, warnings)).splitlines()


def test_a_file():
    assert lines(load(7), warnings=("look",)) == [
        "source          load   read  written  rejected",
        "data/a.parquet     7  1,000      990        10",
        "drivers: 990 rows in 2.00 s (495 rows/s)",
        "warning: look",
    ]


def test_nothing():
    assert lines() == [
        "source  load  read  written  rejected",
        "drivers: 0 rows in 2.00 s (0 rows/s)",
    ]


def test_what_is_particular_about_a_file_is_noted():
    skipped = LoadReport(1, "a", True, 0, 0, 0, 0, 0.0)
    assert lines(load(2), skipped, load(3, rows_before=150_000), load(4, rows_future=3))[:-1] == [
        "source          load   read  written  rejected  note",
        "data/a.parquet     2  1,000      990        10",
        "a                  1      0        0         0  skipped",
        "data/a.parquet     3  1,000      990        10  from row 150,000",
        "data/a.parquet     4  1,000      990        10  3 in the future",
    ]


def test_long_names_keep_their_end():
    found = lines(load(1), load(1234567, f"{'folder/' * 50}date=2024-01-01/part-0001.parquet"))
    assert max(map(len, found)) == 80
    assert found[2].startswith("…")
    assert found[2].split()[0].endswith("/date=2024-01-01/part-0001.parquet")


@pytest.mark.parametrize("count", [20, 21, 5_000])
def test_of_very_many_files_the_first_and_the_last_are_shown(count: int):
    found = lines(*(load(number, f"{number}.parquet") for number in range(count)))
    if count == 20:
        assert len(found) == 22
        return
    assert len(found) == 23
    assert found[10].split()[0] == "9.parquet"
    assert found[11] == f"… and {count - 20:,} more"
    assert found[12].split()[0] == f"{count - 10}.parquet"


@pytest.mark.parametrize(
    ("changed", "removed", "words"),
    [
        (0, 0, "nothing changed"),
        (1, 0, "1 key is back to an older value"),
        (0, 1, "1 key is gone"),
        (1_200, 3, "1,200 keys are back to an older value and 3 keys are gone"),
    ],
)
def test_an_undo_says_what_it_did_to_online(changed: int, removed: int, words: str):
    report = UndoReport(4, "drivers", 2_000, changed, removed)
    assert str(report) == f"Load 4 is undone: 2,000 rows of drivers removed; online, {words}."
