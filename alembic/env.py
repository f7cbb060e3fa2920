"""How Alembic's own command line reaches the database: async, by FEATURESTORE_URL.

The library runs the same revisions by itself (``featurestore migrate``, ``apply`` on an empty
database) and does not come through here.
"""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from featurestore.storage.engine import Database
from featurestore.storage.tables import VERSION_TABLE, metadata


def configure(connection: Connection | None, **options: object) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=lambda name, kind, parents: kind != "table" or name in metadata.tables,
        render_as_batch=True,
        **options,  # type: ignore[arg-type]
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    database = Database(os.environ.get("FEATURESTORE_URL"), None)
    try:
        async with database.transaction() as session:
            await session.run_sync(configure)
    finally:
        await database.close()


if context.is_offline_mode():
    url = os.environ.get("FEATURESTORE_URL", "sqlite://")
    configure(None, dialect_name=url.partition(":")[0].partition("+")[0], literal_binds=True)
else:
    asyncio.run(run_online())
