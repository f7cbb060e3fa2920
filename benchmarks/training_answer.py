"""What a training set of `training.py` holds, told in a few hashes, so that answers of different
processes can be compared. It stands alone: peers in environments of their own use it, too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LABEL = "target"
"""The entity table's label grows from row to row, and so tells their order."""

TYPES = {
    "item_id": pa.int64(),
    "event_timestamp": pa.timestamp("us", tz="UTC"),
    LABEL: pa.float64(),
    **{f"f{i}": pa.float64() for i in range(6)},
    "n": pa.int32(),
    "label": pa.string(),
}
"""The columns of an answer, as they are compared: what else a peer makes of them is its own."""


class Digest:
    """By column: a hash of its values in their order, nulls among them, exact to the last bit."""

    def __init__(self) -> None:
        self.rows = 0
        self._values = {name: hashlib.sha256() for name in TYPES}
        self._shapes = {name: hashlib.sha256() for name in TYPES}

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        for name, kind in TYPES.items():
            column = batch.column(name).cast(kind)
            if pa.types.is_string(kind):
                self._shapes[name].update(pc.binary_length(column).fill_null(-1).to_numpy())
                self._values[name].update(_characters(column.fill_null("")))
            else:
                plain = pa.int64() if pa.types.is_timestamp(kind) else kind
                self._shapes[name].update(column.is_valid().cast(pa.uint8()).to_numpy())
                self._values[name].update(column.cast(plain).fill_null(0).to_numpy())

    def told(self) -> dict[str, str]:
        """The hashes, and how many rows there are."""
        hashes = {
            name: self._values[name].hexdigest()[:16] + self._shapes[name].hexdigest()[:16]
            for name in TYPES
        }
        return {"rows": f"{self.rows:,}", **hashes}


def digests(batches: Iterable[pa.RecordBatch]) -> dict[str, dict[str, str]]:
    """A digest of ``all`` rows, and one of those alone that have ``found`` a value."""
    every, found = Digest(), Digest()
    for batch in batches:
        chosen = batch.select(list(TYPES))
        every.add(chosen)
        found.add(chosen.filter(chosen.column("f0").is_valid()))
    return {"all": every.told(), "found": found.told()}


def _characters(text: pa.StringArray) -> memoryview:
    offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset :][: len(text) + 1]
    return memoryview(text.buffers()[2] or b"")[offsets[0] : offsets[-1]]


def in_order(answer: pa.Table) -> pa.Table:
    """The rows as the entity table has them, of an answer that has them in any order."""
    return answer.sort_by(LABEL)
