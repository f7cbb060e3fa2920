"""Point-in-time joins by Daft on Ray over Parquet copies: for what one machine does not hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.errors import FeatureStoreError, NotFoundError, SourceError
from featurestore.export.copy import Copy, read_copy
from featurestore.selection import Join, Request
from featurestore.storage.marks import Ranges
from featurestore.storage.waiting import uninterrupted
from featurestore.training.daft_job import JoinPlan, Plan, arrival_column, leak_column
from featurestore.training.daft_process import check_installed, cluster_address, run_job
from featurestore.training.latest import MICROSECOND
from featurestore.training.rule import ROW
from featurestore.types import Bool, Int64

_REMOVAL_SECONDS = 10.0


@dataclass(frozen=True)
class AsOf:
    """What counts of a copy's rows: arrivals up to ``arrival``, but those in ``hidden``, as
    :func:`featurestore.storage.marks.unseen` gives them for the view."""

    arrival: int
    hidden: Ranges = ()


@dataclass(frozen=True)
class JoinedFiles:
    """The answer, in the order of the entity rows: ``files`` one after the other, each of them
    ordered by ``__row``.

    ``schema`` has the entity table's columns, the outputs, and ``__arrival_0``, ``__arrival_1`` …
    for each join: the arrival of the row that was found, null where there was none. ``__leaked_0``
    … say whether the plain rule's row was created after the entity row's time. ``matched``
    counts the rows that found one, by join. A file may spell a type in another way (large_string
    for string): :meth:`batches` gives those of the schema.
    """

    files: tuple[Path, ...]
    schema: pa.Schema
    rows: int
    matched: tuple[int, ...]

    def batches(self, size: int = 65_536) -> Iterator[pa.RecordBatch]:
        """The rows in their order, at most ``size`` at a time. For a thread."""
        import pyarrow.parquet as pq

        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=size):
                    table = pa.Table.from_batches([batch]).cast(self.schema)
                    yield from table.to_batches()


async def join_exports(
    copies: Mapping[str, str | os.PathLike[str]],
    entities: str | os.PathLike[str] | pa.Table,
    request: Request,
    target: str | os.PathLike[str],
    *,
    as_of: Mapping[str, AsOf] | None = None,
    known_by_created: bool = False,
) -> JoinedFiles:
    """Join ``entities`` with the copies of the request's views into the folder ``target``.

    ``copies`` has a folder for each view's name. ``entities`` is a Parquet file or a table with
    the columns ``__row`` (distinct numbers, in the order of which the answer is), ``__at`` and the
    key columns, checked by :func:`featurestore.training.entities.prepare_entities`. The folder is
    made, and must be new or empty; it and the copies must be reachable under their paths by all
    machines of the cluster. ``as_of`` limits what counts, by the view's name.

    A call that fails or is cancelled ends the job and leaves no ``target``.
    """
    await asyncio.to_thread(check_installed)
    folder = _absolute(target)
    joins = await asyncio.to_thread(
        lambda: [_join_plan(copies, join, as_of or {}, known_by_created) for join in request.joins]
    )
    async with _new_folder(folder), _scratch() as scratch:
        path, columns = await asyncio.to_thread(_placed, entities, folder)
        outputs = [(output.name, output.join, output.position) for output in request.outputs]
        address = cluster_address()
        plan = Plan(str(path), str(folder), joins, outputs, address, str(scratch))
        files = await run_job(plan)
        if path.parent == folder:
            await asyncio.to_thread(path.unlink)
        return await asyncio.to_thread(_collected, folder, files, _schema(columns, request))


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.fspath(path)))


# --- the plan ---------------------------------------------------------------------------------


def _join_plan(
    copies: Mapping[str, str | os.PathLike[str]],
    join: Join,
    as_of: Mapping[str, AsOf],
    known_by_created: bool,
) -> JoinPlan:
    view = join.view.view
    copy = _copy(copies.get(view.name), join)
    files: dict[str, list[str]] = {}
    for file in copy.files:
        files.setdefault(str(file.bucket), []).append(str(copy.folder / file.path))
    limit = as_of.get(view.name)
    ttl = join.view.ttl
    return JoinPlan(
        keys=[(key, column, str(view.join_keys[key])) for key, column in join.columns],
        features=[(name, str(view.types[name])) for name in join.features],
        files=files,
        buckets=copy.buckets,
        ttl=None if ttl is None else ttl // MICROSECOND,
        until=None if limit is None else limit.arrival,
        hidden=[] if limit is None else [list(span) for span in limit.hidden],
        known_by_created=known_by_created,
    )


def _copy(folder: str | os.PathLike[str] | None, join: Join) -> Copy:
    name = join.view.name
    way_out = f"Run store.export_history({name!r}, path) first."
    copy = None if folder is None else read_copy(os.path.abspath(folder))
    if copy is None or copy.mark is None:
        where = "" if folder is None else f" in {os.fspath(folder)}"
        raise NotFoundError(f"There is no copy of view {name!r}{where} to join from. {way_out}")
    if copy.view != name:
        raise SourceError(f"{copy.folder} has a copy of view {copy.view!r}, not of {name!r}.")
    types = join.view.view.types
    wanted = {feature: types[feature] for feature in join.features}
    if dict(copy.keys) != join.view.view.join_keys or wanted.items() - copy.features.items():
        raise SourceError(
            f"The copy of view {name!r} in {copy.folder} has other columns than the view has now. "
            f"{way_out}"
        )
    return copy


def _placed(
    entities: str | os.PathLike[str] | pa.Table, folder: Path
) -> tuple[Path, Sequence[pa.Field]]:
    """Where the job finds the entity rows, and their columns."""
    import pyarrow.parquet as pq

    try:
        if isinstance(entities, pa.Table):
            path = folder / "_entities.parquet"
            pq.write_table(entities, path, row_group_size=1 << 18)
            return path, list(entities.schema)
        path = Path(os.path.abspath(os.fspath(entities)))
        return path, list(pq.read_schema(path))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"The entity rows cannot be put into {folder}: {error}") from error


def _schema(columns: Sequence[pa.Field], request: Request) -> pa.Schema:
    outputs = [pa.field(output.name, output.type.arrow) for output in request.outputs]
    joins = range(len(request.joins))
    arrivals = [pa.field(arrival_column(number), Int64.arrow) for number in joins]
    leaks = [pa.field(leak_column(number), Bool.arrow) for number in joins]
    return pa.schema([*columns, *outputs, *arrivals, *leaks])


# --- folders --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _new_folder(folder: Path) -> AsyncIterator[None]:
    """A folder that stays when all goes well."""

    def make() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = sorted(os.listdir(folder))
        except OSError as error:
            raise SourceError(f"{folder} cannot be written: {error.strerror}.") from error
        if found:
            raise SourceError(f"{folder} is not empty: it has {found[0]!r}. Name a new folder.")

    await uninterrupted(asyncio.to_thread(make))
    try:
        yield
    except BaseException:
        await uninterrupted(asyncio.to_thread(shutil.rmtree, folder, True), seconds=None)
        raise


@contextlib.asynccontextmanager
async def _scratch() -> AsyncIterator[Path]:
    """Where a Ray of this machine keeps its files: a short path, for its sockets' sake."""
    path = await uninterrupted(asyncio.to_thread(tempfile.mkdtemp, prefix="ray-"))
    try:
        yield Path(path)
    finally:
        await uninterrupted(asyncio.to_thread(_removed, Path(path)), seconds=None)


