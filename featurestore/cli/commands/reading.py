"""online, training-set: features out, for one moment or for many."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from featurestore.cli import output, rows, selections
from featurestore.cli.options import Command, Settings, pass_settings
from featurestore.cli.output import Faint, Table, plural
from featurestore.cli.progress import RowProgress
from featurestore.cli.session import open_store, run
from featurestore.cli.training import training_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import pyarrow as pa

    from featurestore import OnlineFeatures

FULL_NAMES = click.option(
    "--full-feature-names", is_flag=True, help="Call columns view__feature, not feature."
)


# --- online -------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("words", metavar="FEATURES... [KEY=VALUE]...", nargs=-1, required=True)
@click.option(
    "--entity",
    "entities",
    metavar="KEY=VALUE[,KEY=VALUE]",
    multiple=True,
    help="One entity row, also as a JSON object; repeat it for several.",
)
@FULL_NAMES
@pass_settings
def online(
    settings: Settings, words: tuple[str, ...], entities: tuple[str, ...], full_feature_names: bool
) -> None:
    """Read features online, as a model in service would.

    FEATURES are view:feature, view:* for all of a view, or the name of one feature service.

    \b
      featurestore online driver_stats:conv_rate driver_id=1001
      featurestore online "driver_stats:*" --entity driver_id=1001 --entity driver_id=1002
      featurestore online arrival_delay --entity origin=JFK,carrier=DL,tailnum=N718TW

    Times and dates are ISO 8601, bytes base64. Where there is no value its status stands.
    """
    features, pairs = selections.split_words(words)
    keys, found = run(
        _online(settings, features, list(entities), pairs, full_feature_names), "Interrupted."
    )
    if settings.json:
        output.print_json(_online_document(found))
    else:
        output.print_wide(_online_table(found, keys))


async def _online(
    settings: Settings,
    features: list[str] | str,
    entities: list[str],
    pairs: list[str],
    full_feature_names: bool,
) -> tuple[list[str], OnlineFeatures]:
    async with open_store(settings) as store:
        wanted = await selections.resolve(store, features)
        entity_rows = selections.entity_rows(entities, pairs, wanted.keys)
        found = await store.get_online_features(
            wanted.features, entity_rows, full_feature_names=full_feature_names
        )
        return list(wanted.keys), found


def _online_document(found: OnlineFeatures) -> dict[str, Any]:
    return {
        "rows": found.to_dicts(),
        "statuses": [{name: str(one) for name, one in row.items()} for row in found.statuses],
        "event_timestamps": [dict(row) for row in found.event_timestamps],
    }


def _online_table(found: OnlineFeatures, keys: list[str]) -> Table:
    table = Table(keys)
    for row, statuses in zip(found.to_dicts(), found.statuses, strict=True):
        table.heads = list(row)
        table.rows.append(
            [
                value if statuses.get(name, "PRESENT") == "PRESENT" else Faint(str(statuses[name]))
                for name, value in row.items()
            ]
        )
    return table


# --- training-set -------------------------------------------------------------------------


@click.command("training-set", cls=Command)
@click.argument("entities", metavar="ENTITIES")
@click.argument("features", metavar="FEATURES...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "--out",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Parquet file to write; replaced if it is there.",
)
@click.option(
    "--timestamp-column",
    default="event_timestamp",
    show_default=True,
    metavar="COLUMN",
    help="The column of ENTITIES that says as of when.",
)
@FULL_NAMES
@pass_settings
def training_set(
    settings: Settings,
    entities: str,
    features: tuple[str, ...],
    target: Path,
    timestamp_column: str,
    full_feature_names: bool,
) -> None:
    """Write a training set: features as of each row's time.

    ENTITIES is a Parquet or CSV file with the join keys and a time. Every row and column of it
    is kept, in order. FEATURES are view:feature, view:* or the name of one feature service. The
    share of the rows that found a value in each view is printed.
    """
    names, pairs = selections.split_words(features)
    if pairs:
        raise click.UsageError(f"{pairs[0]}: a training set takes its keys from ENTITIES.")
    if target.suffix.lower() in (".csv", ".json", ".xlsx"):
        raise click.UsageError(f"{target}: a training set is written as Parquet.")
    with RowProgress(target.name) as progress:
        document = run(
            _training_set(
                settings, entities, names, target, timestamp_column, full_feature_names, progress
            ),
            f"Interrupted: {target} was not written.",
            progress.close,
        )
    if settings.json:
        output.print_json(document)
        return
    table = Table(("view", ">rows with a value"))
    table.rows += [(view, f"{share:.1%}") for view, share in document["match_rate"].items()]
    output.print_table(table)
    output.say(
        f"{target}: {plural(document['rows'], 'row')}, {plural(document['columns'], 'column')}"
    )


async def _training_set(
    settings: Settings,
    entities: str,
    features: list[str] | str,
    target: Path,
    timestamp_column: str,
    full_feature_names: bool,
    progress: RowProgress,
) -> dict[str, Any]:
    async with open_store(settings) as store:
        wanted = await selections.resolve(store, features)
        table = await asyncio.to_thread(rows.read_table, entities, wanted.keys, timestamp_column)
        options: dict[str, Any] = {
            "timestamp_column": timestamp_column,
            "full_feature_names": full_feature_names,
        }
        columns = wanted.columns(full_feature_names=full_feature_names)
        async with training_file(target, columns) as file:
            stream = store.stream_historical_features(table, wanted.features, **options)
            # Closed here and not by the loop's end: it holds a connection of the store.
            async with contextlib.aclosing(cast("AsyncGenerator[pa.RecordBatch]", stream)):
                async for batch in stream:
                    await file.add(batch)
                    progress.of_rows(file.rows, table.num_rows)
            if not file.rows:  # a stream of nothing has no columns
                found = await store.get_historical_features(table, wanted.features, **options)
                await file.write(found.to_arrow())
    return {
        "output": str(target),
        "rows": file.rows,
        "columns": file.columns,
        "match_rate": {view: count / max(file.rows, 1) for view, count in file.with_value.items()},
    }
