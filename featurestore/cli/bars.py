"""Bars on a terminal: a line for a file, or one for all files and one for each under way.

No line is ever wider than the terminal, and columns keep their places while figures change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from featurestore.cli.amounts import duration, short, short_size
from featurestore.cli.output import plural, printable, width

if TYPE_CHECKING:
    from featurestore.cli.progress import Line
    from featurestore.ingest.progress import Progress

FRAMES_PER_SECOND = 8

WIDE, NARROW = 110, 70
"""Columns of a terminal from which figures are written out, and below which most are left out."""

SHORTEST_BAR = 10
LONGEST_TITLE = 30


class Bars:
    """Draws ``lines()`` again and again, until it is closed; nothing stays on the screen."""

    def __init__(self, lines: Callable[[], Sequence[Line]]) -> None:
        console = Console(stderr=True)
        self._live = Live(
            console=console,
            get_renderable=lambda: drawn(lines(), console.width - 1),
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
        )
        self._live.start(refresh=True)

    def update(self, now: Progress | None) -> None:
        """The next frame shows it."""

    def close(self) -> None:
        self._live.stop()


def drawn(lines: Sequence[Line], columns: int) -> RenderableType:
    """The lines, no wider than ``columns``: title, bar, share, rows, rows/s, bytes, time left."""
    wide = columns >= WIDE
    figures = _WIDTHS_OF_WIDE if wide else _WIDTHS_OF_NARROW if columns < NARROW else _WIDTHS
    beside = sum(figures.values()) + len(figures) + 2
    room = min(max(columns - beside - SHORTEST_BAR, SHORTEST_BAR), LONGEST_TITLE)
    titles = [_end_of(line.title, room, indent=number > 0) for number, line in enumerate(lines)]
    longest = max(map(width, titles))
    bar = max(columns - beside - longest, 1)
    table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    for size in (longest, bar):
        table.add_column(width=size, no_wrap=True)
    for size in figures.values():
        table.add_column(width=size, no_wrap=True, justify="right")
    for title, line in zip(titles, lines, strict=True):
        cells = _cells(line, wide=wide)
        table.add_row(Text(title), _bar(line, bar), *(cells[name] for name in figures))
    return table


_WIDTHS = {"share": 4, "rows": 10, "rate": 7, "size": 12, "left": 11}
_WIDTHS_OF_WIDE = {"share": 4, "rows": 16, "rate": 14, "size": 12, "left": 16}
_WIDTHS_OF_NARROW = {"share": 4, "rows": 10, "left": 11}


def _bar(line: Line, columns: int) -> ProgressBar:
    if line.share is None:
        return ProgressBar(pulse=True, width=columns)
    return ProgressBar(total=1.0, completed=line.share, width=columns)


def _cells(line: Line, *, wide: bool) -> dict[str, Text]:
    rows = plural(line.rows, "row") if wide and line.rows < 10**9 else f"{short(line.rows)} rows"
    rate = ""
    if line.rate is not None:
        exact = wide and line.rate < 999_999
        rate = f"{line.rate:,.0f}" if exact else short(line.rate)
        rate += " rows/s" if wide else "/s"
    size = short_size(line.size, line.size_total) if line.size else ""
    left = "" if line.left is None else f"{duration(line.left)} left"
    if line.status:
        left = line.status
        if wide and line.seconds is not None:
            left += f" {duration(line.seconds)}"
    return {
        "share": Text("" if line.share is None else f"{line.share:.0%}"),
        "rows": Text(rows),
        "rate": Text(rate, style="cyan"),
        "size": Text(size, style="green"),
        "left": Text(left),
    }


def _end_of(title: str, room: int, *, indent: bool) -> str:
    """A title, of a long one its end: the folder is known, the file tells."""
    title = printable(title)
    space = "  " if indent else ""
    room -= len(space)
    if width(title) <= room:
        return space + title
    while width(title) >= room:
        title = title[1:]
    return f"{space}…{title}"
