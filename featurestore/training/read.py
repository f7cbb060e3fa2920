"""A training set from beginning to end: the request, the entity rows, an engine, the rows."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from featurestore.context import Context, TransactionContext
from featurestore.ingest.ahead import ahead
from featurestore.selection import Join, Request
from featurestore.storage.marks import Mark, Removal, removed_since, unseen
from featurestore.storage.session import Session
from featurestore.storage.waiting import in_thread
from featurestore.training.asked import Asked, resolve_mark
from featurestore.training.assembly import Assembly, JoinSum
from featurestore.training.cluster import Copies, find_copies, join_on_cluster, mark_of
from featurestore.training.cost import choose_engine
from featurestore.training.digest import table_digest
from featurestore.training.duckdb_join.engine import join_in_duckdb
from featurestore.training.entities import Entities, open_entities
from featurestore.training.manifest import (
    Manifest,
    ManifestJoin,
    block_ranges,
    versions,
    view_version,
)
from featurestore.training.memory import Memory
from featurestore.training.report import EngineChoice, Report, TrainingPlan
from featurestore.training.rule import Matched, Question
from featurestore.training.spool import Collected
from featurestore.training.sql import join_in_database
from featurestore.training.threads import FEW_COLUMNS, is_small
from featurestore.training.training_set import TrainingSet


@dataclass
class Reading:
    """A training set under way: :meth:`batches` once, then :meth:`result`. ``small`` says that the
    entity rows are few and narrow."""

    project: str
    session: Session
    asked: Asked
    question: Question
    entities: Entities
    memory: Memory
    assembly: Assembly
    removals: list[Removal]
    copies: Copies
    started: float
    small: bool

    async def batches(self) -> AsyncGenerator[pa.RecordBatch, None]:
        """The rows, in the order of the entity rows."""
        report, total = self.question.report, len(self.entities)
        if total:
            async with self._coming() as answers:
                async for found in answers:
                    rows = await in_thread(self.assembly.add, found, small=self.small)
                    report.tell("rows", self.assembly.rows, total)
                    for batch in rows:
                        yield batch
        report.rows, report.seconds = self.assembly.rows, time.perf_counter() - self.started

    def _coming(self) -> AbstractAsyncContextManager[AsyncIterator[list[Matched]]]:
        """The engine's answers; of many, the next is found while one is put together.

        Not in a transaction: to break off a statement that is under way, where the reader leaves,
        would end it."""
        if self.small or self.question.inside:
            return aclosing(self._answers())
        return ahead(self._answers())

    def _answers(self) -> AsyncGenerator[list[Matched], None]:
        match self.question.report.choice.engine:
            case "duckdb":
                return join_in_duckdb(self.session, self.entities, self.question, self.memory)
            case "daft":
                return join_on_cluster(self.entities, self.question, self.copies)
            case _:
                return join_in_database(self.session, self.entities, self.question)

    async def result(self, table: pa.Table) -> TrainingSet:
        """The training set of ``table``, which has all of the rows, or only their columns."""
        request, report = self.question.request, self.question.report
        rows = max(self.assembly.rows, 1)
        names = {join.view.id: join.view.name for join in request.joins}
        sums = dict(zip(request.joins, self.assembly.sums, strict=True))
        return TrainingSet(
            table,
            match_rate={join.name: one.matched / rows for join, one in sums.items()},
            features={one.name: request.joins[one.join].name for one in request.outputs},
            leaked={join.name: one.leaked for join, one in sums.items()},
            manifest=await in_thread(self._manifest, sums, await versions(), small=self.small),
            plan=TrainingPlan(
                report.choice.engine,
                report.choice.reason,
                report.choice.estimates,
                tuple(report.reads),
                report.rows,
                report.seconds,
            ),
            warnings=tuple(_warning(one, names[one.view_id]) for one in self.removals),
            dated=frozenset(
                join.name for join in request.joins if join.view.view.created_timestamp_field
            ),
        )

    def _manifest(self, sums: Mapping[Join, JoinSum], made_with: Mapping[str, str]) -> Manifest:
        request, table = self.question.request, self.entities.table
        return Manifest(
            project=self.project,
            mark=self.question.mark,
            joins=tuple(self._join(join, one) for join, one in sums.items()),
            outputs=tuple((one.name, one.join, one.position) for one in request.outputs),
            timestamp_column=self.asked.timestamp_column,
            known_by=self.asked.known_by,
            engine=self.question.report.choice.engine,
            entity_rows=len(self.entities),
            entity_columns=tuple(table.column_names),
            entity_digest=table_digest(table),
            entity_source=self.entities.source,
            created_at=dt.datetime.now(dt.UTC),
            versions=made_with,
            entity_table=table,
        )

    def _join(self, join: Join, one: JoinSum) -> ManifestJoin:
        view = join.view.view
        return ManifestJoin(
            view=view.name,
            name=join.name,
            features=join.features,
            types=tuple(kind.name for kind in join.types()),
            columns=join.columns,
            ttl=None
            if view.ttl is None
            else (view.ttl.days, view.ttl.seconds, view.ttl.microseconds),
            version=view_version(view),
            read_from="source" if view.name in self.question.from_source else "history",
            matched=one.matched,
            leaked=one.leaked,
            arrivals=one.arrivals.hexdigest(),
            blocks=block_ranges(one.blocks),
            values=None
            if one.values is None
            else " ".join(digest.hexdigest() for _, digest in sorted(one.values.items())),
        )


def _warning(removal: Removal, view: str) -> str:
    when = f"{removal.removed_at:%Y-%m-%d %H:%M:%S} UTC"
    if removal.field is not None:
        return (
            f"{view}: field {removal.field} has since been dropped or narrowed, at {when}: its "
            f"values are not those that were there at the mark"
        )
    what = "an erasure" if removal.load_id is None else f"undoing load {removal.load_id}"
    return (
        f"{view}: {what} has since taken {removal.rows_removed:,} rows out that were there at the "
        f"mark, at {when}"
    )


@asynccontextmanager
async def open_reading(context: Context, entity_df: Any, asked: Asked) -> AsyncIterator[Reading]:
    """Everything of a training set before its rows: it is all checked then."""
    asked.check()
    started = time.perf_counter()
    memory = asked.memory or Memory.of(None)
    names = asked.names(await context.known_catalog())
    inside = isinstance(context, TransactionContext)
    async with context.reading_marked(names) as (session, catalog, now):
        request = asked.find(catalog)
        state = await _state_to_read(session, asked, request, None if inside else now)
        question = await _question(session, asked, request, state, inside=inside)
        removals: list[Removal] = []
        if state.cut and state.mark is not None:
            asked_of = {(one.view.id, feature) for one in request.joins for feature in one.features}
            removals = [
                one
                for one in await removed_since(session, state.mark, question.hidden)
                if one.field is None or (one.view_id, one.field) in asked_of
            ]
        entities = await open_entities(
            session, entity_df, request, asked.timestamp_column, memory.results
        )
        question.report.choice = await choose_engine(session, entities, question, asked.engine)
        types = asked.types or tuple(output.type.arrow for output in request.outputs)
        assembly = Assembly(entities, request, types, question.from_source)
        narrow = len(assembly.schema) <= FEW_COLUMNS
        yield Reading(
            project=context.project,
            session=session,
            asked=asked,
            question=question,
            entities=entities,
            memory=memory,
            assembly=assembly,
            removals=removals,
            copies=state.copies,
            started=started,
            small=narrow and is_small(entities.table, memory.results),
        )


@dataclass(frozen=True)
class _State:
    """The state of the store that is read; ``cut`` where it is not the present one."""

    mark: Mark | None
    cut: bool
    copies: Copies


async def _state_to_read(
    session: Session, asked: Asked, request: Request, now: Mark | None
) -> _State:
    """``now`` is None in a transaction, whose own writes have no mark."""
    mark = await resolve_mark(session, asked.as_of)
    if asked.engine != "daft":
        return _State(mark or now, mark is not None, {})
    copies = await find_copies(session, request)
    return _State(await mark_of(session, request, copies, mark), True, copies)


async def _question(
    session: Session, asked: Asked, request: Request, state: _State, *, inside: bool
) -> Question:
    hidden = {}
    if state.cut and state.mark is not None:
        for join in request.joins:
            if join.view.id not in hidden:
                hidden[join.view.id] = await unseen(session, state.mark, join.view.id)
    return Question(
        request=request,
        report=Report(EngineChoice("sql", ""), asked.progress),
        mark=state.mark,
        as_of=state.cut,
        hidden=hidden,
        known=asked.known_by is not None,
        inside=inside,
        from_source=asked.from_source(request),
    )


async def read_training_set(context: Context, entity_df: Any, asked: Asked) -> TrainingSet:
    """All rows of a training set, in memory or, where they are many, in a temporary file."""
    async with open_reading(context, entity_df, asked) as reading:
        gathered = Collected(reading.assembly.schema, reading.memory.results)
        try:
            async with aclosing(reading.batches()) as batches:
                async for batch in batches:
                    await in_thread(gathered.add, batch, small=reading.small)
            table = await in_thread(gathered.table, small=reading.small)
        finally:
            await in_thread(gathered.close, small=not gathered.on_disk)
        return await reading.result(table)


class HistoricalFeatures(AsyncIterator[pa.RecordBatch]):
    """The rows of a training set batch by batch, memory bounded.

    An async iterator, which may be left early (:meth:`aclose`). When it has ended, ``summary`` is
    a :class:`TrainingSet` without rows: columns, match rates, manifest and explanation.
    """

    def __init__(self, context: Context, entity_df: Any, asked: Asked) -> None:
        # Not a reference to this: the generator is closed as soon as nobody has the iterator.
        self._summary: list[TrainingSet] = []
        self._batches = _stream(context, entity_df, asked, self._summary)

    @property
    def summary(self) -> TrainingSet | None:
        """The set without its rows; None before the end."""
        return self._summary[0] if self._summary else None

    def __aiter__(self) -> HistoricalFeatures:
        return self

    async def __anext__(self) -> pa.RecordBatch:
        return await anext(self._batches)

    async def aclose(self) -> None:
        """Stop reading, and give the connection back."""
        await self._batches.aclose()


async def _stream(
    context: Context, entity_df: Any, asked: Asked, summary: list[TrainingSet]
) -> AsyncGenerator[pa.RecordBatch, None]:
    async with open_reading(context, entity_df, asked) as reading:
        async with aclosing(reading.batches()) as batches:
            async for batch in batches:
                yield batch
        summary.append(await reading.result(reading.assembly.schema.empty_table()))
