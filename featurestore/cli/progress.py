"""How far long work is: a bar on a terminal, plain lines elsewhere, always on standard error.

:class:`RowProgress` takes the reports and works out shares, speeds and times; what draws them is
in ``bars.py``, and the lines are at the end of this module.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from featurestore.cli.amounts import duration
from featurestore.cli.output import plural, say

if TYPE_CHECKING:
    from featurestore.ingest.progress import Progress
    from featurestore.reports import ExportProgress
    from featurestore.training.report import TrainingProgress

SECONDS_BETWEEN_LINES = 10.0
"""A log wants a sign of life during a long file, and no more than that."""

RECENT_SECONDS = 10.0
"""What a speed is of: long enough for a figure that can be read, short enough to be of now."""

STEADY_SECONDS = 60.0
"""What the time left goes by: pauses between files and their ends are part of it."""

FINISHING = 0.25
"""Making the index, online and the commit, as a share of the time that the rows took: 0 to 0.5
when 2 million rows were loaded, first and again, into either database."""

_FIRST_SECONDS = 0.5
_SECONDS_BETWEEN_SAMPLES = 0.2


class Pace:
    """How fast rows come, by a few samples of their number."""

    def __init__(self, clock: Callable[[], float], rows: int) -> None:
        self._clock = clock
        self._samples = deque([(clock(), rows)])
        self._rows = rows

    def reach(self, rows: int) -> None:
        """Now there are ``rows``."""
        now, self._rows = self._clock(), rows
        if now - self._samples[-1][0] >= _SECONDS_BETWEEN_SAMPLES:
            self._samples.append((now, rows))
        while len(self._samples) > 2 and now - self._samples[1][0] > STEADY_SECONDS:
            self._samples.popleft()

    def rate(self, seconds: float = RECENT_SECONDS) -> float | None:
        """Rows per second, of so many last ``seconds``; None where it is too early to tell."""
        now = self._clock()
        before = [one for one in self._samples if now - one[0] >= seconds]
        at, rows = before[-1] if before else self._samples[0]
        passed = now - at
        return (self._rows - rows) / passed if passed >= _FIRST_SECONDS else None

    def seconds_for(self, rows: float) -> float | None:
        """How long ``rows`` more will take; None where nobody knows."""
        rate = self.rate(STEADY_SECONDS)
        return rows / rate if rate else None


@dataclass(frozen=True)
class Line:
    """What is shown of a file, or of all: ``share`` of 1.0 (None while nothing can be told of
    it), and ``status``, which stands where the time ``left`` would, for so many ``seconds``."""

    title: str
    share: float | None
    rows: int
    rate: float | None = None
    size: int = 0
    size_total: int | None = None
    left: float | None = None
    status: str = ""
    seconds: float | None = None


class Display(Protocol):
    """What shows the work; told after each report, of a file where it is of one."""

    def update(self, now: Progress | None) -> None: ...

    def close(self) -> None: ...


@dataclass
class _File:
    """A file under way, or the last one of its line."""

    now: Progress
    since: float  # when its phase began
    pace: Pace | None = None

    @property
    def rows_to_come(self) -> int:
        now = self.now
        return max((now.rows_total or 0) - now.rows_done, 0)

    @property
    def skipped(self) -> bool:
        return self.now.finished and not self.now.rows_done


@dataclass
class _Sums:
    """What the files that are done come to."""

    rows: int = 0  # of the files that were loaded
    rows_before: int = 0
    size: int = 0
    files: int = 0
    skipped: int = 0


@dataclass
class _History:
    """Rows of history that were read, of one view after the other."""

    pace: Pace | None = None
    before: int = 0  # of the views before
    view: int = 0

    def reach(self, rows: int) -> int:
        """Now there are ``rows`` of a view: fewer than before, and it is the next."""
        if rows < self.view:
            self.before += self.view
        self.view = rows
        return self.rows

    @property
    def rows(self) -> int:
        return self.before + self.view


class RowProgress:
    """Work on rows: an ingest of several files, a training set, or an export.

    Pass :meth:`of_files` as an ingest's ``progress``, :meth:`of_training` as a training set's,
    :meth:`of_export` as an export's, or call :meth:`of_rows` now and then. A thread of its own may
    draw: all is read and changed under a lock.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.files_total: int | None = None
        self._title = title
        self._clock = clock
        self._lock = threading.Lock()
        self._display: Display | None = None
        self._sums = _Sums()
        self._lines: list[_File] = []  # a line each; one that is done gives way to the next
        self._pace: Pace | None = None
        self._rows: Line | None = None
        self._history = _History()
        self._furthest = 0.0

    def __enter__(self) -> Self:
        if on_terminal():
            from featurestore.cli.bars import Bars

            self._display = Bars(self.lines)
        else:
            self._display = _Lines(self.lines, self._clock)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take down what is shown."""
        display, self._display = self._display, None
        if display is not None:
            display.close()

    # --- what comes in ------------------------------------------------------------------------

    def of_files(self, now: Progress) -> None:
        """What an ingest tells of one of its files."""
        with self._lock:
            self.files_total = now.files_total
            self._take(now)
        if self._display is not None:
            self._display.update(now)

    def of_training(self, now: TrainingProgress) -> None:
        """What a training set tells: rows of history that are read for it, then its own."""
        if now.stage != "history":
            self.of_rows(now.rows, now.total or 0)
            return
        with self._lock:
            pace = self._history.pace = self._history.pace or Pace(self._clock, 0)
            pace.reach(self._history.reach(now.rows))
            title = f"history of {now.view} for {self._title}"
            self._rows = Line(title, None, self._history.rows, pace.rate())
        if self._display is not None:
            self._display.update(None)

    def of_export(self, now: ExportProgress) -> None:
        """What an export tells: rows that are read for its files, then their end."""
        if not now.finishing:
            self.of_rows(now.rows, now.total)
            return
        with self._lock:
            self._rows = Line(self._title, None, now.rows, status="finishing")
        if self._display is not None:
            self._display.update(None)

    def of_rows(self, done: int, total: int) -> None:
        """So many rows of a work on rows alone."""
        with self._lock:
            pace = self._pace = self._pace or Pace(self._clock, 0)
            pace.reach(done)
            share = done / total if total else 1.0
            left = pace.seconds_for(total - done)
            self._rows = Line(self._title, share, done, pace.rate(), left=left)
        if self._display is not None:
            self._display.update(None)

    def _take(self, now: Progress) -> None:
        found = next((one for one in self._lines if _is_of(one, now)), None)
        if found is None:
            found = self._place(_File(now, self._clock()))
        elif found.now.phase != now.phase:
            found.since = self._clock()
        found.now = now
        if found.pace is None and now.phase == "reading":
            found.pace = Pace(self._clock, now.rows_done)
        elif found.pace is not None:
            found.pace.reach(now.rows_done)
        if now.finished:
            self._add_up(found)
        if found.pace is not None:
            rows = self._rows_of_this_run()
            self._pace = self._pace or Pace(self._clock, 0)
            self._pace.reach(rows)

    def _place(self, file: _File) -> _File:
        """A line for a file: that of one which is done, where there is such."""
        for number, one in enumerate(self._lines):
            if one.now.finished:
                self._lines[number] = file
                return file
        self._lines.append(file)
        return file

    def _add_up(self, file: _File) -> None:
        sums, now = self._sums, file.now
        sums.files += 1
        sums.skipped += file.skipped
        if not file.skipped:
            sums.rows += now.rows_done
            sums.rows_before += now.rows_before
            sums.size += now.bytes_done

    @property
    def _active(self) -> list[_File]:
        return [one for one in self._lines if not one.now.finished]

    def _rows_of_this_run(self) -> int:
        active = sum(one.now.rows_done - one.now.rows_before for one in self._active)
        return self._sums.rows - self._sums.rows_before + active

    # --- what is kept -------------------------------------------------------------------------

    @property
    def files_done(self) -> int:
        """The files that were loaded whole, or found to be there."""
        return self._sums.files

    @property
    def under_way(self) -> list[Progress]:
        """The latest of each file that is not done."""
        with self._lock:
            return [one.now for one in self._active]

    # --- what is shown ------------------------------------------------------------------------

    def lines(self) -> list[Line]:
        """One line for one file; for several one of all, then one for each under way."""
        with self._lock:
            if self._rows is not None:
                return [self._rows]
            if self.files_total is None:
                return [Line(self._title, None, 0, status="starting")]
            files = [self._line_of(one) for one in self._lines]
            return files if self.files_total == 1 else [self._line_of_all(), *files]

    def _line_of(self, file: _File) -> Line:
        now, pace = file.now, file.pace
        share = now.rows_done / now.rows_total if now.rows_total else 1.0
        line = Line(now.file, share, now.rows_done, size=now.bytes_done, size_total=now.bytes_total)
        match now.phase:
            case "starting":
                return replace(line, share=None, status="starting")
            case "finishing":
                seconds = self._clock() - file.since
                return replace(line, share=None, status="finishing", seconds=seconds)
            case "done":
                return replace(line, share=1.0, status="skipped" if file.skipped else "done")
        if now.rows_done == now.rows_before:  # the rows before are passed over
            return replace(line, status="going on" if now.rows_before else "")
        assert pace is not None
        to_come = file.rows_to_come + FINISHING * ((now.rows_total or 0) - now.rows_before)
        return replace(line, rate=pace.rate(), left=pace.seconds_for(to_come))

    def _line_of_all(self) -> Line:
        sums, active, total = self._sums, self._active, self.files_total or 1
        known = [one.now.rows_total or 0 for one in active]
        loaded = sums.files - sums.skipped
        # The sizes of those to come are not known: they are taken to be as those before.
        mean = (sums.rows + sum(known)) / max(loaded + len(known), 1)
        unseen = max(total - sums.files - len(active), 0) * mean
        done = sums.rows + sum(one.now.rows_done for one in active)
        to_come = sum(one.rows_to_come for one in active) + unseen
        if done + to_come:
            self._furthest = max(self._furthest, done / (done + to_come))
        title = f"{sums.files:,} of {plural(total, 'file')}"
        size = sums.size + sum(one.now.bytes_done for one in active)
        line = Line(title, self._furthest, done, size=size)
        if self._pace is None or not self._rows_of_this_run():
            return line
        if not to_come:
            return replace(line, status="finishing")
        return replace(line, rate=self._pace.rate(), left=self._pace.seconds_for(to_come))


def _is_of(file: _File, now: Progress) -> bool:
    return file.now.file_number == now.file_number


def on_terminal() -> bool:
    """Whether standard error can draw."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class _Lines:
    """A line for each of several files, and one now and then during a long one."""

    def __init__(self, lines: Callable[[], list[Line]], clock: Callable[[], float]) -> None:
        self._lines = lines
        self._clock = clock
        self._last = clock()
        self._long = False

    def update(self, now: Progress | None) -> None:
        if now is not None and now.finished and now.files_total > 1:
            self._say(f"{now.file} ({now.file_number} of {now.files_total}): {_done(now)}")
            self._long = False
        elif now is not None and now.phase == "finishing" and self._long:
            self._say(f"{now.file}: all {plural(now.rows_done, 'row')} are in, finishing")
        elif self._clock() - self._last >= SECONDS_BETWEEN_LINES and not (now and now.finished):
            self._say(_in_words(self._lines()[0]))
            self._long = True

    def _say(self, text: str) -> None:
        say(text)
        self._last = self._clock()

    def close(self) -> None:
        """Nothing to take down."""


def _done(now: Progress) -> str:
    return "skipped, loaded before" if not now.rows_done else plural(now.rows_done, "row")


def _in_words(line: Line) -> str:
    parts = [f"{plural(line.rows, 'row')} so far"]
    if line.share is not None:
        parts.append(f"{line.share:.0%}")
    if line.rate is not None:
        parts.append(f"{line.rate:,.0f} rows/s")
    if line.status:
        parts.append(line.status)
    elif line.left is not None:
        parts.append(f"{duration(line.left)} left")
    return f"{line.title}: {', '.join(parts)}"
