"""push, materialize: from rows to history and online."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output, rows
from featurestore.cli.amounts import Moment
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.output import Table, plural
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore.reports import MaterializeReport, PushReport


# --- push ---------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("view")
@click.argument("file", default="-")
@pass_settings
def push(settings: Settings, view: str, file: str) -> None:
    """Write rows into a view, readable online at once.

    FILE (else standard input) has JSON objects, one per line say, or an array of them. Times and
    dates are ISO 8601 text, decimals numbers or text, bytes base64 text; "NaN" and "Infinity"
    stand for the floats that JSON lacks. All rows are written or none.
    """
    if file == "-" and sys.stdin.isatty():
        output.say("Reading JSON rows from the keyboard; Ctrl-D ends them.")
    found = rows.read_rows(file)
    kept = "Interrupted. The rows are written all or none: see featurestore loads " + view
    report = run(_push(settings, view, found, file), kept)
    if settings.json:
        output.print_json(asdict(report))
        return
    future = f", {report.rows_future:,} of them in the future" if report.rows_future else ""
    written = plural(report.rows_written, "row")
    output.say(f"{report.view}: {written} written{future} (load {report.load_id})")


async def _push(
    settings: Settings, view: str, found: list[dict[str, Any]], file: str
) -> PushReport:
    async with open_store(settings) as store:
        registered = await store.get_view(view)
        return await store.push(view, rows.typed(found, registered, file))


# --- materialize --------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("views", metavar="[VIEW]...", nargs=-1)
@click.option("--start", type=Moment(), metavar="TIME", help="Only keys with an event from then.")
@click.option("--end", type=Moment(), metavar="TIME", help="Only keys with an event until then.")
@pass_settings
def materialize(
    settings: Settings,
    views: tuple[str, ...],
    start: dt.datetime | None,
    end: dt.datetime | None,
) -> None:
    """Set online to what history says, by the rule of time.

    All views, or those named. Loads and pushes keep online right by themselves; this brings rows
    online whose time was in the future, and mends what somebody changed by hand. TIME is ISO
    8601, inclusive; without a zone it is UTC, and a date alone is its midnight.
    """
    kept = "Interrupted. What was set is right; the same command does the rest."
    report = run(_materialize(settings, views or None, start, end), kept)
    if settings.json:
        output.print_json(asdict(report))
        return
    table = Table(("view", ">keys changed"))
    table.rows += [(view, f"{changed:,}") for view, changed in report.keys_changed.items()]
    output.print_table(table)
    changed = plural(sum(report.keys_changed.values()), "key")
    output.say(f"{changed} changed in {report.seconds:.2f} s")


async def _materialize(
    settings: Settings,
    views: Sequence[str] | None,
    start: dt.datetime | None,
    end: dt.datetime | None,
) -> MaterializeReport:
    async with open_store(settings) as store:
        return await store.materialize(views, start=start, end=end)
