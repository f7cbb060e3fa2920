"""A training set at a glance: what is counted, and the HTML that a notebook shows."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore as fs
from featurestore.training import summary
from featurestore.training.summary import BINS, Histogram, summarize

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)


def histogram(values: list[Any], kind: pa.DataType | None = None) -> Histogram | None:
    (column,) = summarize(pa.table({"x": pa.array(values, kind)}), {}).columns
    return column.histogram


def counts(values: list[Any], kind: pa.DataType | None = None) -> list[int]:
    found = histogram(values, kind)
    assert found is not None
    return [bar.count for bar in found.bars]


def bars(values: list[Any], kind: pa.DataType | None = None) -> dict[str, int]:
    found = histogram(values, kind)
    assert found is not None
    return {bar.label: bar.count for bar in found.bars}


def ends(values: list[Any], kind: pa.DataType | None = None) -> tuple[str, str]:
    found = histogram(values, kind)
    assert found is not None
    assert found.ordered
    return found.low, found.high


# --- what is counted ----------------------------------------------------------------------


def test_columns_have_their_types_views_and_nulls():
    table = pa.table({"driver_id": [1, 2, 3], "rate": [0.5, None, None]})
    found = summarize(table, {"rate": "stats"})
    assert (found.rows, found.width, found.sampled) == (3, 2, 3)
    assert [(c.name, c.type, c.view, c.nulls) for c in found.columns] == [
        ("driver_id", "int64", None, 0),
        ("rate", "double", "stats", 2),
    ]


def test_floats_are_in_bins_of_equal_width():
    values = [n / BINS for n in range(BINS)] + [1.0]
    assert counts(values) == [1] * (BINS - 1) + [2]  # the last has its upper end
    assert ends(values) == ("0", "1")


def test_few_whole_numbers_have_a_bar_each():
    assert bars([3, 5, 5, None, 3, 5]) == {"3": 2, "4": 0, "5": 3}
    assert bars([255, 250], pa.uint8()) == {**dict.fromkeys(map(str, range(251, 255)), 0), "250": 1,
                                            "255": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([-(2**63), 2**63 - 1, 0], pa.int64()),
        ([0, 2**64 - 1, 2**63], pa.uint64()),
        ([-128, 127, 0], pa.int8()),
        ([-1.7e308, 1.7e308, 0.0], pa.float64()),
        ([0.0, 5e-324, 5e-324], pa.float64()),
        ([decimal.Decimal("-9e37"), decimal.Decimal("9e37"), None], pa.decimal128(38, 0)),
        ([dt.date.min, dt.date.max, dt.date(2024, 1, 1)], pa.date32()),
        ([dt.datetime.min, dt.datetime.max], pa.timestamp("us", "UTC")),
        ([-(2**63), 2**63 - 1], pa.timestamp("ns")),
        ([-(2**63), 2**63 - 1], pa.duration("s")),
    ],
)
def test_the_ends_of_what_a_type_can_hold(values: list[Any], kind: pa.DataType):
    assert sum(counts(values, kind)) == sum(value is not None for value in values)


def test_no_bin_of_whole_numbers_has_room_for_more_of_them_than_another():
    assert counts(list(range(40))) == [2] * 20
    assert bars(list(range(60)))["57 – 59"] == 3
    assert counts(list(range(300))) == [15] * 20
    assert set(counts(list(range(10_001)))[:-1]) == {417}


def test_whole_numbers_beyond_the_exact_floats_stay_apart():
    top = 2**63 - 1
    assert counts([top, top - 2]) == [1, 0, 1]


def test_a_constant_column_is_one_bar():
    assert bars([7] * 3) == {"7": 3}
    assert bars([0.1] * 3) == {"0.1": 3}
    assert bars([NOON] * 2) == {"2024-01-01 12:00:00": 2}


def test_what_is_no_number_is_counted_aside():
    found = histogram([1.0, 2.0, math.nan, math.inf, -math.inf, None])
    assert found is not None
    assert sum(bar.count for bar in found.bars) == 2
    assert found.note == "1 NaN, 2 infinite"
    none = histogram([math.nan])
    assert none is not None
    assert (none.bars, none.note) == ((), "1 NaN")


def test_times_are_binned_over_time():
    hours = [NOON + dt.timedelta(hours=n) for n in range(48)]
    assert counts(hours)[:-1] == [2] * (BINS - 1)
    assert ends(hours) == ("2024-01-01 12:00:00", "2024-01-03 11:00:00")
    days = [dt.date(2024, 1, 1), dt.date(2024, 1, 3)]
    assert bars(days) == {"2024-01-01": 1, "2024-01-02": 0, "2024-01-03": 1}


def test_truths_have_two_bars():
    assert bars([True, False, True, None]) == {"false": 1, "true": 2}
    assert bars([True]) == {"false": 0, "true": 1}


def test_of_text_the_most_frequent_values():
    values = ["a"] * 5 + ["b"] * 4 + ["", ""] + list("cdef") + [None]
    found = histogram(values)
    assert found is not None
    assert [(bar.label, bar.count) for bar in found.bars] == [
        ("a", 5), ("b", 4), ("", 2), ("c", 1), ("d", 1),
    ]  # fmt: skip
    assert (found.others, found.note) == (2, "7 different")
    again = histogram(values, pa.dictionary(pa.int8(), pa.string()))
    assert again == found


def test_of_what_differs_everywhere_and_of_lists_and_bytes_the_lengths():
    texts = ["x" * n for n in range(10)]
    assert counts(texts) == [1] * 10
    assert bars([[1, 2], [], None]) == {"0": 1, "1": 0, "2": 1}
    assert bars([b"ab", b"a"]) == {"1": 1, "2": 1}
    assert bars([b"ab", b"a"], pa.dictionary(pa.int8(), pa.binary())) == {"1": 1, "2": 1}


def test_what_has_no_histogram_has_none():
    assert histogram([None, None]) is None
    assert histogram([None], pa.float64()) is None
    assert histogram([{"a": 1}]) is None
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    table = pa.table({"broken": broken, "other": [1]})
    assert "other" in fs.TrainingSet(table, {})._repr_html_()


def test_of_large_tables_nulls_are_exact_and_values_of_a_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(summary, "SAMPLE_ROWS", 100)
    first, second = list(range(500)), [None] * 501
    table = pa.concat_tables(
        [pa.table({"x": pa.array(part, pa.int64())}) for part in (first, second)]
    )
    found = summarize(table, {})
    assert (found.rows, found.sampled) == (1001, 91)
    (column,) = found.columns
    assert column.nulls == 501
    assert column.histogram is not None
    assert sum(bar.count for bar in column.histogram.bars) == 46
    assert "Values are of 91 rows, evenly spread" in fs.TrainingSet(table, {})._repr_html_()


# --- the page -----------------------------------------------------------------------------

TAGS = {
    "div", "b", "span", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
    "svg", "rect", "path", "g", "text", "title",
}  # fmt: skip
ATTRIBUTES = {
    "style", "title", "open", "width", "height", "viewbox", "role", "aria-label", "aria-hidden",
    "x", "y", "d", "rx", "fill", "fill-opacity", "stroke", "stroke-opacity", "font-size",
    "font-style", "text-anchor",
}  # fmt: skip


class Page(HTMLParser):
    """What a page consists of: all that is no text must be ours."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        assert not any("url(" in (value or "") for name, value in attrs if name == "style")
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = unknown_decl = handle_pi = handle_comment


def page(table: pa.Table, rates: dict[str, float], features: dict[str, str]) -> str:
    return Page(fs.TrainingSet(table, rates, features)._repr_html_()).text


def test_the_page_says_what_there_is():
    table = pa.table({"driver_id": [1, 2, 3, 4], "rate": [0.5, None, 0.25, 1.0], "city": ["a"] * 4})
    text = page(table, {"stats": 0.75, "places": 1.0}, {"rate": "stats", "city": "places"})
    for said in (
        "4 rows × 3 columns", "75.0% of rows found a value", " · 1 feature", "driver_id", "int64",
        "entity rows", "25.0%", "0.25 … 1", "first rows", "null",
    ):  # fmt: skip
        assert said in text
    assert "entity rows" not in page(table, {"stats": 0.75}, {})  # where nobody knows


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;",
    "</svg>",
    "\0\x1b",
    "\u202eabc",
]


