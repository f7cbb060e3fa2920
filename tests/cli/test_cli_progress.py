"""How far an ingest is: shares, speeds and times by a clock of the test, and what is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Run, many_rows
from cli_terminal import Terminal
from rich.console import Console

from featurestore import ExportProgress, Progress, TrainingProgress
from featurestore.cli.amounts import Count, Size, duration, short, short_size, size_in_full
from featurestore.cli.bars import drawn
from featurestore.cli.progress import Line, RowProgress

READING = Progress("a.parquet", 0, 1_000_000, 0, 50_000_000, 0, 1)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def told(clock: Clock, *reports: tuple[float, Progress], title: str = "drivers") -> RowProgress:
    """What is known after reports, each so many seconds after the one before."""
    progress = RowProgress(title, clock)
    for seconds, report in reports:
        clock.now += seconds
        progress.of_files(report)
    return progress


# --- one file -----------------------------------------------------------------------------------


def test_nothing_is_known_at_first(clock: Clock) -> None:
    assert RowProgress("drivers", clock).lines() == [Line("drivers", None, 0, status="starting")]
    starting = replace(READING, phase="starting", bytes_total=None)
    (line,) = told(clock, (0, starting)).lines()
    assert (line.title, line.share, line.status) == ("a.parquet", None, "starting")


def test_a_file_by_its_rows(clock: Clock) -> None:
    half = replace(READING, rows_done=500_000, bytes_done=30_000_000)
    (line,) = told(clock, (0, READING), (5, half)).lines()
    assert line.share == 0.5
    assert line.rate == pytest.approx(100_000)
    assert (line.size, line.size_total) == (30_000_000, 50_000_000)
    # 500,000 rows more, and what comes after them.
    assert line.left == pytest.approx(5 + 0.25 * 10)


def test_the_speed_is_of_the_last_seconds(clock: Clock) -> None:
    reports = [(0.0, READING)]
    reports += [(1, replace(READING, rows_done=1_000 * n)) for n in range(1, 31)]
    reports += [(1, replace(READING, rows_done=30_000 + 5_000 * n)) for n in range(1, 12)]
    progress = told(clock, *reports)
    assert progress.lines()[0].rate == pytest.approx(5_000)
    clock.now += 10  # in which nothing came
    assert progress.lines()[0].rate == pytest.approx(0, abs=1)


def test_rows_of_an_earlier_call_are_no_speed(clock: Clock) -> None:
    begun = replace(READING, rows_done=600_000, rows_before=600_000, rows_kept=600_000)
    skipping = replace(begun, bytes_done=20_000_000)
    progress = told(clock, (0, begun), (5, skipping))
    (line,) = progress.lines()
    assert (line.share, line.rate, line.status) == (0.6, None, "going on")
    clock.now += 5
    progress.of_files(replace(skipping, rows_done=700_000))
    assert progress.lines()[0].rate == pytest.approx(10_000)


def test_finishing_is_said_with_its_time(clock: Clock) -> None:
    finishing = replace(READING, rows_done=1_000_000, phase="finishing")
    progress = told(clock, (0, READING), (5, finishing))
    clock.now += 3
    (line,) = progress.lines()
    assert (line.share, line.status, line.seconds) == (None, "finishing", 3)
    assert (line.rate, line.left) == (None, None)


def test_a_file_of_no_rows(clock: Clock) -> None:
    none = replace(READING, rows_total=0, bytes_total=0)
    progress = told(clock, (0, none), (1, replace(none, phase="finishing")))
    progress.of_files(replace(none, phase="done"))
    assert progress.lines()[0].share == 1.0


# --- several ------------------------------------------------------------------------------------


def of(number: int, rows: int, total: int, phase: str = "reading", files: int = 4) -> Progress:
    return Progress(
        *(f"{number}.parquet", rows, total, rows * 10, total * 10, 0, files, number),
        phase=phase,  # type: ignore[arg-type]
    )


def test_several_files_have_a_line_for_all_and_one_for_each_under_way(clock: Clock) -> None:
    progress = told(
        clock,
        *((0, of(1, 0, 100_000)), (0, of(2, 0, 300_000))),
        *((10, of(1, 50_000, 100_000)), (0, of(2, 150_000, 300_000))),
    )
    whole, first, second = progress.lines()
    # The two that were not seen are taken to be as long as those that were: 200,000 each.
    assert whole.title == "0 of 4 files"
    assert whole.share == pytest.approx(200_000 / 800_000)
    assert whole.rate == pytest.approx(20_000)
    assert whole.left == pytest.approx(600_000 / 20_000)
    assert (whole.rows, whole.size) == (200_000, 2_000_000)
    assert (first.title, first.share, first.rate) == ("1.parquet", 0.5, pytest.approx(5_000))
    assert (second.title, second.share, second.rate) == ("2.parquet", 0.5, pytest.approx(15_000))


def test_a_file_takes_the_line_of_one_that_is_done(clock: Clock) -> None:
    progress = told(
        clock,
        *((0, of(1, 0, 100_000)), (0, of(2, 0, 100_000))),
        *((5, of(1, 100_000, 100_000, "finishing")), (1, of(1, 100_000, 100_000, "done"))),
    )
    assert [line.title for line in progress.lines()] == ["1 of 4 files", "1.parquet", "2.parquet"]
    assert progress.lines()[1].status == "done"
    progress.of_files(of(3, 0, 100_000))
    assert [line.title for line in progress.lines()] == ["1 of 4 files", "3.parquet", "2.parquet"]
    assert progress.files_done == 1
    assert [one.file_number for one in progress.under_way] == [3, 2]


def test_skipped_files_are_no_work(clock: Clock) -> None:
    """Else the rest would look as if it were done as soon."""
    reports = []
    for number in (1, 2):
        reports += [(0, of(number, 0, 100_000, phase)) for phase in ("starting", "done")]
    reports += [(1, of(3, 0, 100_000)), (10, of(3, 50_000, 100_000))]
    progress = told(clock, *reports)
    whole, _ = progress.lines()[0], progress.lines()[1:]
    assert whole.title == "2 of 4 files"
    assert whole.share == pytest.approx(50_000 / 200_000)
    assert whole.left == pytest.approx(150_000 / 5_000)


def test_the_share_of_all_never_goes_back(clock: Clock) -> None:
    progress = told(clock, (0, of(1, 0, 1_000)), (1, of(1, 1_000, 1_000, "done")))
    before = progress.lines()[0].share
    progress.of_files(of(2, 0, 9_000))  # much longer than what was known
    assert before == pytest.approx(0.25)
    assert progress.lines()[0].share == before


def test_all_is_finishing_when_the_last_file_is(clock: Clock) -> None:
    progress = told(
        clock,
        *((0, of(1, 0, 1_000, files=2)), (1, of(1, 1_000, 1_000, "done", files=2))),
        *((0, of(2, 0, 1_000, files=2)), (1, of(2, 1_000, 1_000, "finishing", files=2))),
    )
    assert [line.status for line in progress.lines()] == ["finishing", "finishing"]


def test_rows_alone(clock: Clock) -> None:
    progress = RowProgress("set.parquet", clock)
    progress.of_rows(0, 100)
    clock.now += 10
    progress.of_rows(50, 100)
    assert progress.lines() == [Line("set.parquet", 0.5, 50, 5.0, left=10.0)]


def test_a_training_set_shows_the_history_that_is_read_for_it(clock: Clock) -> None:
    """Of one view after the other, each counted from its own beginning."""
    progress = RowProgress("set.parquet", clock)
    for place, view in enumerate(("trips", "drivers")):
        for rows in (1_000, 2_000):
            clock.now += 2
            progress.of_training(TrainingProgress("history", rows, view=view))
            (line,) = progress.lines()
            assert (line.title, line.share) == (f"history of {view} for set.parquet", None)
            assert line.rows == 2_000 * place + rows
    assert line.rate == pytest.approx(4_000 / 8, rel=0.5)
    clock.now += 1
    progress.of_training(TrainingProgress("rows", 0, 100))
    clock.now += 10
    progress.of_training(TrainingProgress("rows", 50, 100))
    assert progress.lines() == [Line("set.parquet", 0.5, 50, 5.0, left=10.0)]


def test_an_export_shows_its_rows_and_then_that_it_is_finishing(clock: Clock) -> None:
    progress = RowProgress("drivers", clock)
    progress.of_export(ExportProgress("drivers", 0, 100))
    clock.now += 10
    progress.of_export(ExportProgress("drivers", 50, 100))
    assert progress.lines() == [Line("drivers", 0.5, 50, 5.0, left=10.0)]
    progress.of_export(ExportProgress("drivers", 100, 100, finishing=True))
    assert progress.lines() == [Line("drivers", None, 100, status="finishing")]


# --- drawn --------------------------------------------------------------------------------------

LINES = [
    Line("3 of 12,000 files", 0.285, 1_234_567, 812_345.0, 34_500_000, None, 75.0),
    Line("data/date=2024-01-01/part-0001.parquet", 0.45, 600_000, None, 9, 76_100_000, 1e6),
    Line("温度/部分.parquet", None, 10**12, 5e9, 10**15, 10**15, status="finishing", seconds=1e5),
    Line("x\x1b[2Jy", 0.0, 0, 0.0, 0, 0, 0.0, "starting"),
]


def as_text(lines: Sequence[Line], columns: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=max(columns, 1_000)).print(drawn(lines, columns))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    for lines in (LINES, *([line] for line in LINES)):
        text = as_text(lines, columns)
        assert len(text) == len(lines)
        wide = [line + "x" * sum(one in "温度部分" for one in line) for line in text]
        assert max(map(len, wide)) <= columns
        assert "\x1b[2J" not in "".join(text)


def test_what_is_drawn_at_80_and_at_120_columns() -> None:
    whole, part, finishing, _ = as_text(LINES, 80)
    assert re.fullmatch(
        r"3 of 12,000 files +━*╸? +28% 1.23M rows  812k/s +34.5 MB +1m15s left", whole
    )
    assert re.match(r"  …\S*-0001.parquet ━*╸? +45%  600k rows", part)
    assert finishing.endswith(" finishing")
    whole, part, finishing, _ = as_text(LINES, 120)
    assert re.search(r" 28% +1,234,567 rows 812,345 rows/s +34.5 MB +1m15s left$", whole)
    assert re.search(r" 0.0/76.1 MB +11d13h left$", part)
    assert finishing.endswith(" finishing 1d03h")


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_has_bars_and_standard_output_the_table(
    run: Run, folder: Path, columns: int
) -> None:
    (folder / "data").mkdir()
    for number in range(3):
        rows = many_rows(60_000, first=60_000 * number)
        pq.write_table(rows, folder / "data" / f"{number}.parquet", row_group_size=20_000)
    run("init", "--from", "data", "--view", "drivers")
    run("apply")
    with Terminal("ingest", "drivers", columns=columns) as terminal:
        status, out = terminal.end()
    assert status == 0
    # A frame begins where the cursor goes back to the first column.
    frames = re.split(r"\r(?:\x1b\[\d?[A-Z])*", terminal.drawn)
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in frames]
    lines = [line for frame in plain for line in frame.split("\n")]
    assert max(map(len, lines)) <= columns
    assert any(re.match(r"[012] of 3 files .*%.* rows", line) for line in lines)
    assert any(re.match(r"  data/\d\.parquet .* rows", line) for line in lines)
    assert terminal.drawn.count("\x1b[?25l") == terminal.drawn.count("\x1b[?25h") == 1
    assert re.match(r"drivers: 180,000 rows of 3 files in .* rows/s\)", terminal.last_line)
    assert "\x1b" not in out
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        [f"data/{number}.parquet", str(number + 1), "60,000"] for number in range(3)
    ]


# --- amounts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("1", 1), ("500000", 500_000), ("1_000_000", 10**6), ("1,000,000", 10**6)),
        *(("1e6", 10**6), ("500k", 500_000), ("2.5M", 2_500_000), (" 7 ", 7)),
    ],
)
def test_counts(text: str, count: int) -> None:
    assert Count().convert(text, None, None) == count


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("256MB", 256 * 10**6), ("256MiB", 2**28), ("1GiB", 2**30), ("1.5 gb", 1_500_000_000)),
        *(("64M", 64 * 10**6), ("268435456", 2**28), ("2TiB", 2**41), ("1000000B", 10**6)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size
    assert Size().convert(size_in_full(size), None, None) == size


def test_amounts_are_short() -> None:
    counts = [0, 999, 999.6, 12_345, 99_960, 812_345, 999_500, 1.5e9, 3e13]
    assert [short(count) for count in counts] == [
        *("0", "999", "1.00k", "12.3k", "100k", "812k", "1.00M", "1.50G", "30.0T")
    ]
    assert short_size(34_500_000) == "34.5 MB"
    assert short_size(4_500_000, 149_000_000) == "4/149 MB"
    assert short_size(0, 0) == "0/0 B"
    seconds = [0, 59.4, 59.6, 65, 3_599.7, 7_500, 90_000]
    assert [duration(one) for one in seconds] == [
        *("0s", "59s", "1m00s", "1m05s", "1h00m", "2h05m", "1d01h")
    ]
