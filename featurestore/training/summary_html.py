"""A table at a glance as HTML, for notebooks: without scripts, and with nothing from elsewhere.

Colours are the page's own, or stand out on light and dark ones. Values and names are anybody's
words: all of them are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from featurestore.training.summary import (
    MAX_COLUMNS,
    Bar,
    ColumnSummary,
    Histogram,
    Summary,
    summarize,
)

PREVIEW_ROWS = 5

_WIDTH = 190
_HEIGHT = 34
_LINE = 15
_NAME_CHARACTERS = 60
_VALUE_CHARACTERS = 40
_LABEL_CHARACTERS = 19
_ITEMS = 4

_FEATURE = "#4a90d9"
_ENTITY = "#8a94a3"
_NOTICE = "#e08a00"
_NOTICE_BEHIND = "rgba(224,138,0,.16)"
_RULE = "1px solid rgba(128,128,128,.3)"
_CELL = (
    f"text-align:left;vertical-align:middle;white-space:nowrap;padding:3px 14px 3px 0;"
    f"border:none;border-bottom:{_RULE}"
)
_TABLE = "border-collapse:collapse;border:none;margin:6px 0;font-size:inherit;color:inherit"
_QUIET = "opacity:.7"


def training_html(
    table: pa.Table,
    features: Mapping[str, str],
    match_rate: Mapping[str, float],
    *,
    warnings: Iterable[str] = (),
    remarks: Iterable[str] = (),
    streamed: int | None = None,
) -> str:
    """A training set: its size, warnings, match rates, columns with their histograms, first rows.

    ``features`` maps columns to their views, and may be empty where that is not known. ``remarks``
    stand below the ``warnings``. Of a set whose rows were ``streamed``, so many, ``table`` has the
    columns alone.
    """
    summary = summarize(table, features)
    rows = summary.rows if streamed is None else streamed
    size = f"{rows:,} rows × {summary.width:,} columns"
    parts = [
        '<div style="font-size:13px;line-height:1.35;max-width:100%;overflow-x:auto">',
        f"<div><b>Training set</b>: {size}{'' if streamed is None else ', streamed'}</div>",
        *(_notice(f"<b>Warning</b>: {_escaped(text)}") for text in warnings),
        *(_notice(_escaped(text)) for text in remarks),
        *_matches(match_rate, features),
        *_columns(summary, known=bool(features), streamed=streamed is not None),
        *_preview(table),
        "</div>",
    ]
    return "".join(parts)


def _notice(inner: str) -> str:
    return (
        f'<div style="margin:4px 0;padding:3px 8px;border-left:4px solid {_NOTICE};'
        f'background:{_NOTICE_BEHIND}">{inner}</div>'
    )


# --- match rates --------------------------------------------------------------------------


def _matches(match_rate: Mapping[str, float], features: Mapping[str, str]) -> Iterator[str]:
    if not match_rate:
        return
    yield f'<table style="{_TABLE}"><tbody>'
    for view, rate in match_rate.items():
        count = sum(name == view for name in features.values())
        said = f" · {count} feature{'' if count == 1 else 's'}" if features else ""
        yield (
            f'<tr style="background:none"><td style="{_CELL}">{_name(view)}'
            f'<span style="{_QUIET}">{said}</span></td>'
            f'<td style="{_CELL}">{_meter(rate)}</td>'
            f'<td style="{_CELL}">{rate:.1%} of rows found a value</td></tr>'
        )
    yield "</tbody></table>"


def _meter(rate: float) -> str:
    filled = round(max(0.0, min(rate, 1.0)) * 100, 1)
    return (
        '<svg width="100" height="8" role="img" aria-hidden="true" style="display:block">'
        '<rect width="100" height="8" rx="2" fill="#808080" fill-opacity=".25"/>'
        f'<rect width="{filled}" height="8" rx="2" fill="{_FEATURE}"/></svg>'
    )


# --- columns ------------------------------------------------------------------------------


def _columns(summary: Summary, *, known: bool, streamed: bool) -> Iterator[str]:
    """``streamed``: nobody has looked at the rows, neither for nulls nor for values."""
    yield f'<table style="{_TABLE}"><thead>'
    heads = ["column", "type", "from", "nulls", "values"]
    yield _row(heads[:3] if streamed else heads, tag="th")
    yield "</thead><tbody>"
    for column in summary.columns:
        cells = [
            f"<b>{_name(column.name)}</b>",
            f'<span style="{_QUIET}">{_name(column.type)}</span>',
            _origin(column, known=known),
        ]
        if not streamed:
            cells += [_nulls(column.nulls, summary.rows), _drawn(column)]
        yield _row(cells)
    yield "</tbody></table>"
    if summary.width > len(summary.columns):
        rest = summary.width - len(summary.columns)
        yield f'<div style="{_QUIET}">… and {rest:,} more columns</div>'
    if summary.sampled < summary.rows:
        yield (
            f'<div style="{_QUIET}">Values are of {summary.sampled:,} rows, evenly spread; nulls '
            f"are of all {summary.rows:,}.</div>"
        )


def _row(cells: list[str], tag: str = "td") -> str:
    weight = f";font-weight:normal;{_QUIET}" if tag == "th" else ""
    inner = "".join(f'<{tag} style="{_CELL}{weight}">{cell}</{tag}>' for cell in cells)
    return f'<tr style="background:none">{inner}</tr>'


def _origin(column: ColumnSummary, *, known: bool) -> str:
    if column.view is not None:
        return _name(column.view)
    return f'<span style="{_QUIET}">entity rows</span>' if known else ""


def _nulls(nulls: int, rows: int) -> str:
    if not nulls:
        return f'<span style="{_QUIET}">none</span>'
    share = nulls / rows
    said = f"{share:.1%}"
    if said == "0.0%":
        said = "< 0.1%"
    elif said == "100.0%" and nulls < rows:
        said = "> 99.9%"
    return f'<span title="{nulls:,} of {rows:,}">{_escaped(said)}</span>'


def _drawn(column: ColumnSummary) -> str:
    histogram = column.histogram
    if histogram is None:
        return ""
    colour = _ENTITY if column.view is None else _FEATURE
    drawing = ""
    if histogram.bars:
        draw = _bins if histogram.ordered else _values
        drawing = draw(histogram, colour, f"values of {column.name}")
    ends = " … ".join(end for end in (histogram.low, histogram.high) if end)
    said = " · ".join(part for part in (ends, histogram.note) if part)
    return drawing + (
        f'<div style="font-size:11px;{_QUIET}">{_escaped(said)}</div>' if said else ""
    )


def _bins(histogram: Histogram, colour: str, title: str) -> str:
    """Upright bars, from the lowest value to the highest."""
    most = max(bar.count for bar in histogram.bars)
    wide = _WIDTH / len(histogram.bars)
    shown = min(wide, 24.0)  # one bar alone is no block
    gap = 1 if shown > 3 else 0
    bars = []
    for place, bar in enumerate(histogram.bars):
        if bar.count:
            high = max(1.0, bar.count / most * (_HEIGHT - 1))
            bars.append(
                f'<rect x="{place * wide:.1f}" y="{_HEIGHT - high:.1f}" width="{shown - gap:.1f}" '
                f'height="{high:.1f}" fill="{colour}">{_title(bar)}</rect>'
            )
    base = (
        f'<path d="M0 {_HEIGHT + 0.5}H{_WIDTH}" stroke="#808080" stroke-opacity=".5" fill="none"/>'
    )
    return _svg(title, _HEIGHT + 1, "".join(bars) + base)


def _values(histogram: Histogram, colour: str, title: str) -> str:
    """A line for each value, the most frequent first."""
    bars = list(histogram.bars)
    if histogram.others:
        bars.append(Bar("others", histogram.others))
    total = sum(bar.count for bar in bars)
    lines = []
    for place, bar in enumerate(bars):
        share = bar.count / total
        above = place * _LINE
        faint = ' font-style="italic"' if place >= len(histogram.bars) else ""
        label = _escaped(_short(bar.label, _LABEL_CHARACTERS)) or "(empty)"
        lines.append(
            f"<g>{_title(bar)}"
            f'<rect y="{above + 1}" width="{share * _WIDTH:.1f}" height="{_LINE - 2}" '
            f'fill="{colour}" fill-opacity=".45"/>'
            f'<text x="4" y="{above + 11}" font-size="11" fill="currentColor"{faint}>{label}</text>'
            f'<text x="{_WIDTH - 2}" y="{above + 11}" font-size="11" fill="currentColor" '
            f'text-anchor="end">{share:.0%}</text></g>'
        )
    return _svg(title, _LINE * len(bars), "".join(lines))


def _svg(title: str, height: int, inner: str) -> str:
    return (
        f'<svg width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{_name(title)}" style="display:block">{inner}</svg>'
    )


def _title(bar: Bar) -> str:
    return f"<title>{_escaped(_short(bar.label, _NAME_CHARACTERS))}: {bar.count:,}</title>"


# --- the first rows -----------------------------------------------------------------------


def _preview(table: pa.Table) -> Iterator[str]:
    first = table.slice(0, PREVIEW_ROWS)
    names = table.column_names[:MAX_COLUMNS]
    if not first.num_rows or not names:
        return
    yield f'<details open><summary style="cursor:pointer;{_QUIET}">first rows</summary>'
    yield f'<table style="{_TABLE}"><thead>'
    yield _row([_name(name) for name in names], tag="th")
    yield "</thead><tbody>"
    columns = first.columns[:MAX_COLUMNS]
    for place in range(first.num_rows):
        yield _row([_value(column[place]) for column in columns])
    yield "</tbody></table></details>"


def _value(scalar: pa.Scalar) -> str:
    if not scalar.is_valid:
        return f'<span style="{_QUIET}">null</span>'
    try:
        text = _plain(scalar)
    except (pa.ArrowException, ValueError, OverflowError):
        text = "?"  # a time beyond the calendar, or text that is none
    return _escaped(_short(text, _VALUE_CHARACTERS))


def _plain(scalar: pa.Scalar) -> str:
    kind = scalar.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = [
            _plain(item) if item.is_valid else "null" for item in scalar.values.slice(0, _ITEMS)
        ]
        return f"[{', '.join(items)}{', …' if len(scalar.values) > _ITEMS else ''}]"
    if pa.types.is_timestamp(kind):
        naive = scalar.cast(pa.timestamp(kind.unit)).cast(pa.string()).as_py()
        return f"{naive}{'' if kind.tz is None else ' UTC'}".replace(".000000", "")
    value: Any = scalar.as_py()
    if isinstance(value, bytes):
        value = value[:_VALUE_CHARACTERS]
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


# --- words of others ----------------------------------------------------------------------


def _name(text: str) -> str:
    return _escaped(_short(text, _NAME_CHARACTERS))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _escaped(text: str) -> str:
    """As text of HTML or of an attribute; what cannot be seen, or turns the text around, as a
    dot."""
    return html.escape("".join(c if c.isprintable() else "·" for c in text))
