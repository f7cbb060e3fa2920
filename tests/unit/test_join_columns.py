"""Columns of history, made ready to have rows taken from them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore.training.duckdb_join import columns
from featurestore.training.duckdb_join.columns import longest, ready_to_take, single

VALUES: dict[str, tuple[pa.DataType, list[Any], int]] = {
    "numbers": (pa.int64(), [1, None, 3], 0),
    "decimals": (pa.decimal128(9, 2), [Decimal("1.25"), None, Decimal("-3")], 0),
    "texts": (pa.string(), ["", None, "é", "four"], 4),
    "bytes": (pa.binary(), [b"", None, b"\x00\x01"], 2),
    "lists": (pa.list_(pa.float64()), [[1.0, None], [], None, [2.0] * 3], 24),
    "lists of truths": (pa.list_(pa.bool_()), [[True, None], [], None], 2),
    "lists of texts": (pa.list_(pa.string()), [["a", "three"], [None], None], 10),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_rows_are_taken_as_they_came(
    name: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From texts and lists of more than a column holds, too."""
    kind, values, most = VALUES[name]
    if large:
        monkeypatch.setattr(columns, "_LARGE_BYTES", 0)
    column = pa.chunked_array([pa.array([one], kind) for one in values], kind)
    positions = pa.array([2, None, 0, 2, 1])
    taken = single(ready_to_take(column).take(positions)).cast(kind)
    wanted = [None if place is None else values[place] for place in positions.to_pylist()]
    assert taken.to_pylist() == wanted
    assert longest(pa.array(values, kind)) == most
    assert longest(pa.array([], kind)) == longest(pa.nulls(3, kind)) == 0
    empty = ready_to_take(pa.chunked_array([], kind))
    assert len(empty) == 0
    assert single(empty.take(pa.nulls(2, pa.int64()))).to_pylist() == [None, None]