def test_words_of_others_stay_words():
    name = "".join(HOSTILE[:5])
    table = pa.table({name: HOSTILE, "list": [HOSTILE[:4]] * 6, "b": [b"<script>"] * 6})
    text = page(table, {name: 0.5}, {name: name})
    assert "<script>alert(1)</script>" in text
    assert "\u202e" not in text
    assert "\0" not in text
    assert "\x1b" not in text


def test_tables_without_rows_or_columns():
    table = pa.table({"x": pa.array([], pa.int64())})
    assert "0 rows × 1 columns" in page(table, {"stats": 0.0}, {"x": "stats"})
    assert "0 rows × 0 columns" in page(pa.table({}), {}, {})


def test_a_very_wide_table_is_cut_off():
    table = pa.table({f"c{n}": [n] for n in range(summary.MAX_COLUMNS + 7)})
    text = page(table, {}, {})
    assert "… and 7 more columns" in text
    assert "c206" not in text


_SCALARS = st.one_of(
    st.lists(st.none() | st.floats()).map(lambda v: pa.array(v, pa.float64())),
    st.lists(st.none() | st.floats(width=32)).map(lambda v: pa.array(v, pa.float32())),
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)).map(lambda v: pa.array(v, pa.int64())),
    st.lists(st.none() | st.integers(0, 2**64 - 1)).map(lambda v: pa.array(v, pa.uint64())),
    st.lists(st.none() | st.text(st.characters(codec="utf-8"))).map(
        lambda v: pa.array(v, pa.string())
    ),
    st.lists(st.none() | st.binary()).map(lambda v: pa.array(v, pa.binary())),
    st.lists(st.none() | st.datetimes(timezones=st.just(dt.UTC))).map(
        lambda v: pa.array(v, pa.timestamp("us", "UTC"))
    ),
    st.lists(st.none() | st.dates()).map(lambda v: pa.array(v, pa.date32())),
    st.lists(st.none() | st.booleans()).map(lambda v: pa.array(v, pa.bool_())),
    st.lists(st.none() | st.decimals(-(10**9), 10**9, places=3)).map(
        lambda v: pa.array(v, pa.decimal128(20, 3))
    ),
    st.lists(st.none() | st.lists(st.none() | st.floats())).map(
        lambda v: pa.array(v, pa.list_(pa.float64()))
    ),
)


