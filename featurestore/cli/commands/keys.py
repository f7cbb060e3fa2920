"""keys create, list, revoke: who may call the server."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output
from featurestore.cli.options import Command, Group, Settings, pass_settings
from featurestore.cli.output import Table
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore.storage.api_keys import ApiKey

SCOPES = ("read", "write", "admin")
"""Of storage/api_keys.py, which would bring SQLAlchemy along; a test holds them equal."""


@click.group(cls=Group)
def keys() -> None:
    """Make, list and revoke keys of the server.

    A key belongs to a project. It stands in the requests' header Authorization: Bearer fs_…
    """


@keys.command(cls=Command)
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="read",
    show_default=True,
    help="What it allows; write includes read, and admin everything.",
)
@pass_settings
def create(settings: Settings, name: str, scope: str) -> None:
    """Make a key and print it.

    It is shown this once: the database has only a hash of it. NAME says who uses it.
    """
    key, token = run(_create(settings, name, scope), "Interrupted. See featurestore keys list.")
    if settings.json:
        output.print_json({**_shown(key), "key": token})
        return
    output.say(f"Key {key.name} of project {key.project} may {key.scope}. It is shown this once:")
    print(token)


async def _create(settings: Settings, name: str, scope: str) -> tuple[ApiKey, str]:
    from featurestore.storage.api_keys import Scope, create_key

    async with open_store(settings) as store:
        await store.list_views()  # says what is wrong with a database that is not migrated
        async with store._context.transaction() as session:
            now = dt.datetime.now(dt.UTC)
            return await create_key(session, store.project, name, Scope[scope.upper()], now)


@keys.command("list", cls=Command)
@pass_settings
def list_(settings: Settings) -> None:
    """List the project's keys, revoked ones too."""
    found = run(_list(settings), "Interrupted.")
    if settings.json:
        output.print_json([_shown(key) for key in found])
        return
    table = Table(("name", "scope", "id", "?created", "state"))
    for key in found:
        created = key.created_at.replace(microsecond=0)
        state = "" if key.revoked_at is None else "revoked"
        table.rows.append((key.name, str(key.scope), key.id, created, state))
    output.print_table(table)
    if not found:
        output.say(f"No keys in project {settings.project}: see featurestore keys create.")


async def _list(settings: Settings) -> list[ApiKey]:
    from featurestore.storage.api_keys import list_keys

    async with open_store(settings) as store:
        await store.list_views()
        async with store._context.snapshot() as session:
            return await list_keys(session, store.project)


@keys.command(cls=Command)
@click.argument("key")
@pass_settings
def revoke(settings: Settings, key: str) -> None:
    """Revoke a key, given by its name or id.

    Servers that run know it within 5 seconds. Its name stays taken.
    """
    revoked = run(_revoke(settings, key), "Interrupted. See featurestore keys list.")
    if settings.json:
        output.print_json(_shown(revoked))
        return
    output.say(f"Key {revoked.name} of project {revoked.project} opens nothing any more.")


async def _revoke(settings: Settings, key: str) -> ApiKey:
    from featurestore.storage.api_keys import revoke_key

    async with open_store(settings) as store:
        await store.list_views()
        async with store._context.transaction() as session:
            return await revoke_key(session, store.project, key, dt.datetime.now(dt.UTC))


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "project": key.project,
        "name": key.name,
        "scope": str(key.scope),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
