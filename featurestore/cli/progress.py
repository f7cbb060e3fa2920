"""How far long work is: a bar on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from featurestore.cli.output import plural, printable, say

if TYPE_CHECKING:
    from featurestore.ingest.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
"""A log wants a sign of life during a long file, and no more than that."""

TITLE_WIDTH = 28
"""What a bar leaves for a file's name on a terminal of 80 columns."""


@dataclass(frozen=True)
class State:
    """Where the work stands: ``share`` of 1.0, rows and bytes in all.

    ``done`` says what became of the present file, once it is done and others follow.
    """

    title: str
    share: float
    rows: int
    size: int
    done: str = ""


class Display(Protocol):
    """What shows it."""

    def update(self, state: State) -> None: ...

    def close(self) -> None: ...


class RowProgress:
    """Work on rows: an ingest of several files, or a training set.

    Pass :meth:`of_files` as an ingest's ``progress``, or call :meth:`of_rows` now and then.
    ``files_done`` of ``files_total`` is what was loaded whole, for the message after Ctrl-C.
    """

    def __init__(self, title: str) -> None:
        self.files_done = 0
        self.files_total: int | None = None
        self._title = title
        self._latest: dict[str, Progress] = {}
        self._display: Display | None = None

    def __enter__(self) -> Self:
        self._display = _Bar(self._title) if on_terminal() else _Lines()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None

    def of_files(self, now: Progress) -> None:
        """One batch of a file is done; files may run side by side."""
        self.files_done, self.files_total = now.files_done, now.files_total
        self._latest[now.file] = now
        files = max(now.files_total, len(self._latest))
        latest = self._latest.values()
        number = min(now.files_done + (not now.finished), files)
        self._show(
            State(
                title=now.file if files == 1 else f"{now.file} ({number} of {files})",
                # Each file counts as one: the sizes of those to come are not known.
                share=sum(map(_share, latest)) / files,
                rows=sum(one.rows_done for one in latest),
                size=sum(one.bytes_done for one in latest),
                done=_done(now) if now.finished and files > 1 else "",
            )
        )

    def of_rows(self, done: int, total: int) -> None:
        share = done / total if total else 1.0
        self._show(State(self._title, share, done, 0))

    def _show(self, state: State) -> None:
        if self._display is not None:
            self._display.update(state)


def _share(now: Progress) -> float:
    if now.finished:
        return 1.0
    if now.bytes_total:
        return min(now.bytes_done / now.bytes_total, 1.0)
    return min(now.rows_done / now.rows_total, 1.0) if now.rows_total else 0.0


def _done(now: Progress) -> str:
    skipped = not now.rows_done and now.rows_total
    return "skipped, loaded before" if skipped else plural(now.rows_done, "row")


def on_terminal() -> bool:
    """Whether standard error can draw."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class _Lines:
    """A line for each of several files, and one now and then during a long one."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def update(self, state: State) -> None:
        now = time.monotonic()
        if state.done:
            say(f"{state.title}: {state.done}")
        elif now - self._last >= SECONDS_BETWEEN_LINES:
            say(f"{state.title}: {plural(state.rows, 'row')} so far, {state.share:.0%}")
        else:
            return
        self._last = now

    def close(self) -> None:
        """Nothing to take down."""


class _Bar:
    """File, bar, share, rows, rows/s, bytes, time left; gone when the work is."""

    def __init__(self, title: str) -> None:
        # Here and not above: a sixth of a second that work without a terminal does not need.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rows]}", justify="right"),
            TextColumn("{task.fields[rate]}", style="cyan", justify="right"),
            TextColumn("{task.fields[size]}", style="green", justify="right"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        self._started = time.monotonic()
        self._task = self._bar.add_task(_short(title), total=1.0, rows="", rate="", size="")
        self._bar.start()

    def update(self, state: State) -> None:
        seconds = time.monotonic() - self._started
        self._bar.update(
            self._task,
            description=_short(state.title),
            completed=state.share,
            rows=plural(state.rows, "row"),
            rate=f"{state.rows / seconds:,.0f}/s" if seconds else "",
            size=_size(state.size) if state.size else "",
        )

    def close(self) -> None:
        self._bar.stop()


def _short(title: str) -> str:
    """The end of a long title: the folder is known, the file tells."""
    title = printable(title)
    return title if len(title) <= TITLE_WIDTH else "…" + title[1 - TITLE_WIDTH :]


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
