"""explain: why a value is what it is in a training set."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
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

LONGEST_TEXT = 24
"""Characters of a text, or of a list, that a terminal shows in a cell."""

MOST_NAMES = 8
"""Features without room that are named."""

_FEATURE = "feature:"

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
@click.option(
    "--feature",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="Show this feature alone; several times for several. Else all that the terminal is wide "
    "enough for.",
)
@pass_settings
def explain(
    settings: Settings,
    view: str,
    pairs: tuple[str, ...],
    at: dt.datetime | None,
    known_by: KnownBy | None,
    limit: int,
    chosen: tuple[str, ...],
) -> None:
    """Say why a value is what it is in a training set.

    \b
      featurestore explain driver_stats driver_id=1001 --at 2024-05-01T12:00:00Z

    Shows the rows of the key about that time, newest first: which of them wins, why the others
    do not, and the load that each came with. "row" is the row's number, from 0, among those that
    its load wrote. TIME is ISO 8601; without a zone it is UTC, and a date alone is its midnight.
    """
    told = run(_explain(settings, view, pairs, at, known_by, limit), "Interrupted.")
    unknown = [name for name in chosen if name not in told.values]
    if unknown:
        raise click.UsageError(
            f"{view} has no feature {unknown[0]!r}; its features: {', '.join(told.values)}."
        )
    if settings.json:
        output.print_json(_document(told))
        return
    table, lacking = shown(told, list(dict.fromkeys(chosen)), output.room())
    print(output.printable(told.heading))
    output.print_table(table)
    for line in (*lacking, *_remarks(told)):
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


def shown(
    told: Explanation, chosen: Sequence[str], room: int | None
) -> tuple[Table, Iterator[str]]:
    """The rows as a table no wider than ``room``, and what to say of columns that it lacks.

    What decides is always there: verdict, times and load; features that were chosen, too. Of the
    others, the row's number, features and the source come as they find room, in this order. A
    number is whole or not there.
    """
    columns = _columns(told, room)
    always = {"verdict", "event time", "created", ">load", *map(_feature, chosen)}
    others = [] if chosen else [_feature(name) for name in told.values]
    kept = _table(columns, always)
    for head in (">row", *others, "source"):
        wider = _table(columns, always | {head})
        if room is None or output.needed(wider) <= room:
            always.add(head)
            kept = wider
    hidden = [name for name in told.values if _feature(name) not in always]
    return kept, _lacking(told, [] if chosen else hidden, source="source" in always)


def _columns(told: Explanation, room: int | None) -> dict[str, list[object]]:
    """Head → cells, in the order in which they are shown."""
    rows = told.candidates
    columns: dict[str, list[object]] = {
        "verdict": [one.verdict.value for one in rows],
        "event time": [one.event_timestamp for one in rows],
        "created": [one.created_timestamp for one in rows],
    }
    for name in told.values:
        values = [one.values[name] for one in rows]
        columns[_feature(name)] = values if room is None else [_shortened(one) for one in values]
    columns[">load"] = [one.load_id for one in rows]
    columns[">row"] = [one.position for one in rows]
    columns["source"] = [one.source if room is None else _end_of(one.source) for one in rows]
    return columns


def _table(columns: dict[str, list[object]], heads: set[str]) -> Table:
    """Those of the columns."""
    kept = [head for head in columns if head in heads]
    rows = zip(*(columns[head] for head in kept), strict=True)
    return Table([head.removeprefix(_FEATURE) for head in kept], list(rows))


def _feature(name: str) -> str:
    """The head of a feature, which may have the name of another column."""
    return f"{_FEATURE}{name}"


def _shortened(value: object) -> object:
    """Text, bytes, lists and documents cut where they are long; all else as it is."""
    if not isinstance(value, str | bytes | list | dict):
        return value
    text = output.cell(value)
    if len(text) <= LONGEST_TEXT:
        return text
    if isinstance(value, list):  # its last number would be cut in two
        items = text[: LONGEST_TEXT - 2].rpartition(", ")[0]
        return f"{items}, …]" if items else "[…]"
    return text[: LONGEST_TEXT - 1] + "…"


def _end_of(source: str) -> str:
    """The end of a path: the folder is known, the file tells."""
    return source if len(source) <= LONGEST_TEXT else "…" + source[1 - LONGEST_TEXT :]


def _lacking(told: Explanation, hidden: Sequence[str], *, source: bool) -> Iterator[str]:
    if not (hidden or source):
        yield "The source of each row finds no room: --json has it."
    if hidden:
        lacking = ", ".join(hidden[:MOST_NAMES]) + (", …" if len(hidden) > MOST_NAMES else "")
        too = "" if source else " and the source of each row"
        yield (
            f"{plural(len(hidden), 'feature')} ({lacking}){too} found no room: --feature NAME "
            f"shows one, --json has all."
        )


def _remarks(told: Explanation) -> list[str]:
    remarks = []
    if told.rows > len(told.candidates):
        shown = f"{len(told.candidates):,} of {plural(told.rows, 'row')}"
        remarks.append(f"{shown} of the key are shown.")
    if told.online is not None:
        remarks.append(f"online: {told.online.status}. {told.online.reason}")
    return [*remarks, told.reason]
