"""A Feast repository with the rows of `server.py`, for Feast's feature server.

It stands alone, as Feast wants other versions than this project: it runs under the Python of an
environment that has `feast[postgres]`. The order comes as JSON on stdin: the `url` of the
database for the online store, the `path` of the Parquet file, the `folder` for the repository,
the names of the view (`view`) and its `features`. It applies the view, and materializes the file.
"""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import feast
from feast.types import Float64, ValueType
from ingest_feast import online_store


def config_of(order: dict[str, Any]) -> dict[str, Any]:
    folder = Path(order["folder"])
    return {
        "project": "bench",
        "provider": "local",
        "registry": {"path": str(folder / "registry.db")},
        "online_store": online_store(order["url"], folder),
        "offline_store": {"type": "file"},
        "entity_key_serialization_version": 3,
    }


def view_of(order: dict[str, Any]) -> list[Any]:
    driver = feast.Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    view = feast.FeatureView(
        name=order["view"],
        entities=[driver],
        ttl=dt.timedelta(days=30),
        schema=[feast.Field(name=name, dtype=Float64) for name in order["features"]],
        source=feast.FileSource(path=order["path"], timestamp_field="event_timestamp"),
    )
    return [driver, view]


def main() -> None:
    order = json.load(sys.stdin)
    folder = Path(order["folder"])
    # JSON is YAML.
    (folder / "feature_store.yaml").write_text(json.dumps(config_of(order)))
    store = feast.FeatureStore(repo_path=str(folder))
    store.apply(view_of(order))
    now = dt.datetime.now(dt.UTC)
    store.materialize(now - dt.timedelta(days=2), now)


if __name__ == "__main__":
    main()
