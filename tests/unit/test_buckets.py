"""The hash that divides copies by key: the same for ever, whatever the chunks."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.export.buckets import bucket_of

DAY = dt.date(2024, 2, 29)
MOMENT = dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, dt.UTC)

# Copies on disk are divided so: these numbers cannot change.
GOLDEN: list[tuple[fs.FeatureType, list[Any], list[int]]] = [
    (fs.Bool, [False, True], [33, 436]),
    (fs.Int32, [0, 1, -1, 2**31 - 1], [33, 436, 607, 942]),
    (fs.Int64, [0, 1, -1, 2**53, 2**53 + 1, -(2**63)], [33, 436, 607, 650, 927, 946]),
    (
        fs.String,
        ["", "a", "A", "a ", "é", "e\u0301", "\U0001f695", "x" * 1_000],
        [33, 359, 465, 800, 248, 143, 292, 586],
    ),
    (fs.Bytes, [b"", b"a", b"\0", b"\0\0", b"\xff" * 7], [33, 359, 257, 872, 99]),
    (fs.Date, [dt.date(1, 1, 1), DAY, dt.date(9999, 12, 31)], [659, 570, 588]),
    (fs.Timestamp, [MOMENT, MOMENT + dt.timedelta(microseconds=1)], [607, 33]),
    (fs.Decimal(12, 2), [Decimal("0.00"), Decimal("-1.50"), Decimal("1.50")], [911, 81, 56]),
    (fs.Decimal(38, 0), [Decimal(10**37), Decimal(-(10**37))], [900, 113]),
]


@pytest.mark.parametrize(("kind", "values", "buckets"), GOLDEN, ids=lambda one: str(one)[:12])
def test_each_value_has_its_bucket_for_ever(kind: fs.FeatureType, values: Any, buckets: list[int]):
    assert bucket_of([pa.array(values, kind.arrow)], [kind], 1_000).to_pylist() == buckets


def test_of_several_keys_all_count_and_their_order_too():
    keys = [pa.array(["a", "b", "a", "b"]), pa.array(["a", "a", "b", "b"])]
    assert bucket_of(keys, [fs.String, fs.String], 1_000).to_pylist() == [672, 496, 715, 409]


def test_text_and_its_bytes_and_integers_of_either_size_are_alike():
    text = pa.array(["", "a", "né"])
    assert bucket_of([text], [fs.String], 97) == bucket_of([text.cast(pa.binary())], [fs.Bytes], 97)
    small = pa.array([-1, 0, 7], pa.int32())
    assert bucket_of([small], [fs.Int32], 97) == bucket_of([small.cast(pa.int64())], [fs.Int64], 97)


@pytest.mark.parametrize(("kind", "values", "buckets"), GOLDEN, ids=lambda one: str(one)[:12])
def test_chunks_slices_nulls_and_wider_types_change_nothing(
    kind: fs.FeatureType, values: list[Any], buckets: list[int]
):
    whole = pa.array([values[-1], *values, None], kind.arrow)
    parts = [whole.slice(1, 1), whole.slice(2)]
    columns = [pa.chunked_array(parts), pa.chunked_array(parts).combine_chunks(), whole.slice(1)]
    if kind in (fs.String, fs.Bytes):
        large = pa.large_string() if kind == fs.String else pa.large_binary()
        columns.append(pa.chunked_array(parts).cast(large))
    for column in columns:
        found = bucket_of([column], [kind], 1_000).to_pylist()
        assert found[:-1] == buckets
        assert 0 <= found[-1] < 1_000
    assert bucket_of([pa.array([], kind.arrow)], [kind], 16).to_pylist() == []
    assert bucket_of([pa.chunked_array([], kind.arrow)], [kind], 16).to_pylist() == []


@pytest.mark.parametrize("buckets", [1, 2, 7, 16, 512])
def test_buckets_are_about_equally_full(buckets: int):
    numbers = pa.arange(0, 40_000)
    texts = numbers.cast(pa.string())
    for columns, kinds in (
        ([numbers], [fs.Int64]),
        ([texts], [fs.String]),
        ([texts, numbers], [fs.String, fs.Int64]),
    ):
        counts = Counter(bucket_of(columns, kinds, buckets).to_pylist())
        mean = 40_000 / buckets
        assert len(counts) == buckets
        assert max(counts.values()) < mean + 6 * mean**0.5 + 1
