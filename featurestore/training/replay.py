"""A training set once more, from its manifest: the same rows, though data came in since."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.context import Context
from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    NotFoundError,
    SchemaMismatchError,
    SourceError,
)
from featurestore.selection import Join, Output, Request
from featurestore.storage.dialect import BLOCK
from featurestore.storage.marks import Removal, removed_since
from featurestore.storage.registry import Catalog, RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import load
from featurestore.training.asked import Asked
from featurestore.training.digest import same_type, table_digest
from featurestore.training.entities import is_sql, read_entities
from featurestore.training.manifest import Manifest, ManifestJoin
from featurestore.training.memory import Memory
from featurestore.training.read import read_training_set
from featurestore.training.report import OnTraining
from featurestore.training.training_set import TrainingSet
from featurestore.types import parse_type

Replayed = TrainingSet | Manifest | Mapping[str, Any] | str | os.PathLike[str]
"""What a training set is made again from; a mapping is what a manifest's JSON holds."""


async def replay(
    context: Context,
    manifest: Replayed,
    entity_df: Any,
    engine: str,
    memory: Memory | None = None,
    progress: OnTraining | None = None,
) -> TrainingSet:
    """The training set of a manifest, read again at its mark, and held to be the same."""
    manifest = await _manifest(manifest)
    if manifest.project != context.project:
        raise DefinitionError(
            f"The manifest is of project {manifest.project!r}, and this store of "
            f"{context.project!r}."
        )
    if manifest.mark is None:
        raise DefinitionError(
            "This training set was read inside a transaction, whose state was not yet the store's: "
            "it cannot be replayed."
        )
    entities = await _entities(manifest, entity_df)
    asked = Asked(
        names=lambda catalog: [one.view for one in manifest.joins if one.view in catalog.views],
        find=lambda catalog: _request(manifest, catalog),
        timestamp_column=manifest.timestamp_column,
        engine=engine,
        as_of=manifest.mark,
        known_by=manifest.known_by,
        read_from={one.view: one.read_from for one in manifest.joins},
        memory=memory,
        progress=progress,
        types=tuple(_type(manifest, join, place) for _, join, place in manifest.outputs),
    )
    found = await read_training_set(context, entities, asked)
    await _check_same(context, manifest, found)
    return replace(found, warnings=())


async def _manifest(given: Replayed) -> Manifest:
    if isinstance(given, TrainingSet):
        if given.manifest is None:
            raise DefinitionError("The training set has no manifest, which its replay needs.")
        return given.manifest
    if isinstance(given, Manifest):
        return given
    if isinstance(given, Mapping):
        return await asyncio.to_thread(_of_mapping, given)
    if isinstance(given, str | os.PathLike):
        return await asyncio.to_thread(Manifest.load, given)
    raise DefinitionError(
        f"manifest: it is a training set, its manifest, or the path of either, not "
        f"{type(given).__name__}."
    )


def _of_mapping(given: Mapping[str, Any]) -> Manifest:
    try:
        text = json.dumps(dict(given))
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"This is no manifest of a training set: {error}.") from error
    return Manifest.from_json(text)


async def _entities(manifest: Manifest, entity_df: Any) -> Any:
    given = entity_df if entity_df is not None else manifest.entity_table
    if given is None:
        given = manifest.entity_source
    if given is None:
        raise DefinitionError(
            "The manifest does not hold the entity table: give it as entity_df, or replay the "
            "training set's Parquet file."
        )
    if is_sql(given):
        return given  # its rows are looked at when they are there
    table = await asyncio.to_thread(read_entities, given)
    digest = await asyncio.to_thread(table_digest, table)
    if digest != manifest.entity_digest:
        raise SchemaMismatchError(_other_entities(manifest, table))
    return table


def _other_entities(manifest: Manifest, table: pa.Table) -> str:
    return f"The entity table is not the one of the manifest: {_difference(manifest, table)}."


def _difference(manifest: Manifest, table: pa.Table) -> str:
    """What tells an entity table from that of the manifest, as far as that one is known."""
    if table.num_rows != manifest.entity_rows:
        return f"that had {manifest.entity_rows:,} rows, this has {table.num_rows:,}"
    if tuple(table.column_names) != manifest.entity_columns:
        there, here = ", ".join(manifest.entity_columns), ", ".join(table.column_names)
        return f"that had the columns {there}; this has {here}"
    if manifest.entity_table is None:
        return "the content of a column differs, or its type"
    for before, now in zip(manifest.entity_table.schema, table.schema, strict=True):
        if not same_type(before.type, now.type):
            return f"its column {now.name!r} was {before.type}, and is {now.type} here"
    return "the content differs"


