"""Rejected rows are kept as columns, and become Python values only when they are asked for."""

from __future__ import annotations

import pyarrow as pa

from featurestore.ingest.rejected import RejectedRows


def test_rows_by_number_and_slice():
    rows = RejectedRows(
        [4, 9, 11],
        ["a is null", "b is null", "c is null"],
        {"k": pa.array([1, None, 3]), "x": pa.array([0.5, float("nan"), None])},
        {"k": pa.array([1, None, 3])},
    )
    assert len(rows) == 3
    assert [(one.row, one.reason) for one in rows[1:]] == [(9, "b is null"), (11, "c is null")]
    assert rows[0].values == {"k": 1, "x": 0.5}
    assert rows[1].values == {"k": None, "x": "NaN"}
    assert [one.entity for one in rows] == [[1], None, [3]]


def test_their_size_is_that_of_their_columns():
    column = pa.array(["x" * 1_000] * 50)
    rows = RejectedRows(range(50), ["no"] * 50, {"text": column}, {})
    assert rows.nbytes == column.nbytes > 50_000
