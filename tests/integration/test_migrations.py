"""The registry's schema on both databases: what migrating makes, and who is told to migrate."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import featurestore as fs
from featurestore.storage import migrations, tables
from featurestore.storage.engine import Database
from featurestore.storage.session import Session

ROOT = Path(__file__).resolve().parents[2]
DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
VIEW = fs.FeatureView(
    "driver_stats", entities=[DRIVER], fields=[fs.Field("trips", fs.Int64)], timestamp_field="at"
)

NewDatabase = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewDatabase]:
    """Makes databases that hold nothing at all, and gives their URLs."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / uuid4().hex}.db"
        return
    server = request.getfixturevalue("featurestore_postgres")
    made: list[str] = []

    def create() -> str:
        made.append(f"migrations_{uuid4().hex[:16]}")
        server.create_database(made[-1])
        return str(server.url(made[-1]))

    yield create
    for name in made:
        server.drop_database(name)


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """The URL of an empty database."""
    return new_database()


async def with_session(url: str, work: Callable[[Session], Awaitable[Any]]) -> Any:
    database = Database(url, None)
    try:
        async with database.transaction() as session:
            return await work(session)
    finally:
        await database.close()


async def with_connection(url: str, work: Callable[[sa.Connection], Any]) -> Any:
    return await with_session(url, lambda session: session.run_sync(work))


async def execute(url: str, statement: str) -> None:
    await with_connection(url, lambda connection: connection.execute(sa.text(statement)))


async def migrate(url: str) -> tuple[str | None, str]:
    async with fs.FeatureStore(url) as store:
        return await store.migrate()


def is_ours(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or str(name).startswith("featurestore_")


# --- the schema -------------------------------------------------------------------------------


@pytest.mark.allow_blocking  # Alembic compares in one long step; nobody else is on the loop
async def test_the_migrated_schema_is_the_declared_one_to_alembic(url: str):
    await migrate(url)

    def differences(connection: sa.Connection) -> list[Any]:
        options = {
            "include_name": is_ours,
            "version_table": tables.VERSION_TABLE,
            "compare_type": True,
        }
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, tables.metadata)

    assert await with_connection(url, differences) == []


@pytest.mark.allow_blocking
async def test_the_migrated_schema_is_the_declared_one_in_all_that_can_be_read(
    new_database: NewDatabase,
):
    """Alembic looks at neither primary keys nor the names of keys, nor at sequences."""
    migrated, declared = new_database(), new_database()
    await migrate(migrated)
    await with_connection(declared, tables.metadata.create_all)
    assert await with_connection(migrated, _schema) == await with_connection(declared, _schema)


def _schema(connection: sa.Connection) -> dict[str, Any]:
    inspector = sa.inspect(connection)
    names = set(inspector.get_table_names()) - {tables.VERSION_TABLE}
    schema: dict[str, Any] = {name: _table(inspector, name) for name in names}
    assert len(schema) == len(tables.metadata.tables)
    if connection.dialect.supports_sequences:
        schema["sequences"] = sorted(inspector.get_sequence_names())
    return schema


def _table(inspector: sa.Inspector, name: str) -> dict[str, Any]:
    return {
        "columns": [
            {**column, "type": repr(column["type"])} for column in inspector.get_columns(name)
        ],
        "primary key": inspector.get_pk_constraint(name),
        "foreign keys": _by_name(inspector.get_foreign_keys(name)),
        "unique": _by_name(inspector.get_unique_constraints(name)),
        "indexes": _by_name([_index(index) for index in inspector.get_indexes(name)]),
    }


def _index(index: Any) -> dict[str, Any]:
    options = index.get("dialect_options", {})
    return {**index, "dialect_options": {name: str(value) for name, value in options.items()}}


def _by_name(constraints: list[Any]) -> list[Any]:
    return sorted(constraints, key=lambda one: str(one["name"]))


def test_the_code_works_with_the_newest_revision():
    config = Config()
    config.set_main_option("script_location", str(migrations.scripts_folder()))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [tables.SCHEMA_REVISION]
    assert migrations.head_revision() == tables.SCHEMA_REVISION
    for script in scripts.walk_revisions():
        # Numbered in order: that is how an older database is told from a newer one.
        assert Path(script.path).name.startswith(f"{script.revision}_")
        assert script.down_revision is None or str(script.down_revision) < script.revision


# --- migrating --------------------------------------------------------------------------------


async def test_migrate_says_what_it_did(url: str):
    async with fs.FeatureStore(url) as store:
        assert await store.migrate() == (None, tables.SCHEMA_REVISION)
        assert await store.migrate() == (tables.SCHEMA_REVISION, tables.SCHEMA_REVISION)
        assert await store.list_views() == []


