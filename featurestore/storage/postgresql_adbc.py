"""Many rows out of PostgreSQL as Arrow: ADBC, in the snapshot of a session's transaction.

A second connection reads what the session would: PostgreSQL lets a transaction hand its snapshot
to another. Where it cannot be opened, by a URL that does not say all that the engine knows, the
rows come through the session's own, some ten times as slowly.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.errors import StoreUnavailableError
from featurestore.storage.waiting import stoppable, uninterrupted

if TYPE_CHECKING:
    from featurestore.storage.session import Session

# What libpq calls what asyncpg calls otherwise; other parameters of a URL are SQLAlchemy's or
# asyncpg's own.
_LIBPQ = {
    "ssl": "sslmode", "sslmode": "sslmode", "host": "host", "port": "port",
    "user": "user", "password": "password", "dbname": "dbname", "database": "dbname",
    "passfile": "passfile", "sslrootcert": "sslrootcert", "sslcert": "sslcert",
    "sslkey": "sslkey", "options": "options", "krbsrvname": "krbsrvname",
}  # fmt: skip
_CONNECT_SECONDS = 10
"""How long connecting may take: it cannot be interrupted."""

_SSL_WORDS = {"true": "require", "True": "require", "false": "disable", "False": "disable"}


def is_installed() -> bool:
    """Whether the driver is there."""
    return importlib.util.find_spec("adbc_driver_postgresql") is not None


def conninfo(url: sa.URL) -> str:
    """An engine's URL as libpq reads it, with its password.

    As keywords and values: a URL has characters that it and libpq escape differently.
    """
    said: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
        "connect_timeout": _CONNECT_SECONDS,
    }
    for name, value in url.query.items():
        if name in _LIBPQ and isinstance(value, str):
            said[_LIBPQ[name]] = _SSL_WORDS.get(value, value) if name == "ssl" else value
    return " ".join(
        f"{name}='{_escaped(str(value))}'" for name, value in said.items() if value is not None
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


# What a name means, and what may be seen: by which schemas, which user, and at which server, whose
# snapshots may have the same names as another's.
_SEEN = (
    sa.func.current_setting("search_path"),
    sa.cast(sa.func.current_user(), sa.Text),
    sa.cast(sa.func.pg_postmaster_start_time(), sa.Text),
)


async def open_scan(session: Session, sql: str) -> Scan | None:
    """A query of the session's snapshot, under way on a connection of its own; None where there
    can be none: it may belong to another user, who may not read there. Its owner closes it. Not
    for a transaction that has written: nobody else sees that.
    """
    if not is_installed():
        return None
    query = sa.select(sa.func.pg_export_snapshot(), *_SEEN)
    snapshot, path, *seen = (await session.execute(query)).one()
    settle = sa.select(sa.func.set_config("search_path", path, sa.true()), *_SEEN[1:])
    settling = settle.compile(
        dialect=session.connection.dialect, compile_kwargs={"literal_binds": True}
    )
    scan = Scan(conninfo(session.connection.engine.url), snapshot, str(settling), seen, sql)
    if await scan.open():
        return scan
    return None


class Scan:
    """One query by ADBC. Its calls run in threads, one after the other.

    ``settling`` has it look into the session's schemas, and answers with what ``seen`` must be.
    """

    def __init__(
        self, conninfo: str, snapshot: str, settling: str, seen: Sequence[str], sql: str
    ) -> None:
        self._conninfo = conninfo
        self._snapshot = snapshot
        self._settling = settling
        self._seen = list(seen)
        self._sql = sql
        self._connection: Any = None
        self._cursor: Any = None
        self._reader: pa.RecordBatchReader | None = None

    async def open(self) -> bool:
        """Connect and begin the query; whether that was possible."""
        try:
            return bool(await self._run(self._connect))
        except BaseException:
            await self.close()
            raise

    def _connect(self) -> bool:
        from adbc_driver_postgresql import dbapi

        try:
            self._connection = dbapi.connect(self._conninfo, autocommit=True)
        except dbapi.Error:
            return False
        self._cursor = self._connection.cursor()
        try:
            self._cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._cursor.execute(f"SET TRANSACTION SNAPSHOT '{self._snapshot}'")
            self._cursor.execute("SET LOCAL timezone = 'UTC'")
            self._cursor.execute(self._settling)
            if [str(value) for value in self._cursor.fetchone()[1:]] != self._seen:
                self._shut()
                return False
            self._cursor.execute(self._sql)
            self._reader = self._cursor.fetch_record_batch()
        except (dbapi.Error, pa.ArrowException, OSError):
            # Another server than the session's behind the same address, or another user, or other
            # settings: the session's own connection is right, and tells what is wrong beside.
            self._shut()
            return False
        return True

    async def batches(self) -> AsyncGenerator[pa.RecordBatch, None]:
        """The rows, in batches of some 16 MB."""
        while (batch := await self._run(self._next)) is not None:
            yield batch

    def _next(self) -> pa.RecordBatch | None:
        from adbc_driver_postgresql import dbapi

        assert self._reader is not None
        try:
            return next(self._reader, None)
        except (dbapi.Error, pa.ArrowException, OSError) as error:
            raise _broken_off(error) from error

    async def _run(self, call: Any) -> Any:
        return await stoppable(asyncio.to_thread(call), self._cancel)

    async def _cancel(self) -> None:
        cursor = self._cursor
        if cursor is not None:
            with suppress(Exception):
                await asyncio.to_thread(cursor.adbc_cancel)

    async def close(self) -> None:
        """Close the connection, which ends what it may still be doing."""
        await uninterrupted(asyncio.to_thread(self._shut))

    def _shut(self) -> None:
        reader, cursor, connection = self._reader, self._cursor, self._connection
        self._reader = self._cursor = self._connection = None
        for one in (reader, cursor, connection):
            if one is not None:
                with suppress(Exception):
                    one.close()


def _broken_off(error: BaseException) -> StoreUnavailableError:
    said = str(error).partition("\n")[0].rstrip(".")
    return StoreUnavailableError(f"Reading history broke off: {said}. Trying again may help.")
