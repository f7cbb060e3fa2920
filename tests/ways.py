"""The ways through the engines of a training set, which a test may ask for by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import featurestore as fs
from featurestore.selection import resolve
from featurestore.training.asked import Asked, names_of
from featurestore.training.memory import Memory
from featurestore.training.read import HistoricalFeatures, read_training_set

IN_MEMORY = Memory(engine=256 << 20, history=64 << 20, results=64 << 20, threads=1)
ON_DISK = Memory(engine=256 << 20, history=0, results=0, threads=2)
WAYS = {
    "sql": ("sql", IN_MEMORY),
    "duckdb in memory": ("duckdb", IN_MEMORY),
    "duckdb on disk": ("duckdb", ON_DISK),
    "sql, result on disk": ("sql", ON_DISK),
}
"""Engines, and the memory that sends them one way or the other."""


def question(features: Any, way: str, **options: Any) -> Asked:
    """What is asked by one way."""
    engine, memory = WAYS[way]
    return Asked(
        names=partial(names_of, features),
        find=partial(resolve, features, full_feature_names=False),
        engine=engine,
        memory=memory,
        **options,
    )


async def asked(
    store: fs.FeatureStore | fs.Transaction, entities: Any, features: Any, way: str, **options: Any
) -> fs.TrainingSet:
    """A training set by one way."""
    return await read_training_set(store._context, entities, question(features, way, **options))


def streamed(
    store: fs.FeatureStore | fs.Transaction, entities: Any, features: Any, way: str, **options: Any
) -> HistoricalFeatures:
    """The same as a stream."""
    return HistoricalFeatures(store._context, entities, question(features, way, **options))
