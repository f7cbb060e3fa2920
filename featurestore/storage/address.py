"""Where the database is: its URL, its name for people, and the engine that is made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from featurestore.errors import DefinitionError
from featurestore.storage.limits import Limits
from featurestore.storage.pool import Pool

DEFAULT_URL = "sqlite+aiosqlite:///featurestore.db"
_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}


def resolve_url(url: str | sa.URL | None) -> sa.URL:
    """The URL with an async driver: ``url``, else ``FEATURESTORE_URL``, else SQLite here."""
    try:
        parsed = make_url(url or os.environ.get("FEATURESTORE_URL") or DEFAULT_URL)
    except (ArgumentError, ValueError) as error:
        raise DefinitionError(
            "The database URL cannot be read; it has the form "
            "postgresql://user:password@host/database or sqlite:///file.db."
        ) from error
    driver = _DRIVERS.get(parsed.drivername, parsed.drivername)
    if driver not in _DRIVERS.values():
        raise DefinitionError(
            f"{parsed.drivername!r} is no driver that featurestore runs on; use postgresql:// "
            f"(asyncpg) or sqlite:// (aiosqlite)."
        )
    parsed = parsed.set(drivername=driver)
    if "sslmode" in parsed.query:  # libpq's word for what asyncpg calls ssl
        parsed = parsed.update_query_dict({"ssl": parsed.query["sslmode"]})
        parsed = parsed.difference_update_query(["sslmode"])
    return parsed


def create_database_engine(url: sa.URL, limits: Limits) -> AsyncEngine:
    sqlite = url.get_backend_name() == "sqlite"
    open_connection: Callable[..., Any]
    options: dict[str, Any] = {}
    if sqlite:
        from featurestore.storage.sqlite_wire import open_connection
    else:
        from featurestore.storage.postgresql_wire import open_connection, statement_options

        options |= statement_options(url)
        if "timeout" not in url.query:  # asyncpg's is a minute
            options["timeout"] = max(limits.answer_seconds, 1.0)
    try:
        return create_async_engine(
            url,
            connect_args={"async_creator_fn": open_connection, **options},
            poolclass=Pool,
            pool_use_lifo=True,  # a few connections in use are faster than many in turn
            # A database in memory lives in its one connection, so that one is handed around.
            pool_size=1 if is_in_memory(url) else limits.connections,
            max_overflow=0,
            pool_timeout=limits.wait_seconds,
            # Transactions are ended where they began; a reset here would be one more round trip.
            pool_reset_on_return=None,
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DefinitionError(f"The database URL is not understood: {error}") from error


def is_in_memory(url: sa.URL) -> bool:
    """Whether a URL is of a database that ends with its connection."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def label_of(url: sa.URL) -> str:
    """A database's name for people: its URL without what is secret in it."""
    secrets = {name: "***" for name in url.query if "pass" in name}
    return url.update_query_dict(secrets).render_as_string(hide_password=True)
