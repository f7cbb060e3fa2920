"""What names an entity table: its content alone, however it is cut, coded and laid out."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.training import digest
from featurestore.training.digest import ValuesDigest, same_type, table_digest

TEXTS = st.sampled_from(["", "a", "ab", "b", "é"])
NUMBERS = st.integers(-2, 2)
ITEMS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int8": (pa.int8(), NUMBERS),
    "int64": (pa.int64(), NUMBERS),
    "double": (pa.float64(), st.sampled_from([0.0, 1.5, float("inf")])),
    "bool": (pa.bool_(), st.booleans()),
    "string": (pa.string(), TEXTS),
    "large string": (pa.large_string(), TEXTS),
    "string view": (pa.string_view(), TEXTS),
    "binary": (pa.binary(), TEXTS.map(str.encode)),
    "fixed binary": (pa.binary(2), st.sampled_from([b"ab", b"ba"])),
    "timestamp": (
        pa.timestamp("us", "UTC"),
        st.sampled_from([dt.datetime(2024, 1, n, tzinfo=dt.UTC) for n in (1, 2)]),
    ),
    "date": (pa.date32(), st.sampled_from([dt.date(2024, 1, n) for n in (1, 2)])),
    "null": (pa.null(), st.none()),
    "list": (pa.list_(pa.string()), st.lists(st.none() | TEXTS, max_size=3)),
    "large list": (pa.large_list(pa.int32()), st.lists(st.none() | NUMBERS, max_size=3)),
    "fixed list": (pa.list_(pa.int8(), 2), st.lists(NUMBERS, min_size=2, max_size=2)),
    "list of lists": (
        pa.list_(pa.list_(pa.int8())),
        st.lists(st.none() | st.lists(NUMBERS, max_size=2), max_size=2),
    ),
    "views in a struct": (
        pa.struct({"a": pa.string_view()}),
        st.fixed_dictionaries({"a": st.none() | TEXTS}),
    ),
    "struct": (
        pa.struct({"a": pa.int8(), "b": pa.list_(pa.string())}),
        st.fixed_dictionaries(
            {"a": st.none() | NUMBERS, "b": st.none() | st.lists(TEXTS, max_size=2)}
        ),
    ),
    "list view": (pa.list_view(pa.int8()), st.lists(st.none() | NUMBERS, max_size=3)),
    "map": (pa.map_(pa.string(), pa.int8()), st.lists(st.tuples(TEXTS, NUMBERS), max_size=2)),
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.DataType, list[Any]]:
    kind, items = ITEMS[draw(st.sampled_from(sorted(ITEMS)))]
    return kind, draw(st.lists(st.none() | items, max_size=12))


def same_values(one: pa.Array, two: pa.Array) -> bool:
    return bool(one.to_pylist() == two.to_pylist())


def named(column: Any) -> str:
    return table_digest(pa.table({"x": column}))


@given(column=columns(), cuts=st.lists(st.integers(0, 12), max_size=4), data=st.data())
def test_it_is_the_same_however_the_rows_are_cut(
    column: tuple[pa.DataType, list[Any]], cuts: Sequence[int], data: st.DataObject
):
    kind, values = column
    array = pa.array(values, kind)
    whole = named(array)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(values)), len(values)]
    pieces = [array[a:b] for a, b in itertools.pairwise(edges)]
    assert named(pa.chunked_array(pieces, kind)) == whole
    padded = pa.array([*values, *values[:1], *values], kind)
    assert named(padded.slice(len(padded) - len(values))) == whole
    # In pieces of another size than those that are hashed together.
    old, digest.PIECE_ROWS = digest.PIECE_ROWS, data.draw(st.integers(1, 5))
    try:
        assert named(array) == whole
    finally:
        digest.PIECE_ROWS = old


@given(column=columns(), other=columns())
def test_other_content_has_another_name(
    column: tuple[pa.DataType, list[Any]], other: tuple[pa.DataType, list[Any]]
):
    one, two = pa.array(column[1], column[0]), pa.array(other[1], other[0])
    assert (named(one) == named(two)) == (same_type(one.type, two.type) and same_values(one, two))


@given(column=columns(), data=st.data())
def test_one_changed_value_changes_it(column: tuple[pa.DataType, list[Any]], data: st.DataObject):
    kind, values = column
    if not values:
        return
    place = data.draw(st.integers(0, len(values) - 1))
    items = next(items for known, items in ITEMS.values() if known == kind)
    changed = [*values]
    changed[place] = data.draw(st.none() | items)
    one, two = pa.array(values, kind), pa.array(changed, kind)
    assert (named(one) == named(two)) == one.equals(two)


@given(values=st.lists(st.none() | TEXTS, max_size=12), cut=st.integers(0, 12))
def test_how_values_are_coded_does_not_matter(values: list[str | None], cut: int):
    plain = pa.array(values, pa.string())
    coded = plain.dictionary_encode()
    assert named(coded) == named(plain)
    views = pa.DictionaryArray.from_arrays(coded.indices, coded.dictionary.cast(pa.string_view()))
    assert named(views) == named(plain)
    other = pa.DictionaryArray.from_arrays(
        pa.array([None if v is None else 4 - TEXT_LIST.index(v) for v in values], pa.int8()),
        pa.array(TEXT_LIST[::-1]),
    )
    assert named(pa.chunked_array([coded[:cut].cast(other.type), other[cut:]])) == named(plain)


LAYOUTS = [
    (["a", None, "é", ""], [pa.string(), pa.large_string(), pa.string_view(),
     pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())]),
    ([b"a", None, b""], [pa.binary(), pa.large_binary(), pa.binary_view()]),
    ([["a", None], None, []], [pa.list_(pa.string()), pa.large_list(pa.string()),
     pa.list_(pa.large_string()), pa.large_list(pa.string_view()),
     pa.list_(pa.field("element", pa.string())), pa.list_view(pa.string()),
     pa.large_list_view(pa.string())]),
    ([["a", None], None, ["b", ""]], [pa.list_(pa.string(), 2), pa.list_(pa.large_string(), 2)]),
    ([{"a": ["b"]}, None], [pa.struct({"a": pa.list_(pa.string())}),
     pa.struct({"a": pa.large_list(pa.string_view())})]),
    ([[("a", 1)], None], [pa.map_(pa.string(), pa.int8()), pa.map_(pa.large_string(), pa.int8())]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "kinds"), LAYOUTS)
def test_the_layouts_of_text_bytes_and_lists_are_one_type(
    values: list[Any], kinds: list[pa.DataType]
):
    assert len({named(pa.array(values, kind)) for kind in kinds}) == 1
    assert all(same_type(kinds[0], kind) for kind in kinds)


def test_types_of_other_values_are_told_apart():
    kinds = [pa.string(), pa.binary(), pa.list_(pa.string()), pa.list_(pa.string(), 2),
             pa.list_(pa.int8()), pa.list_(pa.int64()), pa.struct({"a": pa.string()}),
             pa.struct({"b": pa.string()}), pa.int8(), pa.binary(2)]  # fmt: skip
    assert len({named(pa.nulls(2, kind)) for kind in kinds}) == len(kinds)
    assert not any(same_type(one, two) for one, two in itertools.combinations(kinds, 2))


TEXT_LIST = ["", "a", "ab", "b", "é"]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([None, ""], ["", None]),
        ([None, 0], [0, None]),
        (["ab", "c"], ["a", "bc"]),
        ([[], None], [None, []]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        ([[None], []], [[], [None]]),
        ([{"a": None}, None], [None, {"a": None}]),
        ([[""], []], [[], [""]]),
    ],
)  # fmt: skip
def test_what_is_moved_is_told_apart(one: list[Any], two: list[Any]):
    kind = pa.array([*one, *two]).type
    assert named(pa.array(one, kind)) != named(pa.array(two, kind))


def test_names_order_and_types_of_columns_count():
    one, two = pa.array([1, 2], pa.int64()), pa.array([1, 2], pa.int32())
    tables = [
        pa.table({"x": one}), pa.table({"y": one}), pa.table({"x": two}),
        pa.table({"x": one, "y": two}), pa.table({"y": two, "x": one}), pa.table({}),
    ]  # fmt: skip
    assert len({table_digest(table) for table in tables}) == len(tables)


class Celsius(pa.ExtensionType):  # type: ignore[misc]
    """Degrees, as others would define them."""

    def __init__(self) -> None:
        super().__init__(pa.float64(), "featurestore.tests.celsius")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Celsius:
        return cls()


def test_extension_types_are_taken_with_their_values():
    storage = pa.array([1.5, None, 2.0])
    degrees = pa.ExtensionArray.from_storage(Celsius(), storage)
    assert named(degrees) == named(pa.chunked_array([degrees[:1], degrees[1:]]))
    assert named(degrees) != named(storage)
    turned = pa.ExtensionArray.from_storage(Celsius(), storage[::-1])
    assert named(degrees) != named(turned)
    ids = pa.array([b"0" * 16, None], pa.uuid())
    assert named(ids) != named(ids[::-1])
    assert named(pa.array(["{}"], pa.json_())) != named(pa.array(["[]"], pa.json_()))


def test_unions_and_runs_are_taken_too():
    kinds, numbers, words = pa.array([0, 1], pa.int8()), pa.array([1, 2]), pa.array(["a", "b"])
    union = pa.UnionArray.from_sparse(kinds, [numbers, words])
    assert named(union) == named(pa.chunked_array([union[:1], union[1:]]))
    assert named(union) != named(pa.UnionArray.from_sparse(kinds, [numbers, words[::-1]]))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), words)
    assert named(runs) == named(pa.chunked_array([runs[:1], runs[1:]]))


@given(values=st.lists(st.none() | TEXTS, max_size=12), cut=st.integers(0, 12))
def test_values_in_pieces_are_named_as_in_one(values: list[str | None], cut: int):
    whole, pieces = ValuesDigest(), ValuesDigest()
    whole.add(pa.array(values, pa.string()))
    for piece in (values[:cut], values[cut:]):
        pieces.add(pa.array(piece, pa.string()))
    assert whole.hexdigest() == pieces.hexdigest()
