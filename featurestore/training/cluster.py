"""The engine ``daft``: copies of history, joined on a cluster, as the answers of an engine."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import DefinitionError, NotFoundError
from featurestore.export.copy import Copy, read_copy
from featurestore.export.run import registered_copies
from featurestore.selection import Request
from featurestore.storage.marks import Mark, removed_since, unseen, without
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.waiting import uninterrupted
from featurestore.training.daft_engine import AsOf, JoinedFiles, join_exports
from featurestore.training.daft_job import arrival_column, leak_column
from featurestore.training.entities import Entities
from featurestore.training.rule import Matched, Question

Copies = Mapping[str, Copy]


async def find_copies(session: Session, request: Request) -> Copies:
    """The copy of each view of a request, the newest that is there.

    Raises :class:`NotFoundError` where there is none, and where rows were taken out of history
    that the copy still has.
    """
    found = {}
    for view in {join.view.id: join.view for join in request.joins}.values():
        found[view.name] = copy = await _find_copy(session, view)
        assert copy.mark is not None
        if await removed_since(session, copy.mark, [view.id]):
            raise NotFoundError(
                f"The copy of view {view.name!r} in {copy.folder} has rows that were undone or "
                f"erased since. Run store.export_history({view.name!r}, {str(copy.folder)!r})."
            )
    return found


async def _find_copy(session: Session, view: RegisteredView) -> Copy:
    for folder in await registered_copies(session, view):
        copy = await asyncio.to_thread(read_copy, folder)
        if copy is not None and copy.mark is not None and copy.view == view.name:
            return copy
    raise NotFoundError(
        f"engine='daft' joins from Parquet copies, and view {view.name!r} has none here. Run "
        f"store.export_history({view.name!r}, path) first."
    )


async def mark_of(session: Session, request: Request, copies: Copies, wanted: Mark | None) -> Mark:
    """The mark to read at: the one that is asked for, or the latest that all copies have come to.

    Raises :class:`DefinitionError` where a copy has not come to what is asked for.
    """
    marks = {name: copy.mark for name, copy in copies.items() if copy.mark is not None}
    if wanted is None:
        wanted = min(marks.values(), key=lambda mark: mark.at)
    views = {join.view.name: join.view.id for join in request.joins}
    for name, mark in marks.items():
        if await _lacks(session, views[name], mark, wanted):
            raise DefinitionError(
                f"The copy of view {name!r} is of {mark.at:%Y-%m-%d %H:%M:%S} UTC, and older than "
                f"what is asked for. Run store.export_history({name!r}, "
                f"{str(copies[name].folder)!r}) first."
            )
    return wanted


async def _lacks(session: Session, view_id: int, mark: Mark, wanted: Mark) -> bool:
    """Whether rows that were there at ``wanted`` may not have been at ``mark``."""
    if mark.arrival < wanted.arrival:
        return True
    # Of an earlier number, and yet committed later: a load, or a step of one, that was in flight.
    late = await unseen(session, mark, view_id)
    late = without([(first, min(last, wanted.arrival)) for first, last in late], ())
    return bool(late and without(late, await unseen(session, wanted, view_id)))


async def join_on_cluster(
    entities: Entities, question: Question, copies: Copies
) -> AsyncGenerator[list[Matched], None]:
    """The answers of a job by Daft on Ray. Its files lie beside the first copy meanwhile, where
    all machines of the cluster find them."""
    assert question.mark is not None
    limits = {
        join.view.name: AsOf(question.mark.arrival, question.hidden.get(join.view.id, ()))
        for join in question.request.joins
    }
    folders = {name: copy.folder for name, copy in copies.items()}
    target = next(iter(folders.values())).parent / f"_training-{secrets.token_hex(8)}"
    try:
        joined = await join_exports(
            folders,
            entities.keys,
            question.request,
            target,
            as_of=limits,
            known_by_created=question.known,
        )
        batches = joined.batches()
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield await asyncio.to_thread(_matched, batch, question.request, joined)
    finally:
        await uninterrupted(asyncio.to_thread(shutil.rmtree, Path(target), True), seconds=None)


def _matched(batch: pa.RecordBatch, request: Request, joined: JoinedFiles) -> list[Matched]:
    columns = dict(zip(joined.schema.names, batch.columns, strict=True))
    features: list[dict[int, pa.Array]] = [{} for _ in request.joins]
    for output in request.outputs:
        features[output.join][output.position] = columns[output.name]
    return [
        Matched(
            columns[arrival_column(number)],
            pc.sum(columns[leak_column(number)], min_count=0).as_py(),
            tuple(of_join[position] for position in range(len(join.features))),
        )
        for number, (join, of_join) in enumerate(zip(request.joins, features, strict=True))
    ]