@given(_SCALARS)
def test_any_column_is_shown_and_each_of_its_values_counted_once(values: pa.Array):
    table = pa.table({"x": values})
    Page(fs.TrainingSet(table, {"v": 0.5}, {"x": "v"})._repr_html_())
    (column,) = summarize(table, {}).columns
    there = len(values) - values.null_count
    if not there:
        assert column.histogram is None
        return
    assert column.histogram is not None
    counted = sum(bar.count for bar in column.histogram.bars) + column.histogram.others
    if pa.types.is_floating(values.type):
        there = sum(value is not None and math.isfinite(value) for value in values.to_pylist())
    assert counted == there


# --- warnings and leaks -------------------------------------------------------------------------


def streamed(rows: int) -> fs.TrainingSet:
    """What a stream of so many rows has as its summary."""
    table = pa.table({"driver_id": pa.array([], pa.int64()), "rate": pa.array([], pa.float64())})
    plan = fs.TrainingPlan("sql", "", {}, (), rows, 0.1)
    return fs.TrainingSet(
        table,
        {"stats": 0.96},
        {"rate": "stats"},
        {"stats": 12},
        plan=plan,
        dated=frozenset({"stats"}),
    )


def test_warnings_and_leaks_are_told_where_a_set_is_looked_at():
    table = pa.table({"driver_id": [1, 2, 3, 4], "rate": [0.5, None, 0.25, 1.0]})
    warnings = ("stats: undoing load 3 has since taken <b>7</b> rows out",)
    found = fs.TrainingSet(
        table,
        {"stats": 0.75},
        {"rate": "stats"},
        {"stats": 2, "other": 0, "undated": 4},
        warnings=warnings,
        dated=frozenset({"stats", "other"}),
    )
    leak = (
        "stats: 2 of 4 rows rest on values created after their time; "
        'known_by="created_timestamp" leaves such values out'
    )
    assert repr(found).splitlines() == [
        "<TrainingSet: 4 rows, 2 columns; found stats 75.0%>",
        f"warning: {warnings[0]}",
        leak,
    ]
    text = Page(found._repr_html_()).text
    assert warnings[0] in text
    assert text.index("Warning") < text.index(leak) < text.index("of rows found a value")
    assert "other" not in text
    assert "undated" not in text


def test_a_set_without_warnings_and_leaks_says_nothing_of_them():
    found = fs.TrainingSet(pa.table({"x": [1]}), {"v": 1.0}, {"x": "v"}, {"v": 0})
    assert repr(found) == "<TrainingSet: 1 rows, 1 columns; found v 100.0%>"
    assert "arning" not in found._repr_html_()


def test_what_known_by_has_left_out_is_no_leak():
    assert summary.leak_remarks({"v": 2}, 5, left_out=True) == [
        "v: 2 of 5 rows would rest on values created after their time, which known_by leaves out"
    ]


def test_the_summary_of_a_stream_tells_the_rows_that_were_streamed():
    """Of nulls and values it tells nothing: nobody has looked at them."""
    found = streamed(1_500)
    first, leak = repr(found).splitlines()
    assert first == "<TrainingSet: 1,500 rows (streamed), 2 columns; found stats 96.0%>"
    assert leak.startswith("stats: 12 of 1,500 rows rest on values created after their time")
    text = Page(found._repr_html_()).text
    assert "1,500 rows × 2 columns, streamed" in text
    assert "rate" in text
    assert "nulls" not in text
    assert repr(streamed(0)).startswith("<TrainingSet: 0 rows, 2 columns;")
