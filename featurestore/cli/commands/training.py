"""training-set, replay, mark: features as of many moments, and the same once more."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output, rows, selections
from featurestore.cli.amounts import Size, State
from featurestore.cli.options import FULL_NAMES, Command, Settings, pass_settings
from featurestore.cli.output import Table, plural
from featurestore.cli.progress import RowProgress
from featurestore.cli.session import open_store, run
from featurestore.cli.training import TrainingFile
from featurestore.errors import SourceError
from featurestore.training.whole_file import check_target

if TYPE_CHECKING:
    from featurestore.definitions import FeatureView
    from featurestore.storage.marks import Mark
    from featurestore.store import FeatureStore
    from featurestore.training.manifest import Manifest
    from featurestore.training.training_set import TrainingSet
    from featurestore.types import FeatureType

LEAST_MEMORY = 128 << 20
"""As the library has it, which takes most of a second to import; a test compares the two."""

_NO_PARQUET = (".csv", ".json", ".xlsx")


def _target(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
    """What cannot become the file is told before the work, which may be long."""
    if path.suffix.lower() in _NO_PARQUET:
        raise click.UsageError(f"{path}: a training set is written as Parquet.", ctx)
    parent = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not parent.is_dir():
        raise click.UsageError(f"{path}: there is no folder {parent}", ctx)
    with suppress(OSError):  # of a folder that may not be looked into, say: the writer tells it
        try:
            check_target(path)
        except SourceError as error:
            raise click.UsageError(str(error), ctx) from None
    return path


def _check_other(target: Path, given: str) -> None:
    """What is read is not written over."""
    if target.exists() and os.path.exists(given) and os.path.samefile(target, given):
        raise click.UsageError(f"{target} is what the set is made from: name another file for it.")


OUTPUT = click.option(
    "-o",
    "--output",
    "--out",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_target,
    required=True,
    metavar="FILE",
    help="Parquet file to write; replaced if it is there.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["auto", "sql", "duckdb", "daft"]),
    default="auto",
    show_default=True,
    help="What joins: the database, DuckDB beside it, Daft on a cluster, or the quickest of them.",
)
MEMORY_LIMIT = click.option(
    "--memory-limit",
    type=Size(LEAST_MEMORY),
    metavar="SIZE",
    help="Memory of DuckDB before it goes to the disk: 4GB. Else a quarter of the machine's.",
)


# --- training-set -------------------------------------------------------------------------


@click.command("training-set", cls=Command)
@click.argument("entities", metavar="ENTITIES")
@click.argument("features", metavar="FEATURES...", nargs=-1, required=True)
@OUTPUT
@click.option(
    "--timestamp-column",
    default="event_timestamp",
    show_default=True,
    metavar="COLUMN",
    help="The column of ENTITIES that says as of when.",
)
@ENGINE
@click.option(
    "--as-of",
    type=State(),
    metavar="TIME|MARK",
    help="Read the store as it was at that time, or at a mark (see featurestore mark).",
)
@click.option(
    "--known-by",
    type=click.Choice(["created_timestamp"]),
    help="Count only rows that were created by the time of the entity row.",
)
@click.option(
    "--read-from",
    type=click.Choice(["history", "source"]),
    default="history",
    show_default=True,
    help="What was loaded, or the views' own files, which need not be.",
)
@MEMORY_LIMIT
@FULL_NAMES
@pass_settings
def training_set(
    settings: Settings,
    entities: str,
    features: tuple[str, ...],
    target: Path,
    full_feature_names: bool,
    **options: Any,
) -> None:
    """Write a training set: features as of each row's time.

    ENTITIES is a Parquet or CSV file with the join keys and a time, or the text of a query of
    the store's database. Every row and column of it is kept, in order. FEATURES are view:feature,
    view:* or the name of one feature service. The share of the rows that found a value in each
    view is printed.

    \b
      featurestore training-set labels.parquet eta -o training.parquet
      featurestore training-set "SELECT * FROM labels" eta -o training.parquet
      featurestore training-set labels.parquet eta -o again.parquet --as-of 2024-05-01T12:00Z

    The file holds what featurestore replay makes the same rows again from.
    """
    names, pairs = selections.split_words(features)
    if pairs:
        raise click.UsageError(f"{pairs[0]}: a training set takes its keys from ENTITIES.")
    options["full_feature_names"] = full_feature_names
    _check_other(target, entities)
    with RowProgress(target.name) as progress:
        found = run(
            _training_set(settings, entities, names, target, options, progress),
            f"Interrupted: {target} was not written.",
            progress.close,
        )
    _show(settings, target, found)


async def _training_set(
    settings: Settings,
    entities: str,
    features: list[str] | str,
    target: Path,
    options: dict[str, Any],
    progress: RowProgress,
) -> TrainingSet:
    async with open_store(settings) as store:
        wanted = await selections.resolve(store, features)
        time = options["timestamp_column"]
        asking = await asyncio.to_thread(_entities, entities, wanted.keys, time)
        stream = store.stream_historical_features(
            asking, wanted.features, progress=progress.of_training, **options
        )
        async with TrainingFile(target) as file:
            # Closed here and not by the loop's end: it holds a connection of the store.
            async with aclosing(stream):
                async for batch in stream:
                    await file.add(batch)
            assert stream.summary is not None
            await file.finish(stream.summary)
        return stream.summary


def _entities(text: str, keys: dict[str, FeatureType], time: str) -> Any:
    """What the store takes as entity table: a query, a path, or the table of a CSV file."""
    if text.lower().endswith(".csv"):
        return rows.read_table(text, keys, time)
    # A file is one whatever its name begins with; the store says of the rest what is wrong.
    return Path(text) if os.path.exists(text) else text


def _show(settings: Settings, target: Path, found: TrainingSet) -> None:
    plan, manifest = found.explain(), found.manifest
    columns = found.table.num_columns
    if settings.json:
        output.print_json(
            {
                "output": str(target),
                "rows": plan.rows,
                "columns": columns,
                "match_rate": dict(found.match_rate),
                "leaked": dict(found.leaked),
                "engine": plan.engine,
                "reason": plan.reason,
                "seconds": plan.seconds,
                "mark": None if manifest is None else str(manifest.mark),
                "warnings": list(found.warnings),
            }
        )
    else:
        known = manifest is not None and manifest.known_by is not None
        table = Table(("view", ">rows with a value", *([">created too late"] if known else [])))
        for view, share in found.match_rate.items():
            late = [f"{found.leaked[view]:,}"] if known else []
            table.rows.append((view, f"{share:.1%}", *late))
        output.print_table(table)
        output.say(
            f"{target}: {plural(plan.rows, 'row')}, {plural(columns, 'column')}; "
            f"engine {plan.engine}, {plan.seconds:.2f} s"
        )
    output.warn(found.warnings)


# --- replay -------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("file", metavar="FILE")
@OUTPUT
@click.option(
    "--entities",
    metavar="ENTITIES",
    help="The entity table, where FILE has it no more: Parquet, CSV or a query.",
)
@ENGINE
@MEMORY_LIMIT
@pass_settings
def replay(
    settings: Settings,
    file: str,
    target: Path,
    entities: str | None,
    engine: str,
    memory_limit: int | None,
) -> None:
    """Make a training set again: the same rows.

    FILE is a training set that training-set or to_parquet wrote, or its manifest as JSON.
    Whatever came into the store since does not count. Where rows that the set used were undone
    or erased since, nothing is written and the error names them.

    \b
      featurestore replay training.parquet -o again.parquet
    """
    options = {"engine": engine, "memory_limit": memory_limit}
    for given in (file, entities):
        if given is not None:
            _check_other(target, given)
    with RowProgress(target.name) as progress:
        found = run(
            _replay(settings, file, target, entities, options, progress),
            f"Interrupted: {target} was not written.",
            progress.close,
        )
    _show(settings, target, found)


async def _replay(
    settings: Settings,
    file: str,
    target: Path,
    entities: str | None,
    options: dict[str, Any],
    progress: RowProgress,
) -> TrainingSet:
    from featurestore.training.manifest import Manifest
    from featurestore.training.training_set import GROUP_ROWS

    async with open_store(settings) as store:
        manifest = await asyncio.to_thread(Manifest.load, file)
        asking = None
        if entities is not None:
            keys = await _keys(store, manifest)
            asking = await asyncio.to_thread(_entities, entities, keys, manifest.timestamp_column)
        found = await store.replay(manifest, asking, progress=progress.of_training, **options)
        async with TrainingFile(target) as written:
            for batch in found.table.to_batches(max_chunksize=GROUP_ROWS):
                await written.add(batch)
            await written.finish(found)
        return found


async def _keys(store: FeatureStore, manifest: Manifest) -> dict[str, FeatureType]:
    """The types of the columns that joined a training set, by their names in its entity table."""
    keys: dict[str, FeatureType] = {}
    for join in manifest.joins:
        view: FeatureView = await store.get_view(join.view)
        keys |= {
            column: view.join_keys[key] for key, column in join.columns if key in view.join_keys
        }
    return keys


# --- mark ---------------------------------------------------------------------------------


@click.command(cls=Command)
@pass_settings
def mark(settings: Settings) -> None:
    """Print the mark of what the store holds now.

    \b
      featurestore training-set labels.parquet eta -o training.parquet --as-of "$(cat mark.txt)"

    reads the store later as it was when the mark was printed into mark.txt.
    """
    found = run(_mark(settings), "Interrupted.")
    if settings.json:
        output.print_json({"mark": str(found), "arrival": found.arrival, "at": found.at})
    else:
        print(found)


async def _mark(settings: Settings) -> Mark:
    async with open_store(settings) as store:
        return await store.mark()
