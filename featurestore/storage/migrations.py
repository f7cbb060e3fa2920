"""Bringing the registry's schema to this code's revision, and telling when it is not there.

The revisions are Alembic's, in ``alembic/versions`` of a checkout and in the same files inside
an installed wheel. Alembic reads them from disk and imports slowly, so that happens in a thread;
only the statements themselves run on the loop's connection.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from featurestore.errors import MigrationRequiredError
from featurestore.storage.engine import Database
from featurestore.storage.forks import ForkLock
from featurestore.storage.session import Session
from featurestore.storage.tables import SCHEMA_REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

_ONE_AT_A_TIME = ForkLock()
_POLL_SECONDS = 0.01

_PACKAGE = Path(__file__).resolve().parent.parent


def scripts_folder() -> Path:
    """Where the revisions are: inside the wheel, else beside the package in a checkout."""
    installed = _PACKAGE / "_alembic"
    return installed if installed.is_dir() else _PACKAGE.parent / "alembic"


def head_revision() -> str:
    """The revision that this code works with."""
    return SCHEMA_REVISION


async def database_revision(session: Session) -> str | None:
    """The revision that the database is at; None where it was never migrated."""

    def read(connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        table = sa.table(VERSION_TABLE, sa.column("version_num"))
        return connection.execute(sa.select(table.c.version_num)).scalar_one_or_none()

    return await session.run_sync(read)


async def migrate_database(database: Database) -> tuple[str | None, str]:
    """Migrate to this code's revision in one transaction; the revisions before and after.

    Raises :class:`MigrationRequiredError` where the database is ahead of this code.
    """
    async with database.transaction() as session:
        before = await migrate_session(session)
    return before, SCHEMA_REVISION


async def migrate_session(session: Session) -> str | None:
    """Migrate within the session's transaction; the revision that it was at before."""
    # Two processes may find the same database empty: the second waits, and finds it migrated.
    await session.dialect.lock_name(session, "featurestore:migrate")
    before = await database_revision(session)
    if before != SCHEMA_REVISION:
        scripts = await asyncio.to_thread(_load_scripts)
        if before is not None and before not in _known(scripts):
            raise _ahead(before)
        # The revisions speak to Alembic's `op`, of which the process has one.
        # Its callers may be on loops of several threads, so no asyncio lock would do.
        while not _ONE_AT_A_TIME.acquire(blocking=False):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        try:
            await session.run_sync(lambda connection: _upgrade(connection, scripts))
        finally:
            _ONE_AT_A_TIME.release()
    return before


def check_revision(revision: str | None, label: str) -> None:
    """Raise :class:`MigrationRequiredError` unless the database is at this code's revision."""
    if revision == SCHEMA_REVISION:
        return
    if revision is None:
        raise MigrationRequiredError(
            f"{label} holds no feature store yet. Run `featurestore migrate` or `featurestore "
            f"apply`, or store.apply(…) from Python, to make one there."
        )
    if revision < SCHEMA_REVISION:  # revisions are numbered in order
        raise MigrationRequiredError(
            f"{label} is at revision {revision}, this code works with {SCHEMA_REVISION}. Run "
            f"`featurestore migrate` to bring it up to date."
        )
    raise _ahead(revision)


def _ahead(revision: str) -> MigrationRequiredError:
    return MigrationRequiredError(
        f"The database is at revision {revision}, which is newer than this code's "
        f"{SCHEMA_REVISION}. Update the code: pip install --upgrade featurestore."
    )


def _load_scripts() -> ScriptDirectory:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(scripts_folder()))
    scripts = ScriptDirectory.from_config(config)
    _known(scripts)  # imports every revision now, in this thread
    return scripts


def _known(scripts: ScriptDirectory) -> set[str]:
    return {script.revision for script in scripts.walk_revisions()}


def _upgrade(connection: sa.Connection, scripts: ScriptDirectory) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    def steps(revision: Any, context: MigrationContext) -> Any:
        return scripts._upgrade_revs(SCHEMA_REVISION, revision)

    context = MigrationContext.configure(
        connection,
        opts={"fn": steps, "version_table": VERSION_TABLE, "transactional_ddl": True},
    )
    with Operations.context(context):
        context.run_migrations()
