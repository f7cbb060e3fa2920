"""ingest, push, materialize: from files and rows to history and online."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click

from featurestore.cli import output, rows
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.output import Table, plural
from featurestore.cli.progress import RowProgress
from featurestore.cli.session import open_store, run
from featurestore.cli.values import read_timestamp

if TYPE_CHECKING:
    from featurestore.reports import IngestReport, LoadReport, MaterializeReport, PushReport


WORTH_A_RATE = 10_000
"""Rows below which rows/s tells of the start alone."""


class Moment(click.ParamType[dt.datetime]):
    """A time on the command line."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        try:
            return read_timestamp(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


# --- ingest -------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("view")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@click.option(
    "--on-invalid",
    type=click.Choice(["raise", "quarantine"]),
    default="raise",
    show_default=True,
    help="A row that does not fit: refuse its file, or set the row aside and load the rest.",
)
@click.option("--force", is_flag=True, help="Load content again that is there already.")
@pass_settings
def ingest(
    settings: Settings,
    view: str,
    sources: tuple[str, ...],
    on_invalid: Literal["raise", "quarantine"],
    force: bool,
) -> None:
    """Load Parquet files into a view, history and online.

    SOURCE is a file, glob, folder or URL; without one it is the source of VIEW itself. Each file
    is loaded whole or not at all, and skipped where its content is there already: after a
    failure the same command goes on from there.
    """
    with RowProgress(view) as progress:
        report = run(
            _ingest(settings, view, sources, on_invalid, force, progress),
            lambda: _kept(view, progress),
        )
    if settings.json:
        output.print_json(_ingest_document(report))
    else:
        output.print_table(_ingest_table(report))
    _say_ingest(report)


async def _ingest(
    settings: Settings,
    view: str,
    sources: tuple[str, ...],
    on_invalid: Literal["raise", "quarantine"],
    force: bool,
    progress: RowProgress,
) -> IngestReport:
    source = list(sources) if len(sources) > 1 else sources[0] if sources else None
    async with open_store(settings) as store:
        return await store.ingest(
            view, source, on_invalid=on_invalid, force=force, progress=progress.of_files
        )


def _kept(view: str, progress: RowProgress) -> str:
    if not progress.files_done or progress.files_total is None:
        return f"Interrupted: nothing was loaded into {view}."
    done = f"{progress.files_done} of {plural(progress.files_total, 'file')}"
    return (
        f"Interrupted: {done} loaded and kept, nothing of the others. The same command goes on "
        f"from there; featurestore loads {view} shows what is there."
    )


def _ingest_document(report: IngestReport) -> dict[str, Any]:
    return asdict(report) | {
        "rows_read": report.rows_read,
        "rows_written": report.rows_written,
        "rows_rejected": report.rows_rejected,
        "rows_future": report.rows_future,
    }


def _ingest_table(report: IngestReport) -> Table:
    table = Table(("~source", ">load", ">read", ">written", ">rejected", ">seconds", "~note"))
    for load in report.loads:
        counts = (f"{n:,}" for n in (load.rows_read, load.rows_written, load.rows_rejected))
        note = _load_note(load)
        table.rows.append((load.source, load.load_id, *counts, f"{load.seconds:.2f}", note))
    return table


def _load_note(load: LoadReport) -> str:
    if load.skipped:
        return "skipped: loaded before"
    return f"{load.rows_future:,} in the future" if load.rows_future else ""


def _say_ingest(report: IngestReport) -> None:
    output.warn(report.warnings)
    if report.rows_rejected:
        output.say(f"Why they were: featurestore loads {report.view} --rejected")
    rate = ""
    if report.rows_written >= WORTH_A_RATE:
        rate = f" ({report.rows_written / report.seconds:,.0f} rows/s)"
    output.say(
        f"{report.view}: {plural(report.rows_written, 'row')} of "
        f"{plural(len(report.loads), 'file')} in {report.seconds:.2f} s{rate}"
    )


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
