"""Tables as text, and what must never reach a terminal."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from featurestore.cli.output import Table, cell, plural, printable, table_lines, turned


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1001, "1001"),
        (0.5, "0.5"),
        ("[bold]x[/]", "[bold]x[/]"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("Œuvre 温度", "Œuvre 温度"),
        (b"\x00\xff", '"AP8="'),
        ([1, None, "a"], '[1, null, "a"]'),
        ({"a": dt.date(2024, 1, 31)}, '{"a": "2024-01-31"}'),
        (dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC), "2024-01-31 12:00:00Z"),
        (dt.date(2024, 1, 31), "2024-01-31"),
        (Decimal("1E+2"), "100"),
    ],
)
def test_cells_are_one_line_of_safe_text(value: Any, text: str) -> None:
    assert cell(value) == text


def test_a_messages_line_breaks_stay_and_its_escapes_do_not() -> None:
    assert printable("a\nb\x1b[2J\r", keep="\n") == "a\nb\\x1b[2J\\r"


def test_plain_tables_are_aligned_and_never_cut() -> None:
    long = "x" * 300
    table = Table(("name", ">rows", "note"), [("温度", "1,000", long), ("ab", "7", "")])
    assert list(table_lines(table)) == [
        "name   rows  note",
        f"温度  1,000  {long}",
        "ab        7",
    ]


def test_only_columns_that_may_be_are_folded_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    table = Table(("name", "~file", ">rows"), [("drivers", "a" * 30 + "温" * 3, "1,000")])
    assert list(table_lines(table, 40)) == [
        "name     file                       rows",
        "drivers  " + "a" * 24 + "  1,000",
        "         aaaaaa温温温",
    ]
    assert max(map(len, table_lines(table, 10))) == len("drivers") + 16 + len("1,000") + 4


def test_columns_that_one_can_do_without_are_left_out_of_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    row = ("a" * 20, "file", "1,000", "2024", "undone")
    table = Table(("~name", "?kind", "?>rows", "?time", "state"), [row])
    assert list(table_lines(table)) == [
        "name                  kind   rows  time  state",
        "aaaaaaaaaaaaaaaaaaaa  file  1,000  2024  undone",
    ]
    assert list(table_lines(table, 47)) == list(table_lines(table))
    assert list(table_lines(table, 37)) == [
        "name               rows  time  state",
        "aaaaaaaaaaaaaaaa  1,000  2024  undone",
        "aaaa",
    ]
    assert next(table_lines(table, 36)) == "name                  time  state"
    assert next(table_lines(table, 10)) == "name              state"


def test_a_wide_table_can_be_turned_over() -> None:
    one = turned(Table(("driver_id", "trips"), [(1001, 7)]))
    assert list(table_lines(one)) == ["name       value", "driver_id  1001", "trips      7"]
    two = turned(Table(("driver_id", "trips"), [(1001, 7), (1002, None)]))
    assert list(table_lines(two)) == [
        "           1     2",
        "driver_id  1001  1002",
        "trips      7     null",
    ]


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_plural(count: int, text: str) -> None:
    assert plural(count, "row") == text