def _type(manifest: Manifest, join: int, position: int) -> Any:
    return parse_type(manifest.joins[join].types[position]).arrow


def _request(manifest: Manifest, catalog: Catalog) -> Request:
    joins = tuple(_join(one, catalog.view(one.view)) for one in manifest.joins)
    types = [join.types() for join in joins]
    outputs = tuple(
        Output(name, join, position, types[join][position])
        for name, join, position in manifest.outputs
    )
    return Request(joins, outputs, catalog.revision)


def _join(one: ManifestJoin, registered: RegisteredView) -> Join:
    """A view joined as it was: by its ttl of then, whatever it is now."""
    view = registered.view
    for feature in one.features:
        if feature not in view.types:
            raise NotFoundError.of(
                "feature", feature, view.types, f" in view {view.name!r} any more"
            )
    keys = tuple(key for key, _ in one.columns)
    if keys != tuple(view.join_keys):
        raise DefinitionError(
            f"view {view.name!r} has other join keys than when the training set was made."
        )
    ttl = None if one.ttl is None else dt.timedelta(*one.ttl)
    return Join(
        replace(registered, view=replace(view, ttl=ttl)), one.name, one.features, one.columns
    )


async def _check_same(context: Context, manifest: Manifest, found: TrainingSet) -> None:
    again = found.manifest
    assert again is not None
    assert manifest.mark is not None
    if again.entity_digest != manifest.entity_digest:  # of a query
        assert again.entity_table is not None
        raise SchemaMismatchError(_other_entities(manifest, again.entity_table))
    changed = [
        one
        for one, now in zip(manifest.joins, again.joins, strict=True)
        if (one.arrivals, one.values) != (now.arrivals, now.values)
    ]
    for one in changed:
        if one.read_from == "source":
            raise SourceError(
                f"The source of view {one.view!r} holds other rows than when the training set was "
                f"made."
            )
    if not changed and not found.warnings:
        return
    joins = [one for one in manifest.joins if one.read_from == "history"]
    names = {one.view for one in joins}
    async with context.reading(names) as (session, catalog):
        views = {catalog.view(name).id: name for name in names}
        removals = await removed_since(session, manifest.mark, views)
        used = [
            one
            for one in removals
            if _was_used(one, [join for join in joins if join.view == views[one.view_id]], changed)
        ]
        lost = [await _named(session, one, views[one.view_id]) for one in used]
    if lost:
        raise NotFoundError(
            "The training set cannot be made again: what it used is gone.\n" + "\n".join(lost)
        )
    if changed:
        views_changed = ", ".join(sorted({one.view for one in changed}))
        raise FeatureStoreError(
            f"The rows of {views_changed} are other ones than when the training set was made, "
            f"though nothing was undone or erased: history was changed by other means."
        )


def _was_used(
    removal: Removal, joins: Sequence[ManifestJoin], changed: Sequence[ManifestJoin]
) -> bool:
    """Whether joins of its view had what was removed; of rows it is known which are of one load."""
    if removal.field is not None:
        return any(removal.field in one.features for one in joins)
    return any(
        first // BLOCK <= end and start <= last // BLOCK
        for one in joins
        if one in changed
        for start, end in one.blocks
        for first, last in removal.arrivals
    )


async def _named(session: Session, removal: Removal, view: str) -> str:
    when = f"{removal.removed_at:%Y-%m-%d %H:%M:%S} UTC"
    if removal.field is not None:
        return f"  {view}: values of field {removal.field}, which was dropped or narrowed at {when}"
    rows = f"{removal.rows_removed:,} row{'s' if removal.rows_removed != 1 else ''}"
    if removal.load_id is None:
        return f"  {view}: {rows} of an entity that was erased at {when}"
    query = sa.select(load.c.source).where(load.c.id == removal.load_id)
    source = (await session.execute(query)).scalar_one_or_none()
    return f"  {view}: {rows} of load {removal.load_id} ({source}), undone at {when}"
