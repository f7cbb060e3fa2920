"""export: a Parquet copy of a view's history."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from featurestore.cli import output
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.progress import RowProgress
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore.reports import ExportReport

MAX_BUCKETS = 512
"""As the library has it, which takes most of a second to import; a test compares the two."""


@click.command(cls=Command)
@click.argument("view")
@click.argument("folder")
@click.option(
    "--buckets",
    type=click.IntRange(1, MAX_BUCKETS),
    metavar="N",
    help="Parts that the keys are divided into, when the copy is first made. Else 16.",
)
@pass_settings
def export(settings: Settings, view: str, folder: str, buckets: int | None) -> None:
    """Write a view's history as Parquet, or go on where it was.

    What came since the last export into FOLDER is added; what was undone or erased is taken out.
    Each row is in the copy once. A terminal shows how far it is.
    """
    kept = "Interrupted. The copy is as it was before; the same command does it."
    with RowProgress(view) as progress:
        work = _export(settings, view, folder, buckets, progress)
        report = run(work, kept, progress.close)
    if settings.json:
        output.print_json(asdict(report))
        return
    output.say(str(report))


async def _export(
    settings: Settings, view: str, folder: str, buckets: int | None, progress: RowProgress
) -> ExportReport:
    async with open_store(settings) as store:
        return await store.export_history(
            view, folder, buckets=buckets, progress=progress.of_export
        )