def _removed(path: Path) -> None:
    """Remove Ray's files: its processes end soon after the job, and write until then."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists() or time.monotonic() > deadline:
            return
        time.sleep(0.05)


# --- the answer -------------------------------------------------------------------------------


def _collected(folder: Path, files: Sequence[str], schema: pa.Schema) -> JoinedFiles:
    """The files in the order of their rows, named by it."""
    import pyarrow.parquet as pq

    joins = [name for name in schema.names if name.startswith(arrival_column(0)[:-1])]
    found: list[tuple[int, int, Path]] = []
    rows, nulls = 0, dict.fromkeys(joins, 0)
    for file in files:
        path = Path(file.removeprefix("file://"))
        path = path if path.is_absolute() else folder / path
        metadata = pq.read_metadata(path)
        if not metadata.num_rows:
            path.unlink()
            continue
        span = _span(metadata, ROW)
        rows += metadata.num_rows
        for name in joins:
            nulls[name] += _nulls(metadata, name)
        found.append((*span, path))
    found.sort()
    for (_, last, _), (first, _, path) in pairwise(found):
        if first <= last:
            raise FeatureStoreError(f"The job on Ray has written rows out of order ({path}).")
    named = []
    for number, (_, _, path) in enumerate(found):
        named.append(path.rename(folder / f"part-{number:05d}.parquet"))
    return JoinedFiles(tuple(named), schema, rows, tuple(rows - nulls[name] for name in joins))


def _columns(metadata: Any, name: str) -> Iterator[Any]:
    names = metadata.schema.to_arrow_schema().names
    leaf = [metadata.schema.column(i).path.split(".")[0] for i in range(len(metadata.schema))]
    assert name in names
    for group in range(metadata.num_row_groups):
        yield metadata.row_group(group).column(leaf.index(name)).statistics


def _span(metadata: Any, name: str) -> tuple[int, int]:
    statistics = list(_columns(metadata, name))
    return min(one.min for one in statistics), max(one.max for one in statistics)


def _nulls(metadata: Any, name: str) -> int:
    return sum(one.null_count for one in _columns(metadata, name))
