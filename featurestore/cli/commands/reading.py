"""online: features out, as of now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featurestore.cli import output, selections
from featurestore.cli.options import FULL_NAMES, Command, Settings, pass_settings
from featurestore.cli.output import Faint, Table
from featurestore.cli.session import open_store, run

if TYPE_CHECKING:
    from featurestore import OnlineFeatures


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