async def test_migrate_leaves_what_is_registered_alone(url: str):
    row = {"driver_id": 1, "at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "trips": 7}
    async with fs.FeatureStore(url) as store:
        await store.apply([VIEW])
        await store.push(VIEW, [row])
        await store.migrate()
        assert await store.repository(VIEW).get(driver_id=1) == {"driver_id": 1, "trips": 7}


async def test_apply_migrates_an_empty_database(url: str):
    async with fs.FeatureStore(url) as store:
        assert await store.plan([VIEW])
        with pytest.raises(fs.MigrationRequiredError):  # plan has left nothing there
            await store.list_views()
        assert await store.apply([VIEW])
        assert await store.list_views() == [VIEW]
        assert await store.migrate() == (tables.SCHEMA_REVISION, tables.SCHEMA_REVISION)


@pytest.mark.parametrize("stores", [2, 6])
async def test_migrates_at_once_of_one_empty_database_all_succeed(url: str, stores: int):
    found = await asyncio.gather(*(migrate(url) for _ in range(stores)))
    assert sorted(found, key=str) == sorted(
        [(None, tables.SCHEMA_REVISION)]
        + [(tables.SCHEMA_REVISION, tables.SCHEMA_REVISION)] * (stores - 1),
        key=str,
    )
    async with fs.FeatureStore(url) as store:
        assert await store.apply([VIEW])


async def test_applies_at_once_on_one_empty_database_all_succeed(url: str):
    async def apply(name: str) -> None:
        async with fs.FeatureStore(url) as store:
            view = fs.FeatureView(
                name, entities=[DRIVER], fields=[fs.Field("trips", fs.Int64)], timestamp_field="at"
            )
            await store.apply([view])

    names = [f"view_{number}" for number in range(4)]
    await asyncio.gather(*map(apply, names))
    async with fs.FeatureStore(url) as store:
        assert [view.name for view in await store.list_views()] == names


# --- databases of another revision ------------------------------------------------------------

CALLS: dict[str, Callable[[fs.FeatureStore], Awaitable[Any]]] = {
    "list_views": lambda store: store.list_views(),
    "get_view": lambda store: store.get_view("driver_stats"),
    "loads": lambda store: store.loads(),
    "push": lambda store: store.push("driver_stats", []),
    "ingest": lambda store: store.ingest("driver_stats", "nothing.parquet"),
    "materialize": lambda store: store.materialize(),
    "online": lambda store: store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}]),
    "count": lambda store: store.repository("driver_stats").count(),
    "undo": lambda store: store.undo_load(1),
}


NEWER = CALLS | {
    "migrate": lambda store: store.migrate(),
    "plan": lambda store: store.plan([VIEW]),
    "apply": lambda store: store.apply([VIEW]),
}


async def refusals(url: str, calls: dict[str, Callable[..., Awaitable[Any]]]) -> dict[str, str]:
    """What each call says as it refuses the database."""
    said = {}
    async with fs.FeatureStore(url) as store:
        for name, call in calls.items():
            try:
                await call(store)
            except fs.MigrationRequiredError as error:
                said[name] = str(error)
    return said


async def test_a_database_that_was_never_migrated_is_said_to_need_it(url: str):
    said = await refusals(url, CALLS)
    assert set(said) == set(CALLS)
    assert all("`featurestore migrate`" in message for message in said.values())


async def test_a_database_that_is_behind_is_said_to_need_it(url: str):
    await migrate(url)
    await execute(url, "UPDATE featurestore_version SET version_num = '0000'")
    said = await refusals(url, CALLS)
    assert set(said) == set(CALLS)
    for message in said.values():
        assert "is at revision 0000" in message
        assert "`featurestore migrate`" in message


async def test_a_database_of_a_newer_version_is_left_alone(url: str):
    await migrate(url)
    await execute(url, "UPDATE featurestore_version SET version_num = '9999'")
    said = await refusals(url, NEWER)
    assert set(said) == set(NEWER)
    for message in said.values():
        assert "9999, which is newer" in message
        assert "Update the code" in message

    def revisions(connection: sa.Connection) -> list[Any]:
        query = sa.text("SELECT version_num FROM featurestore_version")
        return list(connection.execute(query).scalars())

    assert await with_connection(url, revisions) == ["9999"]


async def test_the_message_names_the_database_and_not_its_password(url: str):
    named = sa.make_url(url)
    if named.get_backend_name() == "postgresql" and named.password is None:
        named = named.set(password="sesame")  # the tests' own server asks for none
    async with fs.FeatureStore(named) as store:
        with pytest.raises(fs.MigrationRequiredError) as caught:
            await store.list_views()
    assert str(named.database) in str(caught.value)
    assert named.password is None or str(named.password) not in str(caught.value)


# --- Alembic's own command, in a checkout -----------------------------------------------------


def alembic(url: str, *arguments: str) -> str:
    """Run `alembic …` at the top of the checkout, where the folder alembic/ lies beside it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("alembic"), *arguments],
        cwd=ROOT,
        env={**os.environ, "FEATURESTORE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table_names(url: str) -> set[str]:
    def names(connection: sa.Connection) -> set[str]:
        return set(sa.inspect(connection).get_table_names())

    return set(asyncio.run(with_connection(url, names)))


def test_alembics_command_goes_up_and_down(url: str):
    alembic(url, "upgrade", "head")
    assert "No new upgrade operations" in alembic(url, "check")
    assert table_names(url) >= {*tables.metadata.tables, tables.VERSION_TABLE}
    assert asyncio.run(migrate(url)) == (tables.SCHEMA_REVISION, tables.SCHEMA_REVISION)

    alembic(url, "downgrade", "base")
    assert table_names(url) <= {tables.VERSION_TABLE}
    assert asyncio.run(migrate(url)) == (None, tables.SCHEMA_REVISION)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_alembics_command_writes_the_statements_without_a_database(database: str):
    out = alembic(f"{database}://", "upgrade", "head", "--sql")
    for name in (*tables.metadata.tables, tables.VERSION_TABLE):
        assert f"CREATE TABLE {name} " in out
