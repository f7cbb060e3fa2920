"""Which engine takes the least time: a model of both, fitted to measurements.

The figures are seconds on a machine of two cores (``benchmarks/training.py`` prints the table that
they were fitted to): PostgreSQL 18 and SQLite, 2 million rows of history with 8 features. What
decides is their proportion, which other machines share.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.errors import DefinitionError
from featurestore.selection import Join
from featurestore.storage.session import Session
from featurestore.training.entities import Entities
from featurestore.training.pruning import few_keys
from featurestore.training.report import EngineChoice
from featurestore.training.rule import Question

SMALL_ROWS = 5_000
"""Up to so many entity rows the database is quicker whatever it holds: DuckDB needs 0.2 s to
begin with, in which the database finds them."""


@dataclass(frozen=True)
class Costs:
    """Seconds: per entity row and join in the database; and beside it for each row of history
    that is brought there, and per entity row and join."""

    lookup: float
    fetch: float
    match: float
    start: float = 0.25


COSTS: Mapping[str, Costs] = {
    "postgresql": Costs(lookup=10e-6, fetch=1.2e-6, match=1.4e-6),
    "sqlite": Costs(lookup=9e-6, fetch=7e-6, match=1.4e-6),
}


def has_duckdb() -> bool:
    """Whether DuckDB is installed; it is not imported for that."""
    return importlib.util.find_spec("duckdb") is not None


async def choose_engine(
    session: Session, entities: Entities, question: Question, engine: str
) -> EngineChoice:
    """The engine to use: the one that was asked for, or the cheapest that can answer."""
    if engine != "auto":
        if engine != "duckdb" and question.from_source:
            raise DefinitionError(
                f"engine={engine!r} joins what was loaded; with read_from='source' the engine is "
                f"'duckdb', or 'auto'."
            )
        if engine != "daft":
            return EngineChoice(engine, "it was asked for")
        if question.inside:
            raise DefinitionError(
                "engine='daft' joins copies of history, which lack what a transaction has written."
            )
        assert question.mark is not None
        when = f"{question.mark.at:%Y-%m-%d %H:%M:%S} UTC"
        return EngineChoice(engine, f"it was asked for; it sees history as of {when}")
    if question.from_source:
        return EngineChoice("duckdb", "it is the one that joins files")
    if not has_duckdb():
        return EngineChoice(
            "sql", "the others are not installed (pip install 'featurestore[duckdb]')"
        )
    if question.inside:
        return EngineChoice("sql", "it sees what the transaction has written")
    if len(entities) <= SMALL_ROWS:
        return EngineChoice("sql", f"up to {SMALL_ROWS:,} entity rows are looked up at once")
    return await _cheapest(session, entities, question)


async def _cheapest(session: Session, entities: Entities, question: Question) -> EngineChoice:
    costs = COSTS["sqlite" if session.dialect.single_writer else "postgresql"]
    joins = question.request.joins
    views = {join.view.id: join for join in joins}
    histories = {
        join.view.name: await _rows_needed(session, entities, join) for join in views.values()
    }
    lookups = len(entities) * len(joins)
    estimates = {
        "sql": lookups * costs.lookup,
        "duckdb": costs.start + sum(histories.values()) * costs.fetch + lookups * costs.match,
    }
    best = min(estimates, key=lambda engine: estimates[engine])
    sizes = ", ".join(f"about {rows:,} rows of {view}" for view, rows in histories.items())
    return EngineChoice(
        best, f"the cheapest for {len(entities):,} entity rows and {sizes}", estimates
    )


async def _rows_needed(session: Session, entities: Entities, join: Join) -> int:
    """About how many rows of a view's history would have to be brought out."""
    rows = await session.dialect.estimate_rows(session, join.view.history)
    if join.view.online is None or not join.columns:
        return rows
    keys = await asyncio.to_thread(few_keys, entities.keys, join)
    if keys is None:
        return rows
    known = await session.dialect.estimate_rows(session, join.view.online)
    return rows if known <= keys.num_rows else rows * keys.num_rows // known
