"""Online rows out of SQLite: one statement per view and key, all in one hop and transaction."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from featurestore.storage.dialect import Found, Lookup, Lookups, compiled
from featurestore.storage.sqlite_values import decode, encode
from featurestore.storage.sqlite_wire import run
from featurestore.storage.tables import EVENT, project
from featurestore.types import (
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    String,
    from_micros,
    micros,
)

_AS_KEPT = (Int32, Int64, Float32, Float64, String, Bytes, Json)
"""Types whose values come from SQLite as they are asked for; Json as its text."""


async def find(
    driver: Any, sql: sa.Dialect, lookups: Lookups, keys: Sequence[Sequence[Any]]
) -> Found:
    """See :meth:`Dialect.find_online`."""
    if "queries" not in lookups.cache:
        queries = [_online_query(one) for one in lookups.lookups]
        revision = sa.select(project.c.revision).where(project.c.name == lookups.project)
        lookups.cache["revision"] = compiled(revision, sql)
        lookups.cache["queries"] = [str(query.compile(dialect=sql)) for query in queries]
    return await run(driver, lambda raw: _find(raw, lookups, keys))


def _online_query(lookup: Lookup) -> sa.Select[Any]:
    columns = [lookup.table.c[name] for name in (EVENT, *dict(lookup.features))]
    keys = [lookup.table.c[key] == sa.bindparam(f"k{i}") for key, i in lookup.keys]
    return sa.select(*columns).where(*keys)


def _find(raw: sqlite3.Connection, lookups: Lookups, keys: Sequence[Sequence[Any]]) -> Found:
    """One statement per view and key, all in one transaction: without a network that is
    faster than one large statement, and reads one state as well."""
    alone = not raw.in_transaction
    if alone:
        raw.execute("BEGIN")
    try:
        sql, values = lookups.cache["revision"]
        found = raw.execute(sql, values).fetchone()
        if found is None or found[0] != lookups.revision:
            return None
        now = micros(dt.datetime.now(dt.UTC))
        encoded = [
            values
            if kind in (Int32, Int64)
            else [v if v is None else encode(kind, v) for v in values]
            for kind, values in zip(lookups.key_types, zip(*keys, strict=True), strict=True)
        ]
        parts = [
            _find_rows(raw, statement, lookup, encoded, len(keys), now)
            for statement, lookup in zip(lookups.cache["queries"], lookups.lookups, strict=True)
        ]
    finally:
        if alone:
            raw.execute("ROLLBACK")
    if len(parts) == 1:
        return parts[0]
    return [
        (*rows[0], *(value for row in rows[1:] for value in row[1:]))
        for rows in zip(*parts, strict=True)
    ]


def _find_rows(
    raw: sqlite3.Connection,
    sql: str,
    lookup: Lookup,
    columns: Sequence[Sequence[Any]],
    count: int,
    now: int,
) -> list[Sequence[Any]]:
    """What one lookup finds for each row of keys, as :data:`Found` has it."""
    ttl = lookup.ttl
    oldest = None if ttl is None else now - ttl // dt.timedelta(microseconds=1)
    nothing = (None,) * (2 + (ttl is not None) + len(lookup.features))
    decoders = [
        (index, kind)
        for index, (_, kind) in enumerate(lookup.features, start=1)
        if kind not in _AS_KEPT
    ]
    wanted = [columns[position] for _, position in lookup.keys]
    keys = zip(*wanted, strict=True) if wanted else [()] * count
    rows: list[Sequence[Any]] = []
    for key in keys:
        row = raw.execute(sql, key).fetchone()
        if row is None:
            rows.append(nothing)
            continue
        if decoders:
            row = list(row)
            for index, kind in decoders:
                if row[index] is not None:
                    row[index] = decode(kind, row[index])
        event = from_micros(row[0])
        if oldest is None:
            rows.append((None, event, *row[1:]))
        else:
            rows.append((None, event, row[0] >= oldest, *row[1:]))
    return rows
