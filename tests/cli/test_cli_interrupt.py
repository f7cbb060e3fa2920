"""Ctrl-C, and what a terminal shows: programs of their own, with signals and a pty."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cli_helpers import DAY, Run, command

SMALL, LARGE = 100_000, 1_000_000


def many_rows(count: int) -> pa.Table:
    numbers = pa.arange(0, count)
    seconds = pc.add(pa.scalar(int(DAY.timestamp())), numbers)
    return pa.table(
        {
            "driver_id": pc.bit_wise_and(numbers, 1023),
            "event_timestamp": seconds.cast(pa.timestamp("s", "UTC")),
            "x": numbers.cast(pa.float64()),
            "text": numbers.cast(pa.string()),
        }
    )


@pytest.fixture
def view(run: Run, folder: Path) -> Path:
    """A view `drivers` of the folder `data`, with one file in it."""
    (folder / "data").mkdir()
    pq.write_table(many_rows(SMALL), folder / "data" / "a.parquet")
    run("init", "--from", "data", "--view", "drivers")
    run("apply")
    return folder


def test_an_interrupted_ingest_says_what_was_kept(view: Path, run: Run) -> None:
    # It takes seconds, of which the signal needs one.
    pq.write_table(many_rows(LARGE), view / "data" / "b.parquet", row_group_size=65_536)
    with subprocess.Popen(
        command("ingest", "drivers"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "a.parquet (1 of 2): 100,000 rows" in first
    assert process.returncode == 130
    assert out == ""
    assert err == (
        "Interrupted: 1 of 2 files loaded and kept, nothing of the others. The same command goes "
        "on from there; featurestore loads drivers shows what is there.\n"
    )
    assert run("status", "--json").json["views"][0]["rows"] == SMALL
    assert len(run("loads", "--json").json) == 1


def test_ctrl_c_before_anything_was_done() -> None:
    """While a program reads its standard input, no loop runs yet."""
    with subprocess.Popen(
        command("push", "drivers"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while not _reads_stdin(process.pid):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert err.strip() == "Interrupted."


def _reads_stdin(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/syscall").read_text().startswith("0 0x0 ")
    except OSError:
        pytest.skip("this system does not say what a program waits for")


def test_a_terminal_has_a_bar_and_standard_output_the_table(view: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("ingest", "drivers", "data/a.parquet"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        screen = _read_all(ours)
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(timeout=60) == 0
    assert "\x1b[" in screen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert "data/a.parquet" in text
    assert re.search(r"\d+% +[\d,]+ rows +[\d,]+/s", text), text[-500:]
    assert f"drivers: {SMALL:,} rows of 1 file" in text.splitlines()[-1]
    assert "\x1b" not in out
    assert out.splitlines()[1].split()[:4] == ["data/a.parquet", "1", f"{SMALL:,}", f"{SMALL:,}"]


def _read_all(terminal: int) -> str:
    chunks = []
    try:
        while chunk := os.read(terminal, 65_536):
            chunks.append(chunk)
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(terminal)
    return b"".join(chunks).decode()
