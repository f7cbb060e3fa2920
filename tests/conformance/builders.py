"""Small definitions, rows and files that the conformance tests share."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

import featurestore as fs

zoneinfo.ZoneInfo("UTC")  # read from disk once, here and not in a running loop

UTC = dt.UTC
T0 = dt.datetime(2024, 1, 1, tzinfo=UTC)

Row = Mapping[str, Any]

DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
AIRPORT = fs.Entity("airport", join_keys={"airport": fs.String})
ROUTE = fs.Entity("route", join_keys={"origin": fs.String, "dest": fs.String})


def hour(number: float) -> dt.datetime:
    """``number`` hours after ``T0``."""
    return T0 + dt.timedelta(hours=number)


def ago(**units: float) -> dt.datetime:
    """A moment before now; with negative units, one ahead."""
    return dt.datetime.now(UTC) - dt.timedelta(**units)


def driver_stats(name: str = "driver_stats", **changes: Any) -> fs.FeatureView:
    """Two features of a driver; ``changes`` replace arguments of the view."""
    options: dict[str, Any] = {
        "entities": [DRIVER],
        "fields": [fs.Field("conv_rate", fs.Float64), fs.Field("trips", fs.Int32)],
        "timestamp_field": "event_timestamp",
    }
    return fs.FeatureView(name, **(options | changes))


def stats(
    driver_id: int | None,
    when: dt.datetime | None,
    conv_rate: float | None = 0.5,
    trips: int | None = 1,
    **more: Any,
) -> dict[str, Any]:
    """One row of ``driver_stats``."""
    row = {"driver_id": driver_id, "event_timestamp": when}
    return row | {"conv_rate": conv_rate, "trips": trips} | more


def weather(name: str = "weather", **changes: Any) -> fs.FeatureView:
    """One feature of an airport."""
    options: dict[str, Any] = {
        "entities": [AIRPORT],
        "fields": [fs.Field("temp", fs.Float64)],
        "timestamp_field": "event_timestamp",
    }
    return fs.FeatureView(name, **(options | changes))


def report(airport: str | None, when: dt.datetime, temp: float | None) -> dict[str, Any]:
    """One row of ``weather``."""
    return {"airport": airport, "event_timestamp": when, "temp": temp}


def calendar(name: str = "calendar", **changes: Any) -> fs.FeatureView:
    """A global view: joined on time alone."""
    options: dict[str, Any] = {
        "entities": [],
        "fields": [fs.Field("holiday", fs.Bool)],
        "timestamp_field": "event_timestamp",
    }
    return fs.FeatureView(name, **(options | changes))


def small_blocks(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Blocks of ``2**bits`` arrivals, in place of a million: small loads have several then. A push
    has one, whatever it holds."""
    for module in (
        "ingest.writer",
        "storage.marks",
        "storage.postgresql_push",
        "storage.sqlite_push",
        "training.candidates",
        "training.replay",
    ):
        monkeypatch.setattr(f"featurestore.{module}.BLOCK", 1 << bits)
    monkeypatch.setattr("featurestore.training.assembly._BLOCK_BITS", bits)


# --- Arrow and Parquet ------------------------------------------------------------------------


def schema_of(view: fs.FeatureView, *, created: bool = True) -> pa.Schema:
    """The columns of a view's source: keys, times, features."""
    columns = {name: kind.arrow for name, kind in view.join_keys.items()}
    columns[view.timestamp_field] = fs.Timestamp.arrow
    if created and view.created_timestamp_field:
        columns[view.created_timestamp_field] = fs.Timestamp.arrow
    columns |= {field.name: field.type.arrow for field in view.fields}
    return pa.schema(columns)


def table_of(view: fs.FeatureView, rows: Iterable[Row]) -> pa.Table:
    """``rows`` as Arrow; Json travels as its text."""
    documents = {field.name for field in view.fields if field.type == fs.Json}

    def cell(name: str, value: Any) -> Any:
        if name in documents and value is not None:
            return json.dumps(value, ensure_ascii=False)
        return value

    plain = [{name: cell(name, value) for name, value in row.items()} for row in rows]
    return pa.Table.from_pylist(plain, schema=schema_of(view))


