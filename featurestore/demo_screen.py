"""What the demo looks like: chapters with their times, tables without lines."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from featurestore.online.vectors import Status


class Screen:
    """Numbered chapters, each with a spinner while it runs (on a terminal) and its time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.chapters = 0

    @contextmanager
    def chapter(self, title: str) -> Iterator[list[Any]]:
        """Prints the title at once, and what the body appended when it is done."""
        self.chapters += 1
        self.console.print(f"\n[bold cyan]{self.chapters}[/]  [bold]{title}[/]", highlight=False)
        started = time.perf_counter()
        notes: list[Any] = []
        with self.console.status("[dim]working[/]"):
            yield notes
        notes.append(Text(f"{time.perf_counter() - started:.1f} s", "dim"))
        for note in notes:
            shown = Text(note) if isinstance(note, str) else note
            self.console.print(Padding(shown, (0, 0, 0, 3), expand=False))

    def farewell(self, seconds: float, commands: tuple[str, ...]) -> None:
        """Says how long it took, and what to type next."""
        hint = " (your password for ***)" if any("***" in line for line in commands) else ""
        self.console.print(
            f"\n[bold green]Done in {seconds:.0f} s.[/] To go on from here{hint}:\n",
            highlight=False,
        )
        for command in commands:
            # Never wrapped: they are there to be copied.
            self.console.print(Text(f"   {command}"), soft_wrap=True)
        self.console.print()


def plain_table(*columns: str) -> Table:
    """A table without lines; a column whose name begins with > is aligned to the right."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        result.add_column(column.lstrip(">"), justify="right" if column[:1] == ">" else "left")
    return result


def like_a_diff(plan: str) -> Table:
    """A plan's text with its marks in colour."""
    styles = {"+": "green", "-": "red", "~": "yellow"}
    lines = plain_table("", "")
    lines.show_header = False
    for line in plan.splitlines():
        what, _, how = line.partition(": ")
        lines.add_row(Text(what, styles.get(line.lstrip()[:1], "dim")), how)
    return lines


def cell(value: Any, status: Status) -> str | Text:
    """A feature's value, or where it has none why."""
    if status is not Status.PRESENT:
        return Text(status, "yellow")
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, dt.datetime) else f"{value:.4g}"


def duration(age: Any) -> str:
    """A timedelta in minutes or hours."""
    minutes = age.total_seconds() / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
