"""Work on a driver's own connection, of SQLAlchemy's pool and past everything else of it.

An online read takes the server 60 microseconds; a session's bookkeeping takes more than that. So
what is one statement, sent when its connection is idle, goes this way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.util import greenlet_spawn

from featurestore.errors import FeatureStoreError
from featurestore.storage.faults import translation
from featurestore.storage.pool import Pool
from featurestore.storage.waiting import uninterrupted

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from featurestore.storage.engine import Database

T = TypeVar("T")


async def on_driver(
    database: Database, work: Callable[[Any], Awaitable[T]], *, again: bool = False
) -> T:
    """Run ``work`` with the driver's connection of a free one of the pool.

    With ``again``, for what only reads, it is run on another one where the first turned out to be
    lost. ``work`` brings what it has sent to an end where it is cancelled.
    """
    while True:
        pool = database.engine.pool
        if not isinstance(pool, Pool):
            break
        record = pool.take_idle()
        if record is None:
            break
        driver = record.driver_connection
        if database.dialect.is_closed(driver):  # its server has ended it meanwhile
            await uninterrupted(_dropped(pool, record))
            continue
        try:
            await database.dialect.prepare(driver)
            result = await work(driver)
        except Exception as error:
            # An error of ours says that the connection was given up, not lost.
            again = again and not isinstance(error, FeatureStoreError)
            again = again and database.dialect.is_closed(driver)
            await uninterrupted(_given_back(database, pool, record))
            if again:
                again = False
                continue
            known = translation(error, database.label)
            if known is None:
                raise
            raise known[0] from known[1]
        except BaseException:
            await uninterrupted(_given_back(database, pool, record))
            raise
        if database.closed:
            await uninterrupted(_given_back(database, pool, record))
        else:
            pool.put_back(record)
        return result
    # None is idle, or the engine is borrowed, whose pool may do more than hand out connections.
    async with database.session() as session, session.alone():
        return await work(session.driver)


async def _given_back(database: Database, pool: Pool, record: ConnectionPoolEntry) -> None:
    if database.closed or not await database.is_usable(record.driver_connection):
        await _dropped(pool, record)
    else:
        pool.put_back(record)


async def _dropped(pool: Pool, record: ConnectionPoolEntry) -> None:
    try:
        await greenlet_spawn(record.invalidate)
    finally:
        pool.put_back(record)  # SQLAlchemy opens it anew when it is asked for
