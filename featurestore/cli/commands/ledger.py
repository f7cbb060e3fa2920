"""loads, undo, status: what the database holds and where it came from."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.output import Table, plural
from featurestore.cli.session import open_store, run
from featurestore.errors import NotFoundError
from featurestore.urls import without_secrets

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from featurestore.definitions import FeatureView
    from featurestore.reports import Load, QuarantinedRow, UndoReport
    from featurestore.store import FeatureStore

PAGE = 1_000
"""Quarantined rows that are read at a time where all are shown."""


# --- loads --------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("view", required=False)
@click.option("--rejected", is_flag=True, help="The rows that were set aside, and why.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Show the latest N alone; 0 for all. JSON has all unless it is given.",
)
@pass_settings
@click.pass_context
def loads(
    ctx: click.Context, settings: Settings, view: str | None, rejected: bool, limit: int
) -> None:
    """List what was loaded and pushed, the latest last."""
    given = ctx.get_parameter_source("limit") is not click.core.ParameterSource.DEFAULT
    most = limit if limit and (given or not settings.json) else None
    if rejected:
        found = run(_print_rejected(settings, view, most), "Interrupted.")
    else:
        found = run(_print_loads(settings, view, most), "Interrupted.")
    if not found and not settings.json:
        kind = "row set aside" if rejected else "load"
        output.say(f"No {kind}{f' of {view}' if view else ''}.")


async def _print_loads(settings: Settings, view: str | None, most: int | None) -> bool:
    """Whether there are any."""
    async with open_store(settings) as store:
        found = await store.loads(view, limit=_one_more(most))
    shown = found if most is None else found[-most:]
    if settings.json:
        output.print_json([asdict(one) | {"complete": one.complete} for one in shown])
    else:
        output.print_table(_loads_table(shown))
        _say_what_is_left_out(found, shown)
        _say_how_to_go_on(shown)
    return bool(found)


async def _print_rejected(settings: Settings, view: str | None, most: int | None) -> bool:
    """Whether there are any. All of them may be more than the memory takes."""
    printed, document = False, output.JsonList()
    async with open_store(settings) as store:
        pages = _pages(store, view) if most is None else _latest(store, view, most, settings)
        async with contextlib.aclosing(pages):
            async for rows in pages:
                if settings.json:
                    document.add(asdict(row) for row in rows)
                else:
                    output.print_table(_rejected_table(rows), heads=not printed)
                printed = True
    if settings.json:
        document.end()
    return printed


async def _latest(
    store: FeatureStore, view: str | None, most: int, settings: Settings
) -> AsyncGenerator[list[QuarantinedRow]]:
    found = await store.rejected(view=view, limit=_one_more(most))
    if shown := found[-most:]:
        yield shown
    if not settings.json:
        _say_what_is_left_out(found, shown)


async def _pages(store: FeatureStore, view: str | None) -> AsyncGenerator[list[QuarantinedRow]]:
    for load in await store.loads(view):
        last = -1
        while load.rows_rejected and (
            rows := await store.rejected(load.load_id, limit=PAGE, after_row=last)
        ):
            yield rows
            last = rows[-1].row


def _one_more(most: int | None) -> int | None:
    """One that tells whether there are more than are shown."""
    return None if most is None else most + 1


def _say_what_is_left_out(found: Sequence[object], shown: Sequence[object]) -> None:
    if len(shown) < len(found):
        output.say(f"These are the latest {len(shown):,}; --limit 0 shows all.")


def _say_how_to_go_on(loads: Sequence[Load]) -> None:
    for load in filter(_is_part, loads):
        output.say(
            f"Load {load.load_id} has {load.rows_read:,} of {load.rows_total:,} rows: ingest the "
            f"file again to go on, or featurestore undo {load.load_id}."
        )


def _is_part(load: Load) -> bool:
    return not load.complete and load.undone_at is None


def _loads_table(loads: Sequence[Load]) -> Table:
    table = Table(
        (
            *(">load", "view", "?kind", "~source", ">read", "?>written", "?>rejected"),
            *("?finished", "state"),
        )
    )
    for load in loads:
        counts = (f"{n:,}" for n in (load.rows_read, load.rows_written, load.rows_rejected))
        finished = load.finished_at.replace(microsecond=0)
        state = "undone" if load.undone_at else ""
        if _is_part(load):
            state = f"part of {load.rows_total:,}"
        table.rows.append(
            (load.load_id, load.view, load.kind, load.source, *counts, finished, state)
        )
    return table


def _rejected_table(rows: Sequence[QuarantinedRow]) -> Table:
    table = Table((">load", "view", "~source", ">row", "~reason", "~values"))
    for row in rows:
        values = ", ".join(f"{name}={value}" for name, value in row.values.items())
        table.rows.append((row.load_id, row.view, row.source, row.row, row.reason, values))
    return table


# --- undo ---------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("load_id", type=int)
@click.option("--yes", is_flag=True, help="Do not ask (without a terminal nobody is asked).")
@pass_settings
def undo(settings: Settings, load_id: int, yes: bool) -> None:
    """Take the rows of one load back out.

    They leave history and online. LOAD_ID is the first column of featurestore loads. The file
    can then be loaded again.
    """
    ask = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    if ask:
        load = run(_find_load(settings, load_id), "Interrupted: nothing was undone.")
        output.say(
            f"Load {load.load_id}: {plural(load.rows_written, 'row')} of {load.view}, from "
            f"{load.source}."
        )
        if not click.confirm("Take them back out?", err=True):
            output.say("Nothing was undone.")
            return
    kept = "Interrupted. A load is undone whole or not at all: see featurestore loads."
    report = run(_undo(settings, load_id), kept)
    if settings.json:
        output.print_json(asdict(report))
        return
    output.say(str(report))


async def _find_load(settings: Settings, load_id: int) -> Load:
    async with open_store(settings) as store:
        for load in await store.loads(load_id=load_id):
            return load
    raise NotFoundError(f"There is no load {load_id}: featurestore loads lists them.")


async def _undo(settings: Settings, load_id: int) -> UndoReport:
    async with open_store(settings) as store:
        return await store.undo_load(load_id)


# --- status -------------------------------------------------------------------------------


@click.command(cls=Command)
@pass_settings
def status(settings: Settings) -> None:
    """Show what is registered and how much is there."""
    document = run(_status(settings), "Interrupted.")
    if settings.json:
        output.print_json(document)
        return
    print(f"database  {output.printable(document['database'])}")
    print(f"project   {document['project']}")
    services = ", ".join(one["name"] for one in document["services"]) or "none"
    print(f"services  {services}\n", flush=True)
    if not document["views"]:
        output.say("No views are registered: see featurestore apply.")
    output.print_table(_views_table(document["views"]))


async def _status(settings: Settings) -> dict[str, Any]:
    async with open_store(settings) as store:
        views = [await _view_status(store, view) for view in await store.list_views()]
        entities = await store.list_entities()
        services = await store.list_services()
        # Passwords may stand among the parameters too.
        url = store.engine.url.difference_update_query(["password"])
    return {
        "database": url.render_as_string(hide_password=True),
        "project": settings.project,
        "entities": [
            {"name": one.name, "join_keys": _type_names(one.join_keys)} for one in entities
        ],
        "views": views,
        "services": [
            {"name": one.name, "views": [part.name for part in one.features]} for one in services
        ],
    }


async def _view_status(store: FeatureStore, view: FeatureView) -> dict[str, Any]:
    loads = [load for load in await store.loads(view.name) if load.undone_at is None]
    return {
        "name": view.name,
        "join_keys": _type_names(view.join_keys),
        "features": _type_names(view.types),
        "ttl_seconds": None if view.ttl is None else view.ttl.total_seconds(),
        "online": view.online,
        "notify": view.notify,
        "source": None if view.source is None else [*map(without_secrets, view.source.paths)],
        "rows": await store.repository(view.name).count(),
        "loads": len(loads),
        "last_load": max((load.finished_at for load in loads), default=None),
    }


def _type_names(kinds: Any) -> dict[str, str]:
    return {name: str(kind) for name, kind in kinds.items()}


def _views_table(views: list[dict[str, Any]]) -> Table:
    table = Table(("view", "keys", ">features", ">rows", ">loads", "online", "ttl", "last load"))
    for view in views:
        last = view["last_load"]
        table.rows.append(
            (
                view["name"],
                ", ".join(view["join_keys"]) or "none",
                len(view["features"]),
                f"{view['rows']:,}",
                f"{view['loads']:,}",
                "yes" if view["online"] else "no",
                _ttl(view["ttl_seconds"]),
                "" if last is None else last.replace(microsecond=0),
            )
        )
    return table


def _ttl(seconds: float | None) -> str:
    from featurestore.definitions import ttl_text

    return "none" if seconds is None else ttl_text(dt.timedelta(seconds=seconds))
