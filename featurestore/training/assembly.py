"""Answers of an engine and entity rows, put together to the rows of a training set."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.selection import Request
from featurestore.storage.dialect import BLOCK
from featurestore.training.digest import RowsDigest, ValuesDigest
from featurestore.training.entities import Entities
from featurestore.training.rule import Matched

_BLOCK_BITS = BLOCK.bit_length() - 1


@dataclass
class JoinSum:
    """What one join came to: rows that found a value, plain matches that were created after
    their entity's time, the matches themselves by their arrivals, and the blocks these are of.
    ``values`` names the features of one that is read from files, by their places."""

    matched: int = 0
    leaked: int = 0
    arrivals: RowsDigest = field(default_factory=RowsDigest)
    blocks: set[int] = field(default_factory=set)
    values: dict[int, ValuesDigest] | None = None

    def add(self, found: Matched) -> None:
        self.matched += len(found.arrivals) - found.arrivals.null_count
        self.leaked += found.leaked
        self.arrivals.add(found.arrivals)
        blocks = pc.unique(pc.shift_right(found.arrivals, _BLOCK_BITS))
        self.blocks.update(blocks.drop_null().to_pylist())


class Assembly:
    """Rows of a training set as they come; what they sum up to. Its calls are for a thread."""

    def __init__(
        self,
        entities: Entities,
        request: Request,
        types: Sequence[pa.DataType],
        from_source: Container[str] = (),
    ) -> None:
        self.rows = 0
        # A row of history is named by its arrival, and never changes. A file may.
        self.sums = [
            JoinSum(values={} if join.view.name in from_source else None) for join in request.joins
        ]
        self._entities = entities
        self._request = request
        self._types = types
        fields = [
            pa.field(output.name, kind) for output, kind in zip(request.outputs, types, strict=True)
        ]
        given = entities.table.schema
        self.schema = pa.schema([*given, *fields], metadata=given.metadata)

    def add(self, found: Sequence[Matched]) -> list[pa.RecordBatch]:
        """The rows of an engine's next answer."""
        count = len(found[0].arrivals)
        table = self._entities.table.slice(self.rows, count)
        self.rows += count
        for joined, one in zip(self.sums, found, strict=True):
            joined.add(one)
        columns = list(table.columns)
        for output, kind in zip(self._request.outputs, self._types, strict=True):
            values = found[output.join].features[output.position]
            values = values if values.type == kind else values.cast(kind)
            digests = self.sums[output.join].values
            if digests is not None:
                digests.setdefault(output.position, ValuesDigest()).add(values)
            columns.append(pa.chunked_array([values]))
        whole = pa.Table.from_arrays(columns, schema=self.schema).combine_chunks()
        return list(whole.to_batches())
