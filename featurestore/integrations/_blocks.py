"""Which rows of an entity table a worker gives in an epoch, in which order, and where it stands.

A table is cut into blocks of rows. Worker ``shard`` of ``shards`` takes every so-manieth of them,
so that all workers together give each row once. Shuffled, the blocks are dealt out in an order of
their own, and the rows of each block too, by seed and epoch alone: any process finds the same
order again, and how many rows a worker has given says where it goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import DefinitionError

BLOCK_ROWS = 8_192
"""Rows that one query joins. Smaller blocks shuffle better, larger ones cost fewer queries."""

_VERSION = 1


@dataclass(frozen=True)
class Piece:
    """The rows of one block that are still to be given.

    ``start`` is the block's first row in the table and ``rows`` how many rows it has. ``order``
    has the positions within the block to be given, in that order.
    """

    start: int
    rows: int
    order: Sequence[int]

    def row(self, position: int) -> int:
        """The row of the table that is given at ``position`` of this piece."""
        return self.start + self.order[position]

    @property
    def in_sequence(self) -> bool:
        """Whether the rows come as they stand in the table."""
        return isinstance(self.order, range)


@dataclass(frozen=True)
class Order:
    """The order of one worker in one epoch, of a table of ``rows`` rows."""

    rows: int
    shard: int = 0
    shards: int = 1
    epoch: int = 0
    shuffle: bool = False
    seed: int = 0
    block_rows: int = BLOCK_ROWS

    @property
    def _size(self) -> int:
        # Of a small table each worker is to have its part.
        return max(min(self.block_rows, -(-self.rows // self.shards)), 1)

    def blocks(self) -> list[int]:
        """The blocks of this worker, by their numbers in the table, in order."""
        numbers = list(range(-(-self.rows // self._size)))
        if self.shuffle:
            random.Random(f"{self.seed} {self.epoch}").shuffle(numbers)
        return numbers[self.shard :: self.shards]

    def pieces(self, given: int = 0) -> Iterator[Piece]:
        """The rows of this worker but for the first ``given``, block by block."""
        for block in self.blocks():
            start = block * self._size
            rows = min(self._size, self.rows - start)
            if given < rows:
                yield Piece(start, rows, self._within(block, rows)[given:])
            given = max(given - rows, 0)

    def _within(self, block: int, rows: int) -> Sequence[int]:
        if not self.shuffle:
            return range(rows)
        positions = list(range(rows))
        random.Random(f"{self.seed} {self.epoch} {block}").shuffle(positions)
        return positions

    def state(self, given: int) -> dict[str, Any]:
        """Where the worker stands after ``given`` rows: plain values, for a checkpoint."""
        return {
            "version": _VERSION,
            "epoch": self.epoch,
            "given": given,
            "shard": self.shard,
            "shards": self.shards,
            "rows": self.rows,
            "block_rows": self.block_rows,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def resume(self, state: Mapping[str, Any]) -> int:
        """How many rows were given at ``state``, which must be of this very order."""
        now = self.state(0)
        if state["shards"] != self.shards:
            raise DefinitionError(
                f"The state is that of one of {_workers(state['shards'])}, and now there "
                f"{'is' if self.shards == 1 else 'are'} {self.shards}: rows are dealt out by the "
                f"number of workers (of all ranks together), so go on with as many as before, or "
                f"begin the epoch anew."
            )
        if state["shard"] != self.shard:
            raise DefinitionError(
                f"The state is that of worker {state['shard']} of {self.shards}, and this is "
                f"worker {self.shard}: each rank saves and loads a state of its own."
            )
        for name, way_out in _SAME.items():
            if state[name] != now[name]:
                raise DefinitionError(
                    f"The state was saved with {name}={state[name]!r}, and this dataset has "
                    f"{name}={now[name]!r}: {way_out}"
                )
        given: int = state["given"]
        return given


_SAME = {
    "rows": "the entity table has changed since. Begin the epoch anew.",
    "block_rows": "go on with the same.",
    "shuffle": "go on with the same.",
    "seed": "go on with the same.",
}


def check_state(state: Any) -> dict[str, Any]:
    """``state`` as :meth:`Order.state` made it; :class:`DefinitionError` for anything else."""
    expected = Order(0).state(0)
    if not isinstance(state, Mapping) or set(state) != set(expected):
        raise DefinitionError(
            "This is no state of a TrainingDataset: load what its state_dict() gave, or give a "
            "StatefulDataLoader's state to the loader."
        )
    if state["version"] != _VERSION:
        raise DefinitionError(
            f"The state is of version {state['version']!r}, which this version of featurestore "
            f"does not read: begin the epoch anew."
        )
    return dict(state)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
