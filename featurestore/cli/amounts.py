"""Counts, sizes, speeds and times as people write them on a command line and read them there."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Any

import click

from featurestore.cli.values import read_timestamp

_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6}
_UNITS = {
    **{"": 1, "b": 1},
    **{f"{one}{b}": 1000**n for n, one in enumerate("kmgt", 1) for b in ("", "b")},
    **{f"{one}ib": 1024**n for n, one in enumerate("kmgt", 1)},
}
_AMOUNT = re.compile(
    r"((?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)(?:\.\d+)?(?:e\d{1,2})?) ?([a-z]*)", re.IGNORECASE
)

SMALLEST_SIZE = 1_000_000
"""Bytes that a size of memory has at least: less is a unit that was forgotten."""


def _read(text: str, units: dict[str, int]) -> int | None:
    """``1_000_000``, ``1,000,000``, ``1e6`` or ``1M`` as a number; None where it is none."""
    found = _AMOUNT.fullmatch(text.strip())
    factor = units.get(found[2].lower()) if found else None
    if found is None or factor is None:
        return None
    amount = Decimal(re.sub("[_,]", "", found[1])) * factor
    return int(amount) if amount == int(amount) and amount < 2**63 else None


class Count(click.ParamType[int]):
    """A whole number of 1 or more, in thousands or millions too."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        count = _read(value, _THOUSANDS)
        if not count:
            self.fail(f"{value!r} is no count such as 500000, 500_000 or 500k.", param, ctx)
        return count


class Size(click.ParamType[int]):
    """An amount of memory, with its unit."""

    name = "size"

    def __init__(self, least: int = SMALLEST_SIZE) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        size = _read(value, _UNITS)
        if size is None:
            self.fail(f"{value!r} is no size such as 256MB or 1GiB.", param, ctx)
        if size < SMALLEST_SIZE:
            self.fail(f"{value!r} is less than 1MB. A size has a unit: 256MB, 1GiB.", param, ctx)
        if size < self.least:
            self.fail(f"{value!r} is less than {size_in_full(self.least)}.", param, ctx)
        return size


class Moment(click.ParamType[dt.datetime]):
    """A time on the command line."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        try:
            return read_timestamp(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class State(click.ParamType["dt.datetime | str"]):
    """A moment of the store: a time, or what ``featurestore mark`` printed."""

    name = "state"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime | str:
        if isinstance(value, dt.datetime):
            return value
        if "@" not in value:
            return Moment().convert(value, param, ctx)
        # Here and not above: SQLAlchemy takes most of a second to import.
        from featurestore.errors import DefinitionError
        from featurestore.storage.marks import Mark

        try:
            return str(Mark.parse(value))
        except DefinitionError:
            self.fail(f"{value!r} is no mark as featurestore mark prints one.", param, ctx)


# --- as they are read -----------------------------------------------------------------------


def size_in_full(size: int) -> str:
    """A size as it may be given: ``256MiB``, ``1500000B``."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return f"{size}B"


def short(count: float) -> str:
    """At most five characters: ``999``, ``12.3k``, ``1.23M``, ``812k``."""
    number, unit = _scaled(count)
    return f"{number}{unit}"


def short_size(size: int, total: int | None = None) -> str:
    """``34.5 MB``; of a total, ``34.5/76.1 MB``, both in the unit of the total."""
    number, unit = _scaled(size if total is None else total)
    if total is None:
        return f"{number} {_of_bytes(unit)}"
    factor = 1000 ** ("kMGT".find(unit) + 1 if unit else 0)
    digits = len(number.partition(".")[2])
    return f"{size / factor:.{digits}f}/{number} {_of_bytes(unit)}"


def _of_bytes(unit: str) -> str:
    return f"{unit}B" if unit else "B"


def _scaled(count: float) -> tuple[str, str]:
    """Three digits and ``k``, ``M``, ``G`` or ``T`` for what they are counted in."""
    unit = ""
    for larger in "kMGT":
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    if not unit:
        return f"{count:.0f}", ""
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f}", unit


def duration(seconds: float) -> str:
    """At most six characters: ``45s``, ``1m05s``, ``2h05m``, ``3d04h``."""
    whole = round(seconds)
    for size, unit, smaller, part in ((86_400, "d", "h", 3_600), (3_600, "h", "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02}{smaller}"
    return f"{whole // 60}m{whole % 60:02}s" if whole >= 60 else f"{whole}s"
