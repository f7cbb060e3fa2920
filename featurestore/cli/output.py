"""What people and programs read: tables or JSON on standard output, all else on standard error.

Tables are drawn for a terminal where there is one. Elsewhere they are plain columns as wide as
they need to be, so that ``grep`` and ``awk`` find whole values.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Any, TextIO, TypeVar

import click

from featurestore.cli import values

T = TypeVar("T")

NULL = "null"
GAP = 2
FOLDED_WIDTH = 16
"""What a folded column keeps at least."""


@dataclass
class Table:
    """Rows under ``heads``. A head that begins with ``>`` aligns its column to the right; one
    with ``~`` may be folded where a terminal is too narrow. Where that is not enough, columns
    whose heads begin with ``?`` are left out there, from the left."""

    heads: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        return [head.lstrip("?>~") for head in self.heads]


@dataclass(frozen=True)
class Faint:
    """A cell that stands in for a value and is not one: drawn dim on a terminal."""

    text: str


def cell(value: object) -> str:
    """One value as a person reads it, without line breaks and control characters."""
    match value:
        case Faint():
            return value.text
        case None:
            return NULL
        case str():
            return printable(value)
        case bool():
            return str(value).lower()
        case dt.datetime():
            return values.iso(value, " ")
        case decimal.Decimal():
            return format(value, "f")
        case bytes() | list() | tuple() | dict():
            return printable(json.dumps(values.to_json(value), ensure_ascii=False))
    return printable(str(value))


def printable(text: str, keep: str = "") -> str:
    """``text`` with everything escaped that could steer a terminal, except ``keep``."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else repr(one)[1:-1] for one in text)


# --- standard output ----------------------------------------------------------------------


