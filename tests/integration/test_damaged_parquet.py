"""Wrong Parquet through the public calls: one named error, and nothing of the file is kept.

``PARQUET_TESTING`` names a folder of files, such as a clone of Apache's parquet-testing: then each
of them is a case as well.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import BYTE_ARRAY, INT64, Column, Page, parquet_file, strings, table_of, written

import featurestore as fs
from featurestore.cli.columns import columns_of
from featurestore.ingest.casts import cast
from featurestore.ingest.parquet import Limits

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
ROWS = 2_000
NAMES = ["sensor_id", "event_timestamp", "value", "label"]

view = fs.FeatureView(
    "readings",
    entities=[fs.Entity("sensor", join_keys={"sensor_id": fs.Int64})],
    fields=[fs.Field("value", fs.Float64), fs.Field("label", fs.String)],
    timestamp_field="event_timestamp",
)

pytestmark = pytest.mark.parametrize("featurestore_url", ["sqlite"], indirect=True)


def readings(**columns: Any) -> pa.Table:
    known = {
        "sensor_id": pa.array(range(ROWS), pa.int64()),
        "event_timestamp": pa.array([NOON] * ROWS, pa.timestamp("us", tz="UTC")),
        "value": pa.array([n / 3 for n in range(ROWS)]),
        "label": pa.array([f"label {n % 7}" for n in range(ROWS)]),
    }
    return pa.table(known | columns)


def made(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def flipped(content: bytes, row_group: int, column: int) -> bytes:
    """With one bit of a column's last page changed."""
    chunk = pq.read_metadata(io.BytesIO(content)).row_group(row_group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    changed = bytearray(content)
    changed[start + chunk.total_compressed_size - 3] ^= 4
    return bytes(changed)


def in_small_groups() -> bytes:
    return made(readings(), row_group_size=500, write_page_checksum=True, compression="zstd")


def with_text_that_is_none() -> bytes:
    micros = int(NOON.timestamp() * 1_000_000).to_bytes(8, "little")
    columns = [
        Column("sensor_id", INT64, [Page((1).to_bytes(8, "little"), 1)]),
        Column("value", INT64, [Page(bytes(8), 1)]),
        Column("event_timestamp", INT64, [Page(micros, 1)]),
        Column("label", BYTE_ARRAY, [Page(strings(b"\xff\xfe"), 1)], text=True),
    ]
    return parquet_file(columns, 1)


WRONG: dict[str, tuple[Callable[[], bytes], type[fs.FeatureStoreError], str]] = {
    "nothing": (lambda: b"", fs.SourceError, "the file is empty"),
    "no Parquet": (lambda: b"sensor_id,value\n1,2\n", fs.SourceError, "is no Parquet file"),
    "cut off": (lambda: made(readings())[:-5], fs.SourceError, "is cut off"),
    "cut in the middle": (
        lambda: made(readings())[:5000] + made(readings())[-900:],
        fs.SourceError,
        "damaged",
    ),
    "a flipped bit in the last row group": (
        lambda: flipped(in_small_groups(), 3, 2),
        fs.SourceError,
        "damaged: row group 3 cannot be decoded .*checksum",
    ),
    "no columns": (
        lambda: made(pa.table({})),
        fs.SchemaMismatchError,
        "lacks 'sensor_id'",
    ),
    "two columns of one name": (
        lambda: made(
            pa.Table.from_arrays([*readings().columns, pa.nulls(ROWS)], [*NAMES, "value"])
        ),
        fs.SchemaMismatchError,
        "two columns named 'value'",
    ),
    "nested values": (
        lambda: made(readings(value=pa.array([{"x": 1.0}] * ROWS))),
        fs.SchemaMismatchError,
        "struct<x: double> which cannot become float64|cannot become",
    ),
    "durations": (
        lambda: made(readings(value=pa.array([1] * ROWS, pa.duration("us")))),
        fs.SchemaMismatchError,
        r"has duration\[us\], which cannot become float64",
    ),
    "times that are none": (with_text_that_is_none, fs.SchemaMismatchError, "int64, which cannot"),
    "invalid rows": (
        lambda: made(readings(sensor_id=pa.array([None] * ROWS, pa.int64()))),
        fs.InvalidRowsError,
        "sensor_id is null",
    ),
}


async def nothing_is_left(store: fs.FeatureStore, of: fs.FeatureView = view) -> bool:
    return await store.repository(of).count() == 0 and not await store.loads()


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_wrong_is_named_and_nothing_is_kept(
    feature_store: fs.FeatureStore, tmp_path: Path, wrong: str
):
    make, error, message = WRONG[wrong]
    path = await written(tmp_path / "wrong.parquet", await asyncio.to_thread(make))
    await feature_store.apply(view)
    with pytest.raises(error, match=message) as caught:
        await feature_store.ingest(view, path)
    assert "wrong.parquet" in str(caught.value)
    assert await nothing_is_left(feature_store)


async def test_a_file_that_decodes_to_more_than_allowed(
    feature_store: fs.FeatureStore, tmp_path: Path
):
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), ["x" * 5_000])
    path = tmp_path / "large.parquet"
    content = await asyncio.to_thread(made, readings(label=labels))
    assert len(content) < 100_000
    await written(path, content)
    await feature_store.apply(view)
    with pytest.raises(fs.SourceError, match=r"large\.parquet: row group 0 decodes to .*at least"):
        await feature_store.ingest(view, path, max_decoded_bytes=1_000_000)
    assert await nothing_is_left(feature_store)
    report = await feature_store.ingest(view, path)
    assert report.rows_written == ROWS
    row = await feature_store.repository(view).get(sensor_id=7)
    assert row is not None
    assert row["label"] == "x" * 5_000


