"""What there is to know of a table at a glance: nulls, and how the values of each column lie.

Nulls are counted exactly. How values lie is taken from at most ``SAMPLE_ROWS`` rows, evenly spread
over the table, so that a glance at 100 million rows costs about as much as one at 200,000.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

SAMPLE_ROWS = 200_000
BINS = 24
VALUES = 5
"""The most frequent values that are told of text."""

MAX_COLUMNS = 200
"""Columns that are looked at; of a wider table, the first."""

_TEXT_CHARACTERS = 60
"""Texts that begin with the same characters count as the same."""


@dataclass(frozen=True)
class Bar:
    """``count`` sampled rows that have what ``label`` says."""

    label: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """How the values of a column lie.

    With ``ordered`` the bars are bins from ``low`` to ``high``; else they are its most frequent
    values, and ``others`` counts the rest. ``note`` says what of: lengths, say.
    """

    bars: tuple[Bar, ...]
    ordered: bool
    low: str = ""
    high: str = ""
    note: str = ""
    others: int = 0


@dataclass(frozen=True)
class ColumnSummary:
    """One column. ``view`` is the view that it is a feature of; None for an entity column."""

    name: str
    type: str
    view: str | None
    nulls: int
    histogram: Histogram | None


@dataclass(frozen=True)
class Summary:
    """A table: its first columns, and of how many rows the histograms are."""

    rows: int
    width: int
    columns: tuple[ColumnSummary, ...]
    sampled: int


def leak_remarks(leaked: Mapping[str, int], rows: int, *, left_out: bool) -> list[str]:
    """What there is to know of values that were created after the time of their entity row:
    ``leaked`` counts them by view, of so many ``rows``; with ``known_by`` they are ``left_out``."""
    remarks = []
    for view, count in leaked.items():
        if count and left_out:
            remarks.append(
                f"{view}: {count:,} of {rows:,} rows would rest on values created after their "
                f"time, which known_by leaves out"
            )
        elif count:
            remarks.append(
                f"{view}: {count:,} of {rows:,} rows rest on values created after their time; "
                f'known_by="created_timestamp" leaves such values out'
            )
    return remarks


def summarize(table: pa.Table, features: Mapping[str, str]) -> Summary:
    """Look at ``table``; ``features`` maps those of its columns that are features to their view."""
    rows = table.num_rows
    step = -(-rows // SAMPLE_ROWS)
    places = pa.array(range(0, rows, step)) if step > 1 else None
    columns = []
    for field, column in zip(table.schema, table.columns[:MAX_COLUMNS], strict=False):
        view = features.get(field.name)
        histogram = _histogram(column, places)
        columns.append(
            ColumnSummary(field.name, str(field.type), view, column.null_count, histogram)
        )
    sampled = rows if places is None else len(places)
    return Summary(rows, table.num_columns, tuple(columns), sampled)


def _histogram(column: pa.ChunkedArray, places: pa.Array | None) -> Histogram | None:
    """How the values in these places lie; None where there are none, or nothing to say of their
    type."""
    try:
        column, unit = _measured(column)  # before a sample copies what is large
        if places is not None:
            column = column.take(places)
        if pa.types.is_dictionary(column.type):
            column, unit = _measured(column.cast(column.type.value_type))
        column = column.drop_null()
        return _of(column, unit) if len(column) else None
    except (pa.ArrowException, ValueError, OverflowError):
        return None  # what Arrow cannot compare, or is no text after all, is only not drawn


def _measured(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, str]:
    """Of bytes and lists their lengths, and what of; other values as they are."""
    kind, types = column.type, pa.types
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pc.binary_length(column), "bytes"
    if types.is_list(kind) or types.is_large_list(kind):
        return pc.list_value_length(column), "items"
    return column, ""


def _of(column: pa.ChunkedArray, unit: str) -> Histogram | None:
    kind, types = column.type, pa.types
    if types.is_boolean(kind):
        true = pc.sum(column).as_py()
        bars = (Bar("false", len(column) - true), Bar("true", true))
        return Histogram(bars, ordered=False)
    if types.is_integer(kind):
        return _integers(column, _number, unit)
    if types.is_floating(kind) or types.is_decimal(kind):
        return _floats(column.cast(pa.float64()))
    if types.is_temporal(kind) and not types.is_interval(kind):
        wide = pa.int32() if kind.bit_width == 32 else pa.int64()
        return _integers(column.cast(wide), lambda value: _moment(value, wide, kind))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _texts(column.cast(pa.large_string()))
    return None


# --- numbers ------------------------------------------------------------------------------


def _floats(column: pa.ChunkedArray) -> Histogram | None:
    finite = column.filter(pc.is_finite(column))
    nans = pc.sum(pc.is_nan(column)).as_py()
    infinite = len(column) - len(finite) - nans
    named = {"NaN": nans, "infinite": infinite}
    note = ", ".join(f"{count:,} {what}" for what, count in named.items() if count)
    if not len(finite):
        return Histogram((), ordered=True, note=note)
    low, high = (pc.min_max(finite)[end].as_py() for end in ("min", "max"))
    # The difference of two floats may be larger than any float.
    quarter = pc.multiply(finite, 0.25)
    span = high * 0.25 - low * 0.25
    if span <= 0:
        return Histogram((Bar(_number(low), len(finite)),), True, _number(low), "", note)
    shares = pc.divide(pc.subtract(quarter, low * 0.25), span)

    def edge(share: float) -> str:
        return _number((low * 0.25 + span * share) * 4)

    edges = [_number(low), *(edge(place / BINS) for place in range(1, BINS)), _number(high)]
    counts = _counted(pc.multiply(shares, float(BINS)), BINS)
    bars = tuple(
        Bar(f"{edges[place]} – {edges[place + 1]}", count) for place, count in enumerate(counts)
    )
    return Histogram(bars, True, edges[0], edges[-1], note)


def _integers(column: pa.ChunkedArray, text: Callable[[int], str], note: str = "") -> Histogram:
    """Bins that are equally many whole numbers wide, one where the values are few: of others some
    would have room for a value more, and look fuller."""
    if column.type != pa.uint64():
        column = column.cast(pa.int64())
    low, high = (pc.min_max(column)[end].as_py() for end in ("min", "max"))
    width = _width(high - low + 1)
    bins = (high - low) // width + 1
    if high - low < 2**53:
        above = pc.subtract(column, pa.scalar(low, column.type)).cast(pa.float64())
    else:  # the difference may be larger than any integer: as near as floats come
        above = pc.subtract(column.cast(pa.float64(), safe=False), float(low))
    bars = []
    for place, count in enumerate(_counted(pc.divide(above, float(width)), bins)):
        first = low + place * width
        last = min(first + width - 1, high)
        bars.append(Bar(text(first) if first == last else f"{text(first)} – {text(last)}", count))
    return Histogram(tuple(bars), True, text(low), text(high) if high > low else "", note)


def _width(count: int) -> int:
    """How many of so many whole numbers go in a bin, so that the last is about as full as others,
    in as many bins as may be."""
    widths = [-(-count // bins) for bins in range(BINS, BINS // 2, -1)]
    return min(widths, key=lambda width: round(-count % width / width, 1))


def _counted(places: pa.ChunkedArray, bins: int) -> list[int]:
    """How many of ``places`` are in each of the bins 0, 1 …; the last takes its upper end in."""
    whole = pc.min_element_wise(pc.floor(places), float(bins - 1)).cast(pa.int64())
    counts = [0] * bins
    for found in pc.value_counts(whole).to_pylist():
        counts[found["values"]] = found["counts"]
    return counts


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    if value == int(value) and abs(value) < 10**15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.4g}"


def _moment(value: int, wide: pa.DataType, kind: pa.DataType) -> str:
    """A time as text, to the second; of a time with a zone, in UTC."""
    if pa.types.is_timestamp(kind):
        kind = pa.timestamp(kind.unit)
    try:
        text = str(pa.scalar(value, wide).cast(kind).cast(pa.string()).as_py())
    except (pa.ArrowException, ValueError):
        return f"{value:,}"  # a duration, or a time beyond the calendar
    if not pa.types.is_timestamp(kind):
        return text
    return text.partition(".")[0].removesuffix(" 00:00:00")


# --- texts ----------------------------------------------------------------------------------


def _texts(column: pa.ChunkedArray) -> Histogram | None:
    begun = pc.utf8_slice_codeunits(column, 0, _TEXT_CHARACTERS)
    counts = pc.value_counts(begun)
    if len(counts) == len(column) > VALUES:  # a list of them would say nothing
        return _integers(pc.utf8_length(column), _number, "characters, all different")
    order = pc.select_k_unstable(
        pa.table({"count": counts.field("counts"), "text": counts.field("values")}),
        VALUES,
        [("count", "descending"), ("text", "ascending")],
    )
    bars = tuple(Bar(str(one["values"]), one["counts"]) for one in counts.take(order).to_pylist())
    others = len(column) - sum(bar.count for bar in bars)
    return Histogram(bars, ordered=False, others=others, note=f"{len(counts):,} different")
