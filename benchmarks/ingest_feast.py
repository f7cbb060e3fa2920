"""Feast's `materialize` of the benchmark's file, for `ingest.py`.

It stands alone, as Feast wants other versions than this project: it runs under the Python of an
environment that has `feast[postgres]`. The order comes as JSON on stdin (`url`, `path`, `folder`),
the answer as JSON on stdout. What is timed reads the whole file and writes the newest row of each
key into the online store; Feast keeps no history.
"""

import datetime as dt
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import feast
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast.repo_config import RegistryConfig
from feast.types import Float64, Int32, Int64, String, ValueType

FLOATS = [f"f{i}" for i in range(6)]
NO_TTL = dt.timedelta(0)


def online_store(url: str, folder: Path) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"type": "sqlite", "path": str(folder / "online.db")}
    parts = urlsplit(url)
    return {
        "type": "postgres",
        "host": parts.hostname,
        "port": parts.port or 5432,
        "database": parts.path.lstrip("/"),
        "user": parts.username,
        "password": parts.password or "",
        "sslmode": "prefer",
    }


def config_of(url: str, folder: Path) -> feast.RepoConfig:
    return feast.RepoConfig(
        project="bench",
        provider="local",
        registry=RegistryConfig(path=str(folder / "registry.db")),
        online_store=online_store(url, folder),
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )


def view_of(path: str, name: str = "bench", ttl: dt.timedelta = NO_TTL) -> list[Any]:
    item = feast.Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    source = feast.FileSource(
        path=path, timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    schema = [
        feast.Field(name="item_id", dtype=Int64),
        *(feast.Field(name=name, dtype=Float64) for name in FLOATS),
        feast.Field(name="n", dtype=Int32),
        feast.Field(name="label", dtype=String),
    ]
    view = feast.FeatureView(name=name, entities=[item], ttl=ttl, schema=schema, source=source)
    return [item, view]


def main() -> None:
    order = json.load(sys.stdin)
    folder = Path(order["folder"])
    store = feast.FeatureStore(config=config_of(order["url"], folder))
    store.apply(view_of(order["path"]))
    times = pq.read_table(order["path"], columns=["event_timestamp"]).column(0)
    first, last = (pc.min_max(times)[edge].as_py() for edge in ("min", "max"))
    second = dt.timedelta(seconds=1)
    began = time.perf_counter()
    store.materialize(first - second, last + second)
    seconds = time.perf_counter() - began
    print(json.dumps({"rows": len(times), "seconds": seconds}))


if __name__ == "__main__":
    main()
