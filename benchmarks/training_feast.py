"""Feast's `get_historical_features` from the benchmark's file, for `training.py`.

It stands alone, as Feast wants other versions than this project: it runs under the Python of an
environment that has `feast`. The order comes as JSON on stdin (`history`, `entities`, `folder`,
`ttl` in seconds), the answer as JSON on stdout.

It is done as Feast's quickstart and its page on point-in-time joins have it: a view over a
`FileSource` of the Parquet file, a pandas frame with the keys, `event_timestamp` and the label, a
list of `view:feature`, and then `.to_df()`. The file offline store is the one that reads Parquet
as it comes.
"""

import datetime as dt
import json
import sys
import time
from pathlib import Path
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from ingest_feast import FLOATS, config_of, view_of
from memory import peak
from training_answer import TYPES, digests, in_order

FEATURES = [*FLOATS, "n", "label"]
FEW = 1_000


def training_set(store: feast.FeatureStore, view: str, entities: pd.DataFrame) -> pd.DataFrame:
    features = [f"{view}:{name}" for name in FEATURES]
    return store.get_historical_features(entity_df=entities, features=features).to_df()


def warm(store: feast.FeatureStore, folder: Path, history: Path, ttl: dt.timedelta) -> None:
    """The same call on a file of few rows: whatever is imported on first use is imported."""
    path = folder / "few.parquet"
    few = next(pq.ParquetFile(history).iter_batches(FEW))
    pq.write_table(pa.Table.from_batches([few]), path)
    store.apply(view_of(str(path), "few", ttl))
    entities = few.select(["item_id", "event_timestamp"]).to_pandas()
    training_set(store, "few", entities)


def main() -> None:
    order: dict[str, Any] = json.load(sys.stdin)
    folder, history = Path(order["folder"]), Path(order["history"])
    ttl = dt.timedelta(seconds=order["ttl"])
    store = feast.FeatureStore(config=config_of("sqlite", folder))
    warm(store, folder, history, ttl)
    store.apply(view_of(str(history), "bench", ttl))
    entities = pq.read_table(order["entities"]).to_pandas()
    began = time.perf_counter()
    frame = training_set(store, "bench", entities)
    seconds = time.perf_counter() - began
    megabytes = peak() / 1e6
    answer = pa.Table.from_pandas(frame, preserve_index=False).select(list(TYPES))
    measured = {
        "rows": len(entities),
        "seconds": seconds,
        "megabytes": megabytes,
        "digests": digests(in_order(answer).to_batches()),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
