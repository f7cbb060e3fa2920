"""An export: from the mark that a copy has come to, to what the store knows now."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.context import Context
from featurestore.errors import DefinitionError, SourceError
from featurestore.export.copy import (
    Copy,
    DataFile,
    check_folder,
    check_names,
    failures,
    replace_copy,
    write_copy,
)
from featurestore.export.lock import locked
from featurestore.export.removals import files_hit, small_files, surviving
from featurestore.export.writer import CopyWriter
from featurestore.reports import ExportProgress, ExportReport, OnExport
from featurestore.storage.dialect import Dialect
from featurestore.storage.marks import Mark, Ranges, removed_since, take_mark, unseen
from featurestore.storage.registry import Catalog, RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import (
    ARRIVAL,
    SYSTEM_TYPES,
    export,
    load,
    revision_mark,
)
from featurestore.storage.waiting import uninterrupted
from featurestore.types import FeatureType

BUCKETS = 16
"""Of a copy for which nothing else is asked: some millions of rows in each make a copy of a
hundred million."""

MAX_BUCKETS = 512
"""A file of each is open while an export writes."""

STREAM_ROWS = 16_384
"""Rows per fetch."""


async def export_history(
    context: Context,
    name: str,
    path: str | os.PathLike[str],
    buckets: int | None,
    progress: OnExport | None,
) -> ExportReport:
    """See :meth:`featurestore.FeatureStore.export_history`."""
    started = time.perf_counter()
    folder = _folder(path)
    _check_buckets(buckets)
    async with context.reading([name]) as (_, catalog):
        catalog.view(name)  # one that is not there is told before anything is made
    async with _held(folder) as found:
        async with context.reading([name]) as (session, catalog):
            step = await _prepared(session, catalog, name, folder, found, buckets)
            after, counts = await _carried_out(session, catalog, step, _Progress(name, progress))
        before = step.before
        await uninterrupted(asyncio.to_thread(_put_in_place, before, after), seconds=None)
        async with context.transaction() as session:
            await _register(session, step.view, after)
    return ExportReport(
        name,
        str(folder),
        rows_added=counts.added,
        rows_removed=counts.removed,
        files_written=counts.written,
        files_rewritten=counts.rewritten,
        mark=str(after.mark),
        seconds=time.perf_counter() - started,
        rows=after.rows,
        remade=step.remade,
    )


@dataclass(frozen=True)
class _Step:
    """What an export has to do: from ``before``, which the folder has, to ``mark``.

    A copy of another shape of the view's table is ``remade``: nothing in it counts any more.
    """

    view: RegisteredView
    before: Copy
    mark: Mark
    newest: tuple[int, str] | None
    shape: str
    remade: bool
    removed: Ranges


@dataclass
class _Counts:
    added: int = 0
    removed: int = 0
    written: int = 0
    rewritten: int = 0


@dataclass
class _Progress:
    """Rows that were read for the files of the copy, told to who wants to know."""

    view: str
    tell: OnExport | None
    rows: int = 0
    total: int = 0

    def reach(self, rows: int, *, finishing: bool = False) -> None:
        """So many more have been read."""
        self.rows += rows
        if self.tell is not None:
            # Rows of files that are written anew may be fewer than was thought.
            total = self.rows if finishing else self.total
            self.tell(ExportProgress(self.view, self.rows, total, finishing))


# --- the folder -----------------------------------------------------------------------------


def _folder(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "://" in text:
        raise DefinitionError(
            f"path={path!r}: a copy of history goes into a folder of a file system; mount an "
            f"object store to have it there, or upload the folder."
        )
    return Path(os.path.abspath(text))


def _check_buckets(buckets: int | None) -> None:
    whole = isinstance(buckets, int) and not isinstance(buckets, bool)
    if buckets is not None and not (whole and 1 <= buckets <= MAX_BUCKETS):
        raise DefinitionError(f"buckets={buckets!r}: it is a whole number from 1 to {MAX_BUCKETS}.")


@asynccontextmanager
async def _held(folder: Path) -> AsyncIterator[Copy | None]:
    """The folder to oneself, and what is in it."""
    async with AsyncExitStack() as stack:
        lock = locked(folder)

        async def release() -> None:
            await uninterrupted(asyncio.to_thread(lock.__exit__, None, None, None))

        def check() -> None:
            if folder.exists():
                check_names(folder)

        async def take() -> Copy | None:
            with failures(folder, "read"):
                await asyncio.to_thread(check)  # or the lock would be left in a wrong folder
            await asyncio.to_thread(lock.__enter__)
            stack.push_async_callback(release)
            with failures(folder, "read"):
                return await asyncio.to_thread(check_folder, folder)

        # A thread that got the lock after its caller was cancelled would keep it.
        yield await uninterrupted(take(), seconds=None)


def _put_in_place(before: Copy, after: Copy) -> None:
    with failures(before.folder):
        replace_copy(before, after)


# --- what there is to do ----------------------------------------------------------------------


async def _prepared(
    session: Session,
    catalog: Catalog,
    name: str,
    folder: Path,
    found: Copy | None,
    buckets: int | None,
) -> _Step:
    registered = catalog.view(name)
    view = registered.view
    mark, shape = await take_mark(session), await _shape(session, catalog, registered)
    if found is not None:
        _check_same(found, catalog.project, registered, buckets)
        await _check_origin(session, found, registered)
    newest = await _newest_load(session, registered)
    of_folder = buckets or BUCKETS if found is None else found.buckets
    before = found or Copy(
        folder,
        catalog.project,
        name,
        view.join_keys,
        view.types,
        of_folder if view.join_keys else 1,
    )
    if found is None:
        # First of all, so that what a broken first export leaves is known to be one's own.
        # A thread that wrote on after its caller was cancelled would write into another's export.
        await uninterrupted(asyncio.to_thread(_begin, before), seconds=None)
    known = before.mark is not None and before.mark.arrival <= mark.arrival
    as_before = before.shape == shape and before.has_columns(view.join_keys, view.types)
    remade = before.mark is not None and not (known and as_before)
    removed: list[tuple[int, int]] = []
    if before.mark is not None and not remade:
        for removal in await removed_since(session, before.mark, [registered.id]):
            removed += removal.arrivals
    return _Step(registered, before, mark, newest, shape, remade, removed)


def _begin(copy: Copy) -> None:
    with failures(copy.folder):
        write_copy(copy)


def _check_same(found: Copy, project: str, registered: RegisteredView, buckets: int | None) -> None:
    if (found.project, found.view) != (project, registered.name):
        raise SourceError(
            f"{found.folder} has a copy of view {found.view!r} of project {found.project!r}, and "
            f"cannot have one of {registered.name!r} of {project!r}: name a folder of its own."
        )
    if buckets not in (None, found.buckets) and found.keys:
        raise DefinitionError(
            f"buckets={buckets}: the copy in {found.folder} was made with {found.buckets}, which "
            f"stays. Leave it out, or export into another folder."
        )


async def _check_origin(session: Session, found: Copy, registered: RegisteredView) -> None:
    """Another database may have a view of that name too, and its arrivals mean other rows."""
    if found.newest is None:
        return
    number, started = found.newest
    query = sa.select(load.c.started_at).where(load.c.id == number, load.c.view_id == registered.id)
    row = (await session.execute(query)).first()
    if row is None or row.started_at.isoformat() != started:
        raise SourceError(
            f"{found.folder} has a copy of view {registered.name!r} as another database has it, or "
            f"as this one had it before it was put back to an earlier state. Remove the folder, or "
            f"name another one."
        )


async def _newest_load(session: Session, registered: RegisteredView) -> tuple[int, str] | None:
    query = sa.select(load.c.id, load.c.started_at).where(load.c.view_id == registered.id)
    row = (await session.execute(query.order_by(load.c.id.desc()).limit(1))).first()
    return None if row is None else (row.id, row.started_at.isoformat())


async def _shape(session: Session, catalog: Catalog, registered: RegisteredView) -> str:
    """What is another one when a column was taken away and came again, or a type was narrowed and
    widened: the columns are the same then, and their values are not."""
    if session.dialect.single_writer:
        return f"revision {catalog.revision}"
    name = session.connection.dialect.identifier_preparer.format_table(registered.history)
    query = sa.text(
        "SELECT pg_relation_filenode(c.oid) AS file, array_agg(a.attnum ORDER BY a.attnum) AS "
        "columns FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND "
        "NOT a.attisdropped WHERE c.oid = to_regclass(:name) GROUP BY c.oid"
    )
    row = (await session.execute(query, {"name": name})).one()
    return f"file {row.file}, columns {','.join(map(str, row.columns))}"


# --- doing it ---------------------------------------------------------------------------------


async def _carried_out(
    session: Session, catalog: Catalog, step: _Step, progress: _Progress
) -> tuple[Copy, _Counts]:
    """The copy's next state, whose files are all there, and what was done; its writer leaves
    nothing where that fails."""
    before, view = step.before, step.view.view
    after = replace(
        before,
        keys=view.join_keys,
        features=view.types,
        shape=step.shape,
        mark=step.mark,
        newest=step.newest,
        exports=before.exports + 1,
    )
    writer = CopyWriter(after, after.exports)
    counts = _Counts()
    try:
        with failures(before.folder):
            kinds, query = await _query_of_new_rows(session, catalog, step)
            if progress.tell is not None:
                progress.total = await _count(session, query)
            kept = await _rewritten(writer, step, counts, progress)
            async for rows in session.stream(query, size=STREAM_ROWS):
                table = await asyncio.to_thread(_table, session.dialect, kinds, rows)
                await asyncio.to_thread(writer.add, table)
                counts.added += table.num_rows
                progress.reach(table.num_rows)
            progress.reach(0, finishing=True)
            written = await asyncio.to_thread(writer.finish)
    except BaseException:
        await uninterrupted(asyncio.to_thread(writer.discard), seconds=None)
        raise
    counts.written = len(written)
    return replace(after, files=(*kept, *written)), counts


async def _rewritten(
    writer: CopyWriter, step: _Step, counts: _Counts, progress: _Progress
) -> list[Any]:
    """Put what stays of files that cannot stay into the writer; the files that can."""
    before = step.before
    if step.remade:
        counts.removed, counts.rewritten = before.rows, len(before.files)
        return []
    hit, counts.removed = await asyncio.to_thread(files_hit, before, step.removed)
    gone = {file.path for file in hit}
    hit += small_files(file for file in before.files if file.path not in gone)
    counts.rewritten = len(hit)
    progress.total += sum(file.rows for file in hit) - counts.removed
    progress.reach(0)

    def rewrite(file: DataFile) -> int:
        written = 0
        for rows in surviving(before, file, step.removed):
            writer.add(rows)
            written += rows.num_rows
        return written

    for file in hit:
        progress.reach(await asyncio.to_thread(rewrite, file))
    return [file for file in before.files if file not in hit]


async def _query_of_new_rows(
    session: Session, catalog: Catalog, step: _Step
) -> tuple[dict[str, FeatureType], sa.Select[Any]]:
    """What asks for the rows that are there now and are not in the copy, and their columns."""
    view, history, dialect = step.view.view, step.view.history, session.dialect
    kinds: dict[str, FeatureType] = {**view.join_keys, **SYSTEM_TYPES, **view.types}
    columns = [
        dialect.read(kind, history.c[name]).label(f"c{number}")
        for number, (name, kind) in enumerate(kinds.items())
    ]
    query = sa.select(*columns).prefix_with(revision_mark(catalog.revision))
    mark = step.before.mark
    if mark is not None and not step.remade:
        arrival = history.c[ARRIVAL]
        late = await unseen(session, mark, step.view.id)
        spans = [arrival.between(first, min(last, mark.arrival)) for first, last in late]
        query = query.where(sa.or_(arrival > mark.arrival, *spans))
    return kinds, query


async def _count(session: Session, query: sa.Select[Any]) -> int:
    """How many rows a query will give: a fraction of the time that it takes to read them."""
    counted = query.with_only_columns(sa.func.count(), maintain_column_froms=True)
    return int((await session.execute(counted)).scalar_one())


def _table(
    dialect: Dialect, kinds: Mapping[str, FeatureType], rows: Sequence[Sequence[Any]]
) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [
        dialect.arrow(kind, column) for kind, column in zip(kinds.values(), columns, strict=True)
    ]
    schema = pa.schema([(name, kind.arrow) for name, kind in kinds.items()])
    return pa.Table.from_arrays(arrays, schema=schema)


async def _register(session: Session, view: RegisteredView, copy: Copy) -> None:
    """Note where the copy is, so that a training set can be joined from it."""
    entry = {"mark": str(copy.mark), "exported_at": await session.dialect.now(session)}
    statement = session.dialect.upsert(export).values(
        view_id=view.id, path=str(copy.folder), **entry
    )
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[export.c.view_id, export.c.path], set_=entry
        )
    )


async def registered_copies(session: Session, view: RegisteredView) -> list[Path]:
    """The folders of a view's copies as they were noted, the one exported last first. A folder
    may be gone since, or on another machine: its state decides."""
    query = sa.select(export.c.path).where(export.c.view_id == view.id)
    rows = await session.execute(query.order_by(export.c.exported_at.desc()))
    return [Path(row.path) for row in rows]
