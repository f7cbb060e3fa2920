"""explain: why a value is what it is in a training set."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output, selections
from featurestore.cli.amounts import Moment
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.output import Table, plural
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore import Explanation
    from featurestore.training.rule import KnownBy

MOST_CANDIDATES = 1_000
"""As the library has it, which takes most of a second to import; a test compares the two."""


@click.command(cls=Command)
@click.argument("view")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--at", type=Moment(), metavar="TIME", help="As of when. Else now, and online is compared."
)
@click.option(
    "--known-by",
    type=click.Choice(["created_timestamp"]),
    help="Count only rows that were created by then.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_CANDIDATES),
    default=10,
    show_default=True,
    help="Show so many rows at most: those that matter for the answer.",
)
@pass_settings
def explain(
    settings: Settings,
    view: str,
    pairs: tuple[str, ...],
    at: dt.datetime | None,
    known_by: KnownBy | None,
    limit: int,
) -> None:
    """Say why a value is what it is in a training set.

    \b
      featurestore explain driver_stats driver_id=1001 --at 2024-05-01T12:00:00Z

    Shows the rows of the key about that time, newest first: which of them wins, why the others
    do not, and the load that each came with. "row" is the row's number, from 0, among those that
    its load wrote. TIME is ISO 8601; without a zone it is UTC, and a date alone is its midnight.
    """
    told = run(_explain(settings, view, pairs, at, known_by, limit), "Interrupted.")
    if settings.json:
        output.print_json(_document(told))
        return
    output.print_table(_table(told))
    for line in _remarks(told):
        print(output.printable(line))


async def _explain(
    settings: Settings,
    view: str,
    pairs: tuple[str, ...],
    at: dt.datetime | None,
    known_by: KnownBy | None,
    limit: int,
) -> Explanation:
    async with open_store(settings) as store:
        keys = selections.entity_row(pairs, (await store.get_view(view)).join_keys)
        return await store.explain(view, keys, at, known_by=known_by, limit=limit)


def _document(told: Explanation) -> dict[str, Any]:
    document = asdict(told)
    del document["ttl"]
    return document | {
        "ttl_seconds": None if told.ttl is None else told.ttl.total_seconds(),
        "winner": None if told.winner is None else asdict(told.winner),
        "reason": told.reason,
    }


def _table(told: Explanation) -> Table:
    heads = ["verdict", "event time", "?created", *(f"~{name}" for name in told.values)]
    table = Table([*heads, ">load", ">row", "~source"])
    for one in told.candidates:
        times = (one.event_timestamp, one.created_timestamp)
        shown = [one.values[name] for name in told.values]
        lineage = (one.load_id, one.position, one.source)
        table.rows.append((one.verdict.value, *times, *shown, *lineage))
    return table


def _remarks(told: Explanation) -> list[str]:
    remarks = []
    if told.rows > len(told.candidates):
        shown = f"{len(told.candidates):,} of {plural(told.rows, 'row')}"
        remarks.append(f"{shown} of the key are shown.")
    if told.online is not None:
        remarks.append(f"online: {told.online.status}. {told.online.reason}")
    return [*remarks, told.reason]
