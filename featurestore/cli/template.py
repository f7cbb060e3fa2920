"""The text of a features.py: an example, or what was guessed of a file."""

from __future__ import annotations

import keyword
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.cli.columns import Column
    from featurestore.cli.init import Guess

EXAMPLE = '''\
"""The features of this project: `featurestore apply` registers all that stands here."""

from datetime import timedelta

import featurestore as fs

# An entity is what features are about. Its join keys name one of its kind.
driver = fs.Entity("driver", join_keys={"driver_id": fs.Int64})

# A feature view is a table of features over time.
driver_stats = fs.FeatureView(
    "driver_stats",
    entities=[driver],
    fields=[
        fs.Field("conv_rate", fs.Float64, description="share of the requests taken"),
        fs.Field("trips", fs.Int32, description="on that day"),
        fs.Field("languages", fs.Array(fs.String)),
    ],
    # When a row became known. That moment decides what a training set may see of it.
    timestamp_field="event_timestamp",
    # Older values count as none. None: a value counts until a newer one comes.
    ttl=timedelta(days=30),
    # Loaded by `featurestore ingest driver_stats`: a file, glob, folder or URL, or several.
    source=fs.ParquetSource("data/driver_stats.parquet"),
)

# A feature service is what one model reads, in training and online.
trip_time = fs.FeatureService(
    "trip_time",
    features=[driver_stats[["conv_rate", "trips"]]],
)

# Next:
#   featurestore plan
#   featurestore apply
#   featurestore ingest driver_stats
#   featurestore online trip_time driver_id=1001
'''


def render(found: Guess) -> str:
    """A features.py that works as it is; names of the file are written as Python literals."""
    entity = _variable(found.entity, "entity", taken=("fs",))
    view = _variable(found.view, "view", taken=("fs", entity))
    keys = ", ".join(f"{_text(one.name)}: {one.type!r}" for one in found.keys)
    lines = [
        '"""The features of one Parquet file, as `featurestore init` guessed them.',
        "",
        "Look through the entity, the times and the types, and add descriptions.",
        '"""',
        "",
        "import featurestore as fs",
        "",
        f"{entity} = fs.Entity({_text(found.entity)}, join_keys={{{keys}}})",
        "",
        f"{view} = fs.FeatureView(",
        f"    {_text(found.view)},",
        f"    entities=[{entity}],",
        "    fields=[",
        *(f"        fs.Field({_text(one.name)}, {one.type!r})," for one in found.features),
        *_skipped(found),
        "    ],",
        f"    timestamp_field={_text(found.time.name)},  # when a row became known",
        *_created(found.created),
        "    ttl=None,  # how long a value counts, such as datetime.timedelta(days=30)",
        *_source(found),
        ")",
    ]
    return "\n".join(lines) + "\n"


def _skipped(found: Guess) -> list[str]:
    if not found.skipped:
        return []
    reasons = [f"        #   {name!r}: {why}" for name, why in found.skipped.items()]
    return ["        # Columns of the file that are left out:", *reasons]


def _created(created: Column | None) -> list[str]:
    if created is None:
        return []
    return [f"    created_timestamp_field={_text(created.name)},  # the later of two rows wins"]


def _source(found: Guess) -> list[str]:
    if not found.field_mapping:
        return [f"    source=fs.ParquetSource({_text(found.source)}),"]
    return [
        "    source=fs.ParquetSource(",
        f"        {_text(found.source)},",
        "        field_mapping={",
        *(f"            {_text(old)}: {_text(new)}," for old, new in found.field_mapping.items()),
        "        },",
        "    ),",
    ]


def _text(text: str) -> str:
    """A Python literal, in double quotes where that needs no escapes."""
    literal = repr(text)
    plain = text.isprintable() and not {'"', "\\"} & set(text)
    return f'"{text}"' if plain else literal


def _variable(name: str, kind: str, taken: tuple[str, ...]) -> str:
    """A Python name for a definition: an entity and a view may share theirs."""
    while keyword.iskeyword(name) or name in taken:
        name = f"{name}_{kind}"
    return name