_FILES = itertools.count()
_DISK = pa.fs.LocalFileSystem()  # Arrow's own: tests run in a loop that is watched for I/O


def read_bytes(path: Path) -> bytes:
    """What is in a file."""
    with _DISK.open_input_file(str(path)) as source:
        return source.read()


def write_bytes(path: Path, content: bytes | pa.Buffer) -> Path:
    """Write a file, and its folder where it is missing."""
    _DISK.create_dir(str(path.parent), recursive=True)
    with _DISK.open_output_stream(str(path)) as sink:
        sink.write(content)
    return path


def write_parquet(path: Path, data: pa.Table, **options: Any) -> Path:
    """Write ``data`` to ``path``."""
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, **options)
    return write_bytes(path, sink.getvalue())


def parquet(
    folder: Path, view: fs.FeatureView, rows: Iterable[Row], name: str = "", group: int = 2
) -> Path:
    """A Parquet file of ``rows`` in ``folder``, in row groups of ``group`` rows."""
    path = folder / (name or f"part-{next(_FILES)}.parquet")
    return write_parquet(path, table_of(view, rows), row_group_size=group)


async def write(
    store: Any, view: fs.FeatureView, rows: Sequence[Row], way: str, folder: Path
) -> int:
    """Write ``rows`` by one of the four ways in; gives the load's number."""
    if way == "push rows":
        return (await store.push(view.name, list(rows))).load_id
    if way == "push Arrow":
        return (await store.push(view.name, table_of(view, rows))).load_id
    if way == "ingest Arrow":
        return (await store.ingest(view.name, table_of(view, rows))).loads[0].load_id
    if way == "ingest Parquet":
        path = parquet(folder, view, rows)
        return (await store.ingest(view.name, path, force=True)).loads[0].load_id
    raise ValueError(way)


# --- reading ----------------------------------------------------------------------------------


async def online(
    store: Any, features: Any, rows: Sequence[Row], **options: Any
) -> list[dict[str, Any]]:
    """What online gives, as dicts."""
    return (await store.get_online_features(features, list(rows), **options)).to_dicts()


async def online_column(store: Any, feature: str, rows: Sequence[Row]) -> list[Any]:
    """One feature (``"view:feature"``) of each entity row."""
    return [row[feature.split(":")[1]] for row in await online(store, [feature], rows)]


def statuses(answer: Any) -> list[dict[str, str]]:
    """The statuses of an answer by their names."""
    return [{name: status.name for name, status in row.items()} for row in answer.statuses]


def entity_rows(*rows: tuple[Any, dt.datetime | None], key: str = "driver_id") -> pa.Table:
    """An entity table of (key, time)."""
    kind = pa.string() if any(isinstance(value, str) for value, _ in rows) else pa.int64()
    return pa.table(
        {
            key: pa.array([value for value, _ in rows], kind),
            "event_timestamp": pa.array([when for _, when in rows], fs.Timestamp.arrow),
        }
    )


async def training(store: Any, entities: Any, features: Any, **options: Any) -> list[dict]:
    """A training set as dicts."""
    found = await store.get_historical_features(entities, features, **options)
    return found.to_arrow().to_pylist()


async def scanned(repository: Any, **options: Any) -> list[dict[str, Any]]:
    """All that a scan yields."""
    rows: list[dict[str, Any]] = []
    async for batch in repository.scan(**options):
        rows += batch.to_pylist()
    return rows


async def until(moment: dt.datetime, slack: float = 0.15) -> None:
    """Sleep until a little after ``moment``."""
    await asyncio.sleep(max(0.0, (moment - dt.datetime.now(UTC)).total_seconds()) + slack)


class Cases:
    """Many small cases in one test, on one database: all of them run, the failed ones are told.

    ::

        with Cases() as cases:
            for value in values:
                with cases.case(value):
                    assert ...
    """

    def __init__(self) -> None:
        self._failed: list[str] = []

    def __enter__(self) -> Cases:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None and self._failed:
            pytest.fail("\n".join(self._failed), pytrace=False)

    @contextmanager
    def case(self, *names: object) -> Iterator[None]:
        """One case, by its names; a failure in it is kept for later."""
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - told at the end
            story = ", ".join(map(str, names))
            self._failed.append(f"{story}: {type(error).__name__}: {error}"[:2000])