async def test_the_same_values_as_every_writer_may_store_them(
    feature_store: fs.FeatureStore, tmp_path: Path
):
    """The types that Arrow notes beside the schema make no difference to what is loaded."""
    await feature_store.apply(view)
    plain = readings()
    coded = readings(label=plain.column("label").dictionary_encode())
    large = readings(label=plain.column("label").cast(pa.large_string()))
    for number, table in enumerate([plain, coded, large]):
        path = tmp_path / f"{number}.parquet"
        await asyncio.to_thread(pq.write_table, table, path)
        await feature_store.ingest(view, path)
    stored = await feature_store.repository(view).history()
    labels = stored.column("label").to_pylist()
    assert sorted(labels) == sorted(plain.column("label").to_pylist() * 3)


# --- a folder of files ----------------------------------------------------------------------

_FOLDER = os.environ.get("PARQUET_TESTING")
FILES = [
    path
    for path in sorted(Path(_FOLDER).rglob("*") if _FOLDER else [])
    if path.is_file() and ".parquet" in path.name
]


def as_pyarrow_reads(path: Path) -> pa.Table | None:
    """The whole file as pyarrow has it; None where it cannot read it."""
    try:
        return pq.ParquetFile(
            path,
            coerce_int96_timestamp_unit="us",
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        ).read()
    except (pa.ArrowException, OSError, ValueError):
        return None


def values(table: pa.Table) -> list[str]:
    """Each column as text: Python has no value for some."""
    found = []
    for column in table.columns:
        try:
            found.append(repr(column.to_pylist()))
        except (OverflowError, ValueError):
            found.append("".join(part.to_string(window=10**6) for part in column.chunks))
    return found


def features_of(schema: pa.Schema) -> dict[str, fs.Field]:
    """The file's columns that can be features: column → field."""
    return {one.source: fs.Field(f"of_{one.name}"[:40], one.type) for one in columns_of(schema)[0]}


async def test_nothing_but_the_errors_named(
    feature_store: fs.FeatureStore, tmp_path: Path, file: Path
):
    expected = await asyncio.to_thread(as_pyarrow_reads, file)
    try:
        found = await table_of(file)
    except fs.FeatureStoreError as error:
        assert str(file) in str(error)  # noqa: PT017 - or it is read
        await feature_store.apply(view)
        with pytest.raises(fs.FeatureStoreError):
            await feature_store.ingest(view, file)
        assert await nothing_is_left(feature_store)
        return
    except ValueError:  # it has no row group, and so no batch
        found = expected
    assert expected is not None
    wanted = await asyncio.to_thread(values, expected)
    assert await asyncio.to_thread(values, found) == wanted
    if 0 < found.num_rows < 20_000:
        in_pieces = await table_of(file, Limits(4096, 2048))
        assert await asyncio.to_thread(values, in_pieces) == wanted
    await loads_as_read(feature_store, tmp_path, file, found)


async def loads_as_read(store: fs.FeatureStore, folder: Path, file: Path, found: pa.Table) -> None:
    """What was read is what the store has. The file gets a key and a time, where it has none."""
    features = features_of(found.schema)
    times = [name for name, one in features.items() if one.type in (fs.Timestamp, fs.Date)]
    if times and len(features) > 1:
        moment = features[times[0]].name
        others = [one for name, one in features.items() if name != times[0]]
        mapping = {name: one.name for name, one in features.items()}
        source = fs.ParquetSource(str(file), field_mapping=mapping)
        whole = fs.FeatureView(
            "whole", entities=[], fields=others, timestamp_field=moment, source=source
        )
        await store.apply(whole)
        report = await store.ingest(whole, on_invalid="quarantine")
        assert report.rows_read == found.num_rows
        assert await store.repository(whole).count() + report.rows_rejected == found.num_rows
    if not features:
        return
    keyed = fs.FeatureView(
        "keyed",
        entities=[fs.Entity("row", join_keys={"row_number": fs.Int64})],
        fields=list(features.values()),
        timestamp_field="known_at",
    )

    def write(path: Path) -> dict[int, dict[str, Any]]:
        rows = found.num_rows
        columns: dict[str, Any] = {one.name: found.column(name) for name, one in features.items()}
        columns["row_number"] = pa.array(range(rows), pa.int64())
        columns["known_at"] = pa.array([NOON] * rows, pa.timestamp("us", tz="UTC"))
        pq.write_table(pa.table(columns), path)
        wanted: dict[int, dict[str, Any]] = {row: {} for row in range(rows)}
        for name, one in features.items():
            column = found.column(name)
            array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0)
            held, bads = cast(array, one.type)
            for row, value in enumerate(held.to_pylist()):
                wanted[row][one.name] = None if value != value else value  # as SQLite keeps NaN
            for bad, _ in bads:
                for row, wrong in enumerate(bad.to_pylist()):
                    if wrong:
                        wanted.pop(row, None)
        return wanted

    path = folder / "keyed.parquet"
    wanted = await asyncio.to_thread(write, path)
    await store.apply(keyed)
    report = await store.ingest(keyed, path, on_invalid="quarantine")
    assert report.rows_written == len(wanted)
    stored = await store.repository(keyed).history()
    rows = await asyncio.to_thread(stored.to_pylist)
    names = [one.name for one in features.values()]
    assert {row["row_number"]: {name: row[name] for name in names} for row in rows} == wanted


if FILES:
    test_nothing_but_the_errors_named = pytest.mark.parametrize(
        "file", FILES, ids=lambda path: str(path.relative_to(_FOLDER))
    )(test_nothing_but_the_errors_named)
else:
    del test_nothing_but_the_errors_named
