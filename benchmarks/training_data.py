"""The rows of `training.py`: the view, its history as files, and the entity tables."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ingest_data import EPOCH, FLOATS, KEYS, MONTH, Files, rows_of_part, view, write
from training_answer import LABEL

import featurestore as fs
from featurestore.storage.tables import table_names

TTL = dt.timedelta(days=30)
FEATURES = [*FLOATS, "n", "label"]
HISTORY, _ = table_names("default", view.name)
"""The table that the store keeps the view's history in; peers read it as well."""

LONG = 10
"""Months of the long history; a month is a file."""

LATE = 50
"""One in so many entity rows is a month later than the others: of some, what is known by then is
past its ttl."""


def view_of(paths: Path | Sequence[Path]) -> fs.FeatureView:
    """The view, with a ttl and with what it is loaded from."""
    return fs.FeatureView(
        view.name,
        entities=view.entities,
        fields=view.fields,
        timestamp_field=view.timestamp_field,
        created_timestamp_field=view.created_timestamp_field,
        ttl=TTL,
        source=fs.ParquetSource(str(paths) if isinstance(paths, Path) else [str(p) for p in paths]),
        online=False,
    )


class TrainingFiles(Files):
    """The history's files and the entity tables; each is written when it is first asked for."""

    def history(self, name: str) -> Path:
        """``month``: a file. ``long``: a folder of ten, each as large and a month after the one
        before."""
        return self.first() if name == "month" else self.months()

    def months(self) -> Path:
        def write_them(path: Path) -> None:
            path.mkdir()
            for part in range(LONG):
                write(path / f"month-{part}.parquet", rows_of_part(part, self.rows))

        return self._once("months", write_them)

    def entities(self, rows: int, history: str) -> Path:
        """So many entity rows, in the order in which labelled rows are found: by chance."""
        months = 1 if history == "month" else LONG

        def write_it(path: Path) -> None:
            pq.write_table(entity_rows(rows, months), path, compression="zstd")

        return self._once(f"entities-{history}-{rows}.parquet", write_it)


def entity_rows(rows: int, months: int) -> pa.Table:
    """Keys and moments by chance, over the months of the history, and a label."""
    random = np.random.default_rng(rows)
    times = random.integers(0, months * MONTH, rows) + EPOCH
    times[::LATE] += MONTH
    return pa.table(
        {
            "item_id": random.integers(0, KEYS, rows),
            "event_timestamp": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
            LABEL: np.arange(rows) / rows,
        }
    )
