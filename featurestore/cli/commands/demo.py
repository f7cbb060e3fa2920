"""demo: the whole main job on real data."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli import output
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.session import run

if TYPE_CHECKING:
    from featurestore.demo import DemoResult


@click.command(cls=Command)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("flights_demo"),
    show_default=True,
    help="Where its files go.",
)
@pass_settings
def demo(settings: Settings, folder: Path) -> None:
    """See it work on all flights out of New York in 2013.

    The database is a SQLite file in the folder, unless --url or FEATURESTORE_URL names another.
    """
    result = run(
        _demo(settings, folder),
        f"Interrupted. What was loaded is kept in {folder}; the same command goes on from there.",
    )
    if settings.json:
        output.print_json(asdict(result))


async def _demo(settings: Settings, folder: Path) -> DemoResult:
    from rich.console import Console

    from featurestore.demo import run_demo

    # With --json the story is no result, the numbers are.
    console = Console(file=sys.stderr if settings.json else sys.stdout)
    return await run_demo(settings.url, project=settings.project, folder=folder, console=console)
