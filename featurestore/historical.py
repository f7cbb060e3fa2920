"""The calls that read history: training sets, their replay, and why a value is what it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from featurestore.context import Context
from featurestore.definitions import FeatureView
from featurestore.errors import DefinitionError
from featurestore.repository import entity_keys, moment
from featurestore.selection import Features, resolve
from featurestore.training.asked import Asked, AsOf, Engine, ReadFrom, names_of
from featurestore.training.candidates import explain
from featurestore.training.explain import Explanation, check_question
from featurestore.training.memory import Memory
from featurestore.training.read import HistoricalFeatures, read_training_set
from featurestore.training.replay import Replayed, replay
from featurestore.training.report import OnTraining
from featurestore.training.rule import KnownBy
from featurestore.training.training_set import TrainingSet

ViewName = str | FeatureView


def view_name(view: ViewName) -> str:
    """The name of a view given as such or by name."""
    if isinstance(view, FeatureView):
        return view.name
    if isinstance(view, str):
        return view
    raise DefinitionError(f"{view!r} is no view: give a FeatureView or its name.")


class HistoricalCalls:
    """What a store and a transaction read of history."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        engine: Engine = "auto",
        full_feature_names: bool = False,
        as_of: AsOf = None,
        known_by: KnownBy | None = None,
        read_from: ReadFrom | Mapping[str, ReadFrom] = "history",
        memory_limit: int | str | None = None,
        progress: OnTraining | None = None,
    ) -> TrainingSet:
        """Each entity row with the features as they were known at its time.

        ``entity_df`` is any table (Arrow, pandas, Polars …) with the join keys and
        ``timestamp_column``, a path to Parquet, or the text of a query of the store's database.
        All its rows and columns are kept, in order; features are null where nothing matches.

        ``engine`` is ``"sql"`` (in the database), ``"duckdb"`` (beside it, for many rows),
        ``"daft"`` (on a cluster, from :meth:`FeatureStore.export_history`), or by default the one
        that takes the least time: :meth:`TrainingSet.explain` tells why.
        With ``as_of``, a time or a :class:`Mark`, the store is read as it was then. With
        ``known_by="created_timestamp"`` only rows count that were created by the entity row's
        time. ``read_from="source"`` joins the views' own files, which need not be loaded; a
        mapping says so for single views. ``memory_limit`` (bytes, or ``"4GB"``) is what DuckDB may
        hold before it goes to the disk; history and results have half as much again each.
        ``progress`` is called with a :class:`TrainingProgress` now and then.
        """
        asked = _asked(
            features, full_feature_names, timestamp_column, engine, as_of, known_by, read_from,
            memory_limit, progress,
        )  # fmt: skip
        return await read_training_set(self._context, entity_df, asked)

    def stream_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        engine: Engine = "auto",
        full_feature_names: bool = False,
        as_of: AsOf = None,
        known_by: KnownBy | None = None,
        read_from: ReadFrom | Mapping[str, ReadFrom] = "history",
        memory_limit: int | str | None = None,
        progress: OnTraining | None = None,
    ) -> HistoricalFeatures:
        """The same rows as :meth:`get_historical_features`, batch by batch, memory bounded: an
        async iterator, whose ``summary`` has match rates and manifest when it has ended."""
        asked = _asked(
            features, full_feature_names, timestamp_column, engine, as_of, known_by, read_from,
            memory_limit, progress,
        )  # fmt: skip
        return HistoricalFeatures(self._context, entity_df, asked)

    async def explain(
        self,
        view: ViewName,
        keys: Mapping[str, Any],
        at: dt.datetime | None = None,
        *,
        known_by: KnownBy | None = None,
        limit: int = 10,
    ) -> Explanation:
        """Why a training set has the values that it has for ``keys`` at ``at``; printing it tells.

        ``keys`` has all join keys of the view ({} for a global one). ``at`` is by default the
        database's clock, and the explanation then says what online has, too; a naive one is UTC.
        With ``known_by`` only rows count that were created by then. At most ``limit`` rows are
        shown: the one that decides, those next to it, and what comes next after ``at``.

        Raises :class:`SchemaMismatchError` for keys that are missing, unknown or mistyped.
        """
        check_question(known_by, limit)
        name, when = view_name(view), None if at is None else moment(at, "at")
        async with self._context.reading([name]) as (session, catalog):
            found = catalog.view(name)
            return await explain(
                session,
                found,
                entity_keys(found, keys),
                when,
                known_by=known_by,
                limit=limit,
                revision=catalog.revision,
            )

    async def replay(
        self,
        manifest: Replayed,
        entity_df: Any = None,
        *,
        engine: Engine = "auto",
        memory_limit: int | str | None = None,
        progress: OnTraining | None = None,
    ) -> TrainingSet:
        """The training set of a manifest once more: the same rows, whatever came in since.

        ``manifest`` is a training set, its manifest (or the mapping that is in one's JSON), or the
        path of one that was saved: of JSON, or of the set's own Parquet file. ``entity_df`` is the
        entity table where the manifest has it no more; another one is refused. ``engine``,
        ``memory_limit`` and ``progress``, which do not change the rows, are as in
        :meth:`get_historical_features`. Raises :class:`NotFoundError`
        that names what was undone or erased of the rows that the set used.
        """
        memory = None if memory_limit is None else Memory.of(memory_limit)
        return await replay(self._context, manifest, entity_df, engine, memory, progress)


def _asked(
    features: Features,
    full_feature_names: bool,
    timestamp_column: str,
    engine: str,
    as_of: AsOf,
    known_by: str | None,
    read_from: str | Mapping[str, str],
    memory_limit: int | str | None,
    progress: OnTraining | None,
) -> Asked:
    if isinstance(features, Iterator):  # it is gone through again
        features = list(features)
    return Asked(
        names=partial(names_of, features),
        find=partial(resolve, features, full_feature_names=full_feature_names),
        timestamp_column=timestamp_column,
        engine=engine,
        as_of=as_of,
        known_by=known_by,
        read_from=read_from,
        memory=None if memory_limit is None else Memory.of(memory_limit),
        progress=progress,
    )
