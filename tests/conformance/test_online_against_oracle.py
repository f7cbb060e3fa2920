"""Online equals the oracle after any sequence of writes, undos, erasures and rollbacks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import statuses, write
from cases import Kind, kinds, next_example
from hypothesis import given
from oracle import Oracle
from strategies import (
    FEATURES,
    ONLINE_TTL,
    Batch,
    Delete,
    Materialize,
    OnlineCase,
    Step,
    Transaction,
    Undo,
    online_cases,
)

import featurestore as fs

KINDS = kinds(ONLINE_TTL)


class Undone(Exception):
    """Raised in a transaction that is to be rolled back."""


@pytest.fixture
async def kinds_store(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([kind.view for kind in KINDS.values()])
    return store


class Both:
    """A store and an oracle that go through the same steps."""

    def __init__(self, store: fs.FeatureStore, folder: Path, case: OnlineCase) -> None:
        self.store = store
        self.folder = folder
        self.kind: Kind = KINDS[case.kind, case.limited]
        self.example = next_example()
        self.oracle = Oracle(FEATURES, ttl=ONLINE_TTL if case.limited else None)
        self.load_ids: dict[int, int] = {}  # the oracle's number of a load: the store's
        self.asked = sorted(set(self._keys(case.steps)))

    def _keys(self, steps: tuple[Step, ...]) -> Iterator[tuple[Any, ...]]:
        for step in steps:
            if isinstance(step, Batch):
                yield from (draft.keys for draft in step.rows)
            elif isinstance(step, Delete):
                yield step.keys
            elif isinstance(step, Transaction):
                yield from self._keys(step.steps)

    async def do(self, step: Step, on: Any = None) -> None:
        """Take ``step`` on both; ``on`` is a transaction where the step is inside one."""
        on = on or self.store
        now = dt.datetime.now(dt.UTC)
        if isinstance(step, Batch):
            rows = [self.kind.row(self.example, draft) for draft in step.rows]
            load_id = await write(on, self.kind.view, rows, step.way, self.folder)
            self.load_ids[self.oracle.write(step.rows, now)] = load_id
        elif isinstance(step, Delete):
            repository = on.repository(self.kind.view.name)
            await repository.delete(**self.kind.key_row(self.example, step.keys))
            self.oracle.delete(step.keys)
        elif isinstance(step, Materialize):
            await self.store.materialize([self.kind.view.name], start=step.start, end=step.end)
            self.oracle.materialize(now, step.start, step.end)
        elif isinstance(step, Undo):
            await self._undo(step, now)
        else:
            await self._transaction(step)

    async def _undo(self, step: Undo, now: dt.datetime) -> None:
        if self.oracle.loads:
            load = self.oracle.loads[step.choice % len(self.oracle.loads)]
            report = await self.store.undo_load(self.load_ids[load])
            assert report.rows_removed == self.oracle.undo(load, now)

    async def _transaction(self, step: Transaction) -> None:
        before = self.oracle.snapshot()
        try:
            async with self.store.transaction() as tx:
                for part in step.steps:
                    await self.do(part, tx)
                    await self.compare(tx)
                if not step.commits:
                    raise Undone
        except Undone:
            self.oracle = before

    async def compare(self, reader: Any = None) -> None:
        """Online, and the history behind it, are the oracle's."""
        reader = reader or self.store
        now = dt.datetime.now(dt.UTC)
        rows = [self.kind.key_row(self.example, keys) for keys in self.asked]
        answer = await reader.get_online_features([f"{self.kind.view.name}:*"], rows)
        expected = [self.oracle.online(keys, now) for keys in self.asked]
        assert answer.to_dicts() == [
            row | vector.values for row, vector in zip(rows, expected, strict=True)
        ]
        assert statuses(answer) == [vector.statuses for vector in expected]
        assert answer.event_timestamps == [
            {self.kind.view.name: vector.event} for vector in expected
        ]

    async def compare_history(self) -> None:
        repository = self.store.repository(self.kind.view.name)
        for keys in self.asked:
            stored = await repository.history(**self.kind.key_row(self.example, keys))
            assert stored.select(["happened", *FEATURES]).to_pylist() == [
                {"happened": row.event, **row.values} for row in self.oracle.history(keys)
            ]


@given(case=online_cases())
async def test_online_is_what_the_oracle_says_after_every_step(
    kinds_store: fs.FeatureStore, tmp_path: Path, case: OnlineCase
):
    both = Both(kinds_store, tmp_path, case)
    for step in case.steps:
        await both.do(step)
        await both.compare()
    await both.compare_history()
