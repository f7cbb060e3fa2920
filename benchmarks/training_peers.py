"""What `training.py` compares with: the same training set by hand.

Each reads the same history, applies the ttl, and gives the rows in the order of the entity table.
None looks at created times: in this history no two rows of a key have the same event time. They
block their loop, on which nothing else runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi
import asyncpg
import duckdb
import pandas as pd
import pyarrow as pa
from training_answer import LABEL
from training_data import FEATURES, HISTORY, TTL
from training_ways import Way

from featurestore.storage.tables import EVENT

TTL_MICROSECONDS = int(TTL.total_seconds()) * 1_000_000
KEPT = ("item_id", "event_timestamp", LABEL)
NAMES = ", ".join(FEATURES)

FETCHED = f'SELECT item_id, "{EVENT}" AS known, {NAMES} FROM "{HISTORY}"'  # noqa: S608 - our names


def asof(history: str) -> str:
    """The join as one writes it in DuckDB; ``history`` has the columns of the fetch above.

    The newest row decides, and then its age. Microseconds are subtracted, as an interval from a
    time with a zone is arithmetic in a calendar, and slow.
    """
    kept = ", ".join(f"e.{name}" for name in KEPT)
    young = f"epoch_us(e.event_timestamp) - epoch_us(h.known) <= {TTL_MICROSECONDS}"
    features = ", ".join(f"CASE WHEN {young} THEN h.{name} END AS {name}" for name in FEATURES)
    return (
        f"SELECT {kept}, {features} FROM entity_rows e ASOF LEFT JOIN {history} h"  # noqa: S608 - our names
        " ON e.item_id = h.item_id AND e.event_timestamp >= h.known ORDER BY e.__row"
    )


def numbered(entities: pa.Table) -> pa.Table:
    """The entity table with the number of each row, to order by."""
    return entities.append_column("__row", pa.arange(0, entities.num_rows))


def of_file(path: Path) -> str:
    files = path / "*.parquet" if path.is_dir() else path
    quoted = str(files).replace("'", "''")
    return f"(SELECT item_id, event_timestamp AS known, {NAMES} FROM read_parquet('{quoted}'))"  # noqa: S608 - our names


def of_entities(path: str) -> str:
    quoted = path.replace("'", "''")
    numbered = f"read_parquet('{quoted}', file_row_number = true)"
    return f"(SELECT *, file_row_number AS __row FROM {numbered})"  # noqa: S608 - our names


# --- DuckDB -------------------------------------------------------------------------------------


class Fetched(Way):
    """ADBC fetches the history as Arrow, DuckDB joins."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        with (
            adbc_driver_postgresql.dbapi.connect(self.url) as self.source,
            duckdb.connect() as self.duck,
        ):
            yield

    async def call(self, ready: Any) -> Any:
        with self.source.cursor() as cursor:
            cursor.execute(FETCHED)
            history = cursor.fetch_arrow_table()
        self.duck.register("history", history)
        self.duck.register("entity_rows", numbered(ready))
        answer = self.duck.execute(asof("history")).to_arrow_table()
        self.duck.unregister("history")  # or the next call would hold it beside its own
        return answer


class OnFile(Way):
    """DuckDB joins the Parquet file itself."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        with duckdb.connect() as self.duck:
            yield

    async def call(self, ready: Any) -> Any:
        self.duck.register("entity_rows", numbered(ready))
        return self.duck.execute(asof(of_file(self.history))).to_arrow_table()


class FileToFile(OnFile):
    """DuckDB from files to a file, with as much memory as it is told that it may take."""

    from_file = True

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        settings = {"temp_directory": str(self.folder / "spilled"), **self.options}
        with duckdb.connect(config=settings) as self.duck:
            yield

    async def call(self, ready: Any) -> Any:
        path = self.folder / "training.parquet"
        joined = asof(of_file(self.history)).replace("entity_rows", of_entities(ready))
        self.duck.execute(f"COPY ({joined}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
        return path


# --- asyncpg ------------------------------------------------------------------------------------


def lateral(entities: str) -> str:
    """One descent into the index of key and time for each row of ``entities``."""
    features = ", ".join(f"h.{name}" for name in FEATURES)
    return (
        f"SELECT {features} FROM {entities} LEFT JOIN LATERAL ("  # noqa: S608 - our names
        f'SELECT {NAMES} FROM "{HISTORY}" WHERE item_id = e.key AND "{EVENT}" <= e.at'
        f' AND "{EVENT}" >= e.at - interval \'{TTL.days} days\' ORDER BY "{EVENT}" DESC LIMIT 1'
        ") h ON true ORDER BY e.row"
    )


class Lateral(Way):
    """The statement, and its rows fetched; what comes before and after it is not counted."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self.connection: asyncpg.Connection = await asyncpg.connect(self.url)
        try:
            yield
        finally:
            await self.connection.close()

    def ready(self, entities: Any) -> Any:
        return [entities.column(name).to_pylist() for name in ("item_id", "event_timestamp")]

    def batches(self, entities: Any, answer: Any) -> Iterable[pa.RecordBatch]:
        columns: Sequence[Sequence[Any]] = list(zip(*answer, strict=True))
        for name, values in zip(FEATURES, columns, strict=True):
            entities = entities.append_column(name, pa.array(values))
        yield from entities.to_batches()


class LateralUnnest(Lateral):
    """The entity rows go along as two arrays."""

    STATEMENT = lateral(
        "unnest($1::bigint[], $2::timestamptz[]) WITH ORDINALITY AS e (key, at, row)"
    )

    async def call(self, ready: Any) -> Any:
        return await self.connection.fetch(self.STATEMENT, *ready)


class LateralCopy(Lateral):
    """The entity rows go up by COPY into a temporary table."""

    TABLE = "CREATE TEMP TABLE asked (row bigint, key bigint, at timestamptz) ON COMMIT DROP"
    STATEMENT = lateral("asked AS e")

    def ready(self, entities: Any) -> Any:
        columns = super().ready(entities)
        return list(zip(range(entities.num_rows), *columns, strict=True))

    async def call(self, ready: Any) -> Any:
        async with self.connection.transaction():
            await self.connection.execute(self.TABLE)
            await self.connection.copy_records_to_table("asked", records=ready)
            return await self.connection.fetch(self.STATEMENT)


# --- pandas -------------------------------------------------------------------------------------


class MergeAsof(Way):
    """pandas from the Parquet file: both sides sorted by time, merged, and put back in order."""

    def ready(self, entities: Any) -> Any:
        return entities.to_pandas()

    async def call(self, ready: Any) -> Any:
        columns = ["item_id", "event_timestamp", *FEATURES]
        history = pd.read_parquet(self.history, columns=columns)
        history = history.sort_values("event_timestamp")
        asked = ready.sort_values("event_timestamp")
        order = asked.index
        joined = pd.merge_asof(asked, history, on="event_timestamp", by="item_id", tolerance=TTL)
        return joined.set_index(order).sort_index()

    def batches(self, entities: Any, answer: Any) -> Iterable[pa.RecordBatch]:
        yield from pa.Table.from_pandas(answer, preserve_index=False).to_batches()


PEERS: dict[str, type[Way]] = {
    "fetched": Fetched,
    "on_file": OnFile,
    "file_to_file": FileToFile,
    "lateral_unnest": LateralUnnest,
    "lateral_copy": LateralCopy,
    "merge_asof": MergeAsof,
}