def prepare_streams() -> None:
    """File names may hold bytes that are no text: print them escaped rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_json(document: Any) -> None:
    """``document`` on standard output; times, decimals and bytes as :mod:`values` says."""
    print(_as_json(document))


def _as_json(document: Any) -> str:
    # An ASCII terminal would get é as \xe9, which is no JSON.
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    return json.dumps(values.to_json(document), indent=2, ensure_ascii=ascii_only)


class JsonList:
    """A list on standard output, part by part: the same text as of :func:`print_json`."""

    def __init__(self) -> None:
        self._begun = False

    def add(self, items: Iterable[Any]) -> None:
        for item in items:
            sys.stdout.write(",\n" if self._begun else "[\n")
            sys.stdout.write(textwrap.indent(_as_json(item), "  "))
            self._begun = True

    def end(self) -> None:
        print("\n]" if self._begun else "[]")


def room() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def needed(table: Table) -> int:
    """Columns that a table takes where nothing of it is folded or left out."""
    return sum(_widths(table)) + GAP * (len(table.heads) - 1)


def print_table(table: Table, *, heads: bool = True) -> None:
    """``table``, unless it is empty; drawn for the terminal where there is one."""
    if not table.rows:
        return
    lines = islice(table_lines(table, room()), 0 if heads else 1, None)
    sys.stdout.writelines(f"{line}\n" for line in lines)


def print_wide(table: Table) -> None:
    """A table of few rows and many columns: on a terminal too narrow for it, turned over."""
    columns = room()
    if columns is not None and table.rows and needed(table) > columns:
        table = turned(table)
    print_table(table)


def turned(table: Table) -> Table:
    """Rows as columns."""
    heads = ["", *(str(number) for number in range(1, len(table.rows) + 1))]
    if len(table.rows) == 1:
        heads = ["name", "~value"]
    columns = zip(table.titles, *table.rows, strict=True)
    return Table(heads, [list(column) for column in columns])


def table_lines(table: Table, room: int | None = None) -> Iterator[str]:
    """Columns two spaces apart; with ``room``, folded to that width and with emphasis."""
    if room is not None:
        table = _fewer_columns(table, room)
    widths = _widths(table)
    if room is not None:
        _narrow(widths, table.heads, room)
    yield _line(table.titles, widths, table.heads, "bold" if room else "")
    for row in table.rows:
        faint = [value is None or isinstance(value, Faint) for value in row]
        folded = [list(_folded(cell(one), size)) for one, size in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            styles = ["dim" if room and one else "" for one in faint]
            yield _line(parts, widths, table.heads, *styles)


def _fewer_columns(table: Table, room: int) -> Table:
    """The table without the optional columns that keep it from being folded to ``room``."""
    while True:
        widths = _widths(table)
        least = sum(
            min(size, FOLDED_WIDTH) if head.startswith("~") else size
            for size, head in zip(widths, table.heads, strict=True)
        )
        optional = [n for n, head in enumerate(table.heads) if head.startswith("?")]
        if least + GAP * (len(widths) - 1) <= room or not optional:
            return table
        table = Table(
            _without(table.heads, optional[0]), [_without(row, optional[0]) for row in table.rows]
        )


def _without(cells: Sequence[T], position: int) -> list[T]:
    return [*cells[:position], *cells[position + 1 :]]


def _widths(table: Table) -> list[int]:
    cells = [[cell(value) for value in row] for row in table.rows]
    return [max(map(width, column)) for column in zip(table.titles, *cells, strict=True)]


def _narrow(widths: list[int], heads: Sequence[str], room: int) -> None:
    """Take what is too wide from the widest columns that may be folded."""
    excess = sum(widths) + GAP * (len(widths) - 1) - room
    foldable = [n for n, head in enumerate(heads) if head.startswith("~")]
    while excess > 0 and foldable:
        widest = max(foldable, key=widths.__getitem__)
        if widths[widest] <= FOLDED_WIDTH:
            return  # the terminal wraps the lines
        widths[widest] -= 1
        excess -= 1


def _folded(text: str, size: int) -> Iterator[str]:
    """``text`` in pieces of ``size`` columns."""
    piece = ""
    for one in text if width(text) > size else ():
        if width(piece + one) > size:
            yield piece
            piece = ""
        piece += one
    yield piece or text


def _line(texts: Sequence[str], widths: Sequence[int], heads: Sequence[str], *styles: str) -> str:
    parts = []
    for number, (text, size, head) in enumerate(zip(texts, widths, heads, strict=True)):
        space = " " * (size - width(text))
        style = styles[min(number, len(styles) - 1)]
        styled_text = styled(text, sys.stdout, **{style: True}) if style else text
        right = head.startswith((">", "?>"))
        parts.append(space + styled_text if right else styled_text + space)
    return (" " * GAP).join(parts).rstrip()


def width(text: str) -> int:
    """Columns that ``text`` takes: two for East Asian characters, none for combining ones."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) > 0 for one in text)


# --- standard error -----------------------------------------------------------------------


def say(text: str) -> None:
    """A message for the person at the keyboard."""
    _print_error(text)


def warn(texts: Iterable[str]) -> None:
    for text in texts:
        _print_error(text, label="warning", colour="yellow")


def fail(text: str) -> None:
    _print_error(text, label="error", colour="red")


def styled(text: str, stream: TextIO, **style: Any) -> str:
    """``text`` in colour where ``stream`` is a terminal and the user has not said NO_COLOR."""
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        return click.style(text, **style)
    return text


def _print_error(text: str, label: str = "", colour: str = "") -> None:
    if label:
        text = f"{label}: {text}"
    text = _wrapped(printable(text, keep="\n"))
    if label:
        head = f"{label}:"
        text = styled(head, sys.stderr, fg=colour, bold=True) + text.removeprefix(head)
    print(text, file=sys.stderr, flush=True)


def _wrapped(text: str) -> str:
    """On a terminal, lines that end between words; elsewhere as they are."""
    if not sys.stderr.isatty():
        return text
    columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return "\n".join(
        textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
        if len(line) > columns
        else line
        for line in text.split("\n")
    )


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
