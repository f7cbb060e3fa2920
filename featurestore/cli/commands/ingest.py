"""ingest: from files to history and online, with what to see meanwhile and after Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output
from featurestore.cli.amounts import Count, Size, size_in_full
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.output import Table, plural
from featurestore.cli.progress import RowProgress
from featurestore.cli.session import open_store, run
from featurestore.errors import FeatureStoreError
from featurestore.ingest.budget import MAX_BYTES_IN_FLIGHT, MAX_DECODED_BYTES
from featurestore.ingest.job import FILES_AT_ONCE

if TYPE_CHECKING:
    from featurestore.ingest.progress import Progress
    from featurestore.reports import IngestReport, Load
    from featurestore.store import FeatureStore

WORTH_A_RATE = 10_000
"""Rows below which rows/s tells of the start alone."""

LOOK_SECONDS = 0.4
"""How long the ledger is asked after Ctrl-C, which should end within a second."""


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
@click.option(
    "--commit-every",
    type=Count(),
    metavar="ROWS",
    help="Keep a long file in steps of so many rows: broken off, the same command goes on after "
    "them. Else a file is kept whole or not at all.",
)
@click.option(
    "--files-at-once",
    type=Count(),
    metavar="N",
    default=FILES_AT_ONCE,
    show_default=True,
    help="Load so many files side by side. SQLite and --commit-every take one at a time.",
)
@click.option(
    "--max-memory",
    "max_bytes_in_flight",
    type=Size(),
    metavar="SIZE",
    default=size_in_full(MAX_BYTES_IN_FLIGHT),
    show_default=True,
    help="Hold at most so much of the files in memory, such as 64MB or 1GiB.",
)
@click.option(
    "--max-decoded",
    "max_decoded_bytes",
    type=Size(),
    metavar="SIZE",
    default=size_in_full(MAX_DECODED_BYTES),
    show_default=True,
    help="Refuse a file with a row group that unpacks to more: it may be made to fill the memory.",
)
@pass_settings
def ingest(settings: Settings, view: str, sources: tuple[str, ...], **options: Any) -> None:
    """Load Parquet files into a view, history and online.

    SOURCE is a file, glob, folder or URL; without one it is the source of VIEW itself. Each file
    is loaded whole or not at all, and skipped where its content is there already: after a
    failure the same command goes on from there.

    \b
      featurestore ingest driver_stats
      featurestore ingest driver_stats "data/2024-*.parquet" --on-invalid quarantine
      featurestore ingest driver_stats huge.parquet --commit-every 1_000_000
    """
    with RowProgress(view) as progress:
        kept = _Kept(progress, forced=options["force"])
        report = run(
            _ingest(settings, view, list(sources), options, kept), kept.in_words, progress.close
        )
    if settings.json:
        output.print_json(_document(report))
    else:
        output.print_table(_table(report))
    _say(report)


async def _ingest(
    settings: Settings, view: str, sources: Sequence[str], options: dict[str, Any], kept: _Kept
) -> IngestReport:
    async with open_store(settings) as store:
        try:
            return await store.ingest(
                view, sources or None, progress=kept.progress.of_files, **options
            )
        except (asyncio.CancelledError, Exception):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                await kept.look(store)
            raise


# --- after Ctrl-C -----------------------------------------------------------------------------


class _Kept:
    """What of an ingest was kept when it was broken off.

    Reports alone do not tell: a commit that was under way is waited for and not reported any
    more. So the ledger is asked about the files that were not done.
    """

    def __init__(self, progress: RowProgress, *, forced: bool) -> None:
        self.progress = progress
        self._forced = forced
        self._files = 0
        self._part: Load | None = None
        self._begun = False
        self._unknown = False

    async def look(self, store: FeatureStore) -> None:
        self._files = self.progress.files_done
        under_way = [one for one in self.progress.under_way if one.load_id is not None]
        self._begun = bool(self._files or under_way)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                for one in sorted(under_way, key=_number):
                    for load in await store.loads(load_id=one.load_id):
                        self._take(load)
        except (FeatureStoreError, TimeoutError):
            self._unknown = True

    def _take(self, load: Load) -> None:
        if load.undone_at is None:
            if load.complete:
                self._files += 1
            else:
                self._part = load

    def in_words(self) -> str:
        """One line: what is there, and how to go on."""
        total = self.progress.files_total
        if self._unknown:
            return (
                "Interrupted; the database did not answer: featurestore loads shows what was kept."
            )
        if total is None or not self._begun:
            return "Interrupted before anything was loaded; run it again."
        if self._files >= total:
            done = "the file was" if total == 1 else f"all {total:,} files were"
            return f"Interrupted at the end: {done} loaded and kept."
        files = f"{self._files:,} of {plural(total, 'file')} kept"
        part = self._part
        if part is None and not self._files:
            return "Interrupted: nothing was kept; run it again to start over."
        if part is None:
            kept = files
        elif total == 1:
            kept = f"{part.rows_read:,} of {part.rows_total:,} rows kept"
        else:
            kept = f"{files}, {plural(part.rows_read, 'row')} of the next"
        return f"Interrupted: {kept}; {self._way_on()}."

    def _way_on(self) -> str:
        if not self._forced:
            return "run it again to go on"
        # Once more with --force would load anew what is there.
        if self._part is not None:
            return f"featurestore undo {self._part.load_id} takes the part out"
        return "give the other files to load the rest"


def _number(now: Progress) -> int:
    return now.file_number


# --- the report -------------------------------------------------------------------------------


def _document(report: IngestReport) -> dict[str, Any]:
    return asdict(report) | {
        "rows_read": report.rows_read,
        "rows_written": report.rows_written,
        "rows_rejected": report.rows_rejected,
        "rows_future": report.rows_future,
    }


def _table(report: IngestReport) -> Table:
    table = Table(("~source", ">load", ">read", ">written", ">rejected", "?>seconds", "~note"))
    for load in report.loads:
        counts = (f"{n:,}" for n in (load.rows_read, load.rows_written, load.rows_rejected))
        table.rows.append((load.source, load.load_id, *counts, f"{load.seconds:.2f}", load.note))
    return table


def _say(report: IngestReport) -> None:
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
