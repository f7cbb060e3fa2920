"""init, migrate, plan, apply: from definitions to tables."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output
from featurestore.cli.definitions import load_definitions
from featurestore.cli.options import Command, Settings, WrongUse, pass_settings
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore import Plan
    from featurestore.cli.init import Guess
    from featurestore.definitions import Definition

WHOLE = "Interrupted. The change is one transaction, made whole or not at all: see {}."


@click.command(cls=Command)
@click.option("--from", "source", metavar="FILE", help="Write the definitions of this Parquet.")
@click.option("--view", metavar="NAME", help="Name of the view. Else the file's.")
@click.option("--entity", metavar="NAME", help="Name of the entity. Else the key's, without _id.")
@click.option("--key", "keys", metavar="COLUMN", multiple=True, help="Join key; may be repeated.")
@click.option("--time", metavar="COLUMN", help="Event time: when a row became known.")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@pass_settings
def init(
    settings: Settings,
    source: str | None,
    view: str | None,
    entity: str | None,
    keys: tuple[str, ...],
    time: str | None,
    force: bool,
) -> None:
    """Write a features.py: an example, or for a Parquet file.

    With --from, the entity, the event time and the types are guessed from the file's names and
    types, and said. The result works as it is; look it through all the same.
    """
    target = settings.definitions
    if target.exists() and not force:
        raise WrongUse(f"{target} is there already: --force replaces it.")
    if source is None:
        if view or entity or keys or time:
            raise click.UsageError("--view, --entity, --key and --time need --from.")
        from featurestore.cli.template import EXAMPLE

        target.write_text(EXAMPLE, encoding="utf-8")
        document: dict[str, Any] = {"definitions": str(target)}
        output.say(f"{target} is written: an example to make your own. Then: featurestore plan")
    else:
        from featurestore.cli.init import guess
        from featurestore.cli.template import render

        found = guess(source, view=view, entity=entity, keys=keys, time=time)
        target.write_text(render(found), encoding="utf-8")
        document = {"definitions": str(target), **found.document()}
        _say_guess(target, found)
    if settings.json:
        output.print_json(document)


def _say_guess(target: Path, found: Guess) -> None:
    lines = [f"{target} is written, for {found.source}:", *(f"  {line}" for line in found.words())]
    output.say("\n".join(lines))
    output.warn(found.warnings())
    option = "" if target == Settings.definitions else f" --definitions {shlex.quote(str(target))}"
    output.say(f"Next:\n  featurestore apply{option}\n  featurestore ingest {found.view}")


@click.command(cls=Command)
@pass_settings
def migrate(settings: Settings) -> None:
    """Bring the store's own tables to this version."""
    before, after = run(_migrate(settings), WHOLE.format("featurestore migrate"))
    if settings.json:
        output.print_json({"before": before, "after": after, "changed": before != after})
    elif before == after:
        output.say(f"The database is at {after} already.")
    else:
        output.say(f"The database is at {after} now{f', before at {before}' if before else ''}.")


async def _migrate(settings: Settings) -> tuple[str | None, str]:
    async with open_store(settings) as store:
        return await store.migrate()


@click.command(cls=Command)
@pass_settings
def plan(settings: Settings) -> None:
    """Show what apply would change in the database."""
    found = run(_plan(settings, load_definitions(settings.definitions)), "Interrupted.")
    _print_plan(settings, found, applied=False)
    if found:
        allow = "".join(f" --allow {what}" for what in _required(found))
        output.say(f"To carry it out: featurestore apply{allow}")


async def _plan(settings: Settings, definitions: list[Definition]) -> Plan:
    async with open_store(settings) as store:
        return await store.plan(definitions)


@click.command(cls=Command)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["drop", "narrow"]),
    help="Permit loss: drop what is gone from a view, narrow a type. May be repeated.",
)
@pass_settings
def apply(settings: Settings, allow: tuple[str, ...]) -> None:
    """Carry the plan out: register definitions, change tables.

    It is one transaction. What the definitions do not name stays as it is.
    """
    definitions = load_definitions(settings.definitions)
    kept = WHOLE.format("featurestore plan")
    done = run(_apply(settings, definitions, allow), kept)
    _print_plan(settings, done, applied=True)


async def _apply(settings: Settings, definitions: list[Definition], allow: tuple[str, ...]) -> Plan:
    async with open_store(settings) as store:
        return await store.apply(definitions, allow=set(allow))


def _required(found: Plan) -> list[str]:
    """What ``--allow`` must name for the plan to be carried out."""
    return sorted({change.requires for change in found if change.requires})


CHANGE = ("action", "kind", "name", "detail", "requires", "warning")
COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def _print_plan(settings: Settings, found: Plan, *, applied: bool) -> None:
    if settings.json:
        changes = [{name: getattr(one, name) for name in CHANGE} for one in found]
        output.print_json({"applied": applied, "changes": changes})
    elif found:
        for line in str(found).splitlines():
            colour = COLOURS.get(line.lstrip()[:1])
            print(output.styled(output.printable(line), sys.stdout, fg=colour))
    if not found:
        output.say("Nothing to change: the database is as the definitions say.")
    elif applied:
        output.say(f"Applied: {output.plural(len(found), 'change')}.")
