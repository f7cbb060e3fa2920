"""Hive-partitioned folders: what their names say is a column of the files in them."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from builders import DRIVER, UTC, Cases, hour, online_column, parquet, read_bytes, write_parquet

import featurestore as fs
from featurestore.ingest.layout import Layout
from featurestore.ingest.partitions import partition_values
from featurestore.ingest.sources import SourceFile, resolve_sources

REGIONS = fs.FeatureView(
    "regions",
    entities=[DRIVER],
    fields=[fs.Field("region", fs.String), fs.Field("trips", fs.Int32)],
    timestamp_field="event_timestamp",
)

# Key, time and features, all of which a folder may hold.
DAILY = fs.FeatureView(
    "daily",
    entities=[fs.Entity("shop", join_keys={"shop_id": fs.Int64, "country": fs.String})],
    fields=[fs.Field("sales", fs.Int64), fs.Field("channel", fs.String)],
    timestamp_field="date",
)


def trips(folder: Path, drivers: Iterable[int], trips: int = 1, **columns: Any) -> Path:
    """A file of drivers' trips at one time, which lacks the region unless it is given."""
    numbers = list(drivers)
    data = {
        "driver_id": pa.array(numbers, pa.int64()),
        "event_timestamp": pa.array([hour(0)] * len(numbers), fs.Timestamp.arrow),
        "trips": pa.array([trips] * len(numbers), pa.int32()),
    }
    return write_parquet(folder / "part-0.parquet", pa.table(data | columns))


def sales(folder: Path, **columns: Any) -> Path:
    """A file with only what ``columns`` say, in two rows."""
    return write_parquet(folder / "part-0.parquet", pa.table(columns))


async def rows_of(store: fs.FeatureStore, view: str, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of a view's history, in the order of arrival."""
    stored = await store.repository(view).history()
    return [tuple(row[name] for name in columns) for row in stored.to_pylist()]


# --- which columns ----------------------------------------------------------------------------


async def test_folders_are_features(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(REGIONS)
    for region, first in (("us", 0), ("eu", 2)):
        trips(tmp_path / "data" / f"region={region}" / "unused=1", [first, first + 1])
    report = await store.ingest("regions", tmp_path / "data")
    assert report.rows_written == 4
    found = await rows_of(store, "regions", "driver_id", "region")
    assert sorted(found) == [(0, "us"), (1, "us"), (2, "eu"), (3, "eu")]
    keys = [{"driver_id": number} for number in range(4)]
    assert await online_column(store, "regions:region", keys) == ["us", "us", "eu", "eu"]


async def test_folders_are_join_keys_and_the_event_time(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(DAILY)
    for day in (1, 2):
        for country in ("de", "fr"):
            folder = tmp_path / "data" / f"date=2024-01-0{day}" / f"country={country}"
            sales(folder, shop_id=[1, 2], sales=[10 * day, 20 * day], channel=["web", None])
    report = await store.ingest("daily", tmp_path / "data")
    assert report.rows_written == 8
    found = await rows_of(store, "daily", "date", "country", "shop_id", "sales")
    assert sorted(found) == [
        (dt.datetime(2024, 1, day, tzinfo=UTC), country, shop, 10 * shop * day)
        for day in (1, 2)
        for country in ("de", "fr")
        for shop in (1, 2)
    ]
    entities = pa.table(
        {
            "shop_id": [1, 1],
            "country": ["fr", "fr"],
            "event_timestamp": pa.array([hour(23), hour(24)], fs.Timestamp.arrow),
        }
    )
    training = await store.get_historical_features(entities, ["daily:sales"])
    assert training.to_arrow()["sales"].to_pylist() == [10, 20]


async def test_folders_may_hold_all_that_a_view_names(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(DAILY)
    folder = tmp_path / "date=2024-01-01" / "country=de" / "shop_id=7" / "channel=web" / "sales=3"
    sales(folder, unused=["a", "b"])
    report = await store.ingest("daily", tmp_path)
    assert report.rows_written == 2
    assert (
        await rows_of(store, "daily", "shop_id", "country", "sales", "channel")
        == [(7, "de", 3, "web")] * 2
    )


async def test_load_order_is_path_order(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(REGIONS)
    for region in ("b", "c", "a"):
        trips(tmp_path / f"region={region}", [1])
    report = await store.ingest("regions", tmp_path)
    folders = [Path(load.source).parent.name for load in report.loads]
    assert folders == ["region=a", "region=b", "region=c"]
    assert await online_column(store, "regions:region", [{"driver_id": 1}]) == ["c"]


@pytest.mark.parametrize(
    "source", ["{}/region=eu/part-0.parquet", "{}/region=*/*.parquet", "{}/region=*/", "{}/**/*.p*"]
)
async def test_all_folders_of_the_path_count(store: fs.FeatureStore, tmp_path: Path, source: str):
    await store.apply(REGIONS)
    trips(tmp_path / "region=eu", [1])
    await store.ingest("regions", source.format(tmp_path))
    assert await rows_of(store, "regions", "region") == [("eu",)]


async def test_the_files_own_column_wins(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(DAILY)
    own = pa.array(["fr", "it"])
    # The folder's date is no date: nobody asks it.
    folder = tmp_path / "date=week 1" / "country=de" / "channel=web"
    times = pa.array([hour(0), hour(1)], fs.Timestamp.arrow)
    sales(folder, date=times, country=own, shop_id=[1, 2], sales=[1, 2])
    await store.ingest("daily", tmp_path)
    assert await rows_of(store, "daily", "date", "country", "channel") == [
        (hour(0), "fr", "web"),
        (hour(1), "it", "web"),
    ]


async def test_field_mapping_applies_to_folders(store: fs.FeatureStore, tmp_path: Path):
    mapping = {"land": "country", "tag": "date", "kanal": "channel", "channel": "other"}
    source = fs.ParquetSource(tmp_path / "data", field_mapping=mapping)
    await store.apply(DAILY)
    folder = tmp_path / "data" / "tag=2024-01-02" / "land=de" / "kanal=web" / "channel=shop"
    sales(folder, shop_id=[1], sales=[2])
    await store.ingest("daily", source)
    assert await rows_of(store, "daily", "date", "country", "channel") == [(hour(24), "de", "web")]


async def test_a_column_that_no_folder_has_is_missing(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(REGIONS)
    trips(tmp_path / "region=eu", [1])
    trips(tmp_path / "state=ny", [2])
    with pytest.raises(fs.SchemaMismatchError, match=r"state=ny.* lacks 'region'"):
        await store.ingest("regions", tmp_path)
    assert await rows_of(store, "regions", "driver_id") == [(1,)]


async def test_hidden_folders_are_passed_over(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(REGIONS)
    trips(tmp_path / "region=eu", [1])
    trips(tmp_path / "_temporary" / "region=eu", [2])
    trips(tmp_path / "region=eu" / ".staging", [3])
    for source in (tmp_path, f"{tmp_path}/**/*.parquet", f"{tmp_path}/*/"):
        report = await store.ingest("regions", source, force=True)
        assert len(report.loads) == 1


# --- exactly once -----------------------------------------------------------------------------


async def test_the_same_bytes_in_two_folders_are_two_contents(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply(REGIONS)
    files = [trips(tmp_path / f"region={region}", [1, 2]) for region in ("eu", "us")]
    assert read_bytes(files[0]) == read_bytes(files[1])
    report = await store.ingest("regions", tmp_path)
    assert [load.skipped for load in report.loads] == [False, False]
    assert sorted(await rows_of(store, "regions", "region")) == [("eu",)] * 2 + [("us",)] * 2
    again = await store.ingest("regions", tmp_path)
    assert [load.skipped for load in again.loads] == [True, True]


async def test_what_a_folder_says_is_part_of_the_content(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(REGIONS)

    async def skipped(folder: str) -> bool:
        report = await store.ingest("regions", trips(tmp_path / folder, [1]))
        return report.loads[0].skipped

    assert not await skipped("a/region=eu")
    assert await skipped("b/region=eu")
    assert await skipped("c/region=eu/version=2")  # of which the view knows nothing
    assert await skipped("d/region=e%75")
    assert not await skipped("e/region=us")
    assert not await skipped(f"f/region={'__HIVE_DEFAULT_PARTITION__'}")
    assert not await skipped("g/region=None")


# --- values -----------------------------------------------------------------------------------

TYPED: list[tuple[str, fs.FeatureType, str, Any]] = [
    ("flag", fs.Bool, "true", True),
    ("small", fs.Int32, "007", 7),
    ("large", fs.Int64, "-9223372036854775808", -(2**63)),
    ("single", fs.Float32, "0.5", 0.5),
    ("double", fs.Float64, "-1e%2B300", -1e300),
    ("word", fs.String, "a%2Fb c%25%3D%C3%BC=", "a/b c%=ü="),
    ("raw", fs.Bytes, "%C3%BC", "ü".encode()),
    ("moment", fs.Timestamp, "2024-01-01 00%3A00%3A00.5", hour(0) + dt.timedelta(seconds=0.5)),
    ("day", fs.Date, "2024-02-29", dt.date(2024, 2, 29)),
    ("price", fs.Decimal(6, 2), "12.5", decimal.Decimal("12.50")),
    ("document", fs.Json, "%7B%22a%22%3A [1, null]}", {"a": [1, None]}),
]


async def test_each_type_reads_its_text(store: fs.FeatureStore, tmp_path: Path):
    view = fs.FeatureView(
        "typed",
        entities=[DRIVER],
        fields=[fs.Field(name, kind) for name, kind, _, _ in TYPED],
        timestamp_field="event_timestamp",
    )
    await store.apply(view)
    trips(tmp_path.joinpath(*(f"{name}={text}" for name, _, text, _ in TYPED)), [1])
    await store.ingest("typed", tmp_path)
    found = await store.get_online_features(["typed:*"], [{"driver_id": 1}])
    wanted = {name: value for name, _, _, value in TYPED}
    assert found.to_dicts() == [{"driver_id": 1} | wanted]


def value_of(text: str, kind: fs.FeatureType) -> Any:
    """What a folder's decoded text becomes, as a Python value."""
    fields = [fs.Field("x", kind)]
    view = fs.FeatureView("one", entities=[], fields=fields, timestamp_field="t")
    file = SourceFile("x=…/a.parquet", (("x", text),))
    found = partition_values(file, Layout(view), {}, "x=…/a.parquet")["x"]
    assert found.type == kind.arrow
    return found.as_py()


MOMENT = dt.datetime(2024, 1, 1, 1, 2, 3, tzinfo=UTC)

READ: list[tuple[fs.FeatureType, str, Any]] = [
    (fs.Bool, "True", True),
    (fs.Bool, "FALSE", False),
    (fs.Int32, "+12", 12),
    (fs.Int32, "-0", 0),
    (fs.Float64, "1", 1.0),
    (fs.Float64, ".5", 0.5),
    (fs.Float64, "5.", 5.0),
    (fs.Float64, "Infinity", math.inf),
    (fs.Float64, "-inf", -math.inf),
    (fs.Float64, "0.1", 0.1),
    (fs.Float32, "16777216", 16777216.0),
    (fs.String, "", ""),
    (fs.String, "NULL", "NULL"),
    (fs.Timestamp, "2024-01-01", hour(0)),
    (fs.Timestamp, "2024-01-01 01:02:03", MOMENT),
    (fs.Timestamp, "2024-01-01T01:02:03Z", MOMENT),
    (fs.Timestamp, "2024-01-01 01:02", MOMENT.replace(second=0)),
    (fs.Timestamp, "2024-01-01 01:02:03.000000+00:00", MOMENT),
    (fs.Timestamp, "2024-01-01 03:02:03+02", MOMENT),
    (fs.Timestamp, "2024-01-01 01:02:03.123456789", MOMENT.replace(microsecond=123456)),
    (fs.Timestamp, "9999-12-31 23:59:59.999999", dt.datetime.max.replace(tzinfo=UTC)),
    (fs.Date, "0001-01-01", dt.date.min),
    (fs.Decimal(38, 0), "1e37", decimal.Decimal(10**37)),
    (fs.Decimal(3, 2), "-0.00", decimal.Decimal("0.00")),
]

REFUSED: list[tuple[fs.FeatureType, str]] = [
    (fs.Bool, "1"),
    (fs.Bool, ""),
    (fs.Int32, "2147483648"),
    (fs.Int32, "1.0"),
    (fs.Int32, "1_000"),
    (fs.Int32, " 1"),
    (fs.Int32, "١"),
    (fs.Int64, "9" * 5000),
    (fs.Float64, "1e400"),
    (fs.Float64, "9007199254740993"),
    (fs.Float64, "one"),
    (fs.Float32, "1e39"),
    (fs.String, "a\0b"),
    (fs.String, "\udcff"),
    (fs.Timestamp, "1704067200"),
    (fs.Timestamp, "2024-01-01-05"),
    (fs.Timestamp, "2024-01-01x05:00"),
    (fs.Timestamp, "2024-02-30"),
    (fs.Timestamp, "0001-01-01 00:00:00+01:00"),
    (fs.Timestamp, "20240101"),
    (fs.Date, "2024-01-01 00:00:00"),
    (fs.Date, "2024-W01-1"),
    (fs.Decimal(3, 2), "0.001"),
    (fs.Decimal(3, 2), "10"),
    (fs.Decimal(3, 2), "NaN"),
    (fs.Json, "{"),
    (fs.Json, "NaN"),
    (fs.Array(fs.Int64), "[1]"),
]


def test_text_that_is_read():
    with Cases() as cases:
        for kind, text, value in READ:
            with cases.case(kind, text):
                assert value_of(text, kind) == value
    assert math.isnan(value_of("NaN", fs.Float64))
    assert value_of("0.1", fs.Float32) == 0.10000000149011612


def test_text_that_is_refused():
    with Cases() as cases:
        for kind, text in REFUSED:
            with (
                cases.case(kind, text[:20]),
                pytest.raises(fs.SchemaMismatchError, match=r"view 'one', column 'x': x=…/a"),
            ):
                value_of(text, kind)


async def test_what_cannot_be_read_is_named(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(DAILY)
    for day in ("2024-01-01", "yesterday"):
        folder = tmp_path / f"date={day}" / "country=de"
        sales(folder, shop_id=[1], sales=[2], channel=["web"])
    with pytest.raises(fs.SchemaMismatchError) as caught:
        await store.ingest("daily", tmp_path)
    for told in ("view 'daily'", "column 'date'", "'yesterday'", "timestamp", "part-0.parquet"):
        assert told in str(caught.value)
    assert await rows_of(store, "daily", "date") == [(hour(0),)]


async def test_folders_that_contradict_each_other(store: fs.FeatureStore, tmp_path: Path):
    await store.apply(REGIONS)
    await store.ingest("regions", trips(tmp_path / "region=eu" / "region=eu", [1]))
    path = trips(tmp_path / "region=eu" / "region=us", [1])
    with pytest.raises(fs.SchemaMismatchError, match=r"'region'.* both 'eu' and 'us'"):
        await store.ingest("regions", path)


async def test_hives_null_is_null(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([REGIONS, DAILY])
    path = trips(tmp_path / "region=__HIVE_DEFAULT_PARTITION__", [1])
    await store.ingest("regions", path)
    assert await rows_of(store, "regions", "region") == [(None,)]
    folder = tmp_path / "date=2024-01-01" / "country=__HIVE_DEFAULT_PARTITION__"
    path = sales(folder, shop_id=[1, 2], sales=[2, 3], channel=["web", "web"])
    with pytest.raises(fs.InvalidRowsError, match="country is null"):
        await store.ingest("daily", path)
    report = await store.ingest("daily", path, on_invalid="quarantine")
    assert (report.rows_written, report.rows_rejected) == (0, 2)


# --- as others write them ---------------------------------------------------------------------

ODD = ["plain", "a/b c%=ü", "__x?*", "..", "a+b&c#d", None]


def odd_table() -> pa.Table:
    count = len(ODD)
    moments = [hour(0), hour(1), MOMENT, MOMENT.replace(microsecond=500_000), hour(24), hour(25)]
    return pa.table(
        {
            "driver_id": pa.array(range(count), pa.int64()),
            "event_timestamp": pa.array(moments, fs.Timestamp.arrow),
            "region": pa.array(ODD),
            "trips": pa.array([1] * count, pa.int32()),
        }
    )


def write_hive(writer: str, table: pa.Table, folder: Path, columns: list[str]) -> None:
    if writer == "polars":
        pl.DataFrame(table).write_parquet(folder, partition_by=columns)
        return
    schema = pa.schema([table.schema.field(name) for name in columns])
    parts = ds.partitioning(schema, flavor="hive")
    ds.write_dataset(table, folder, format="parquet", partitioning=parts)


@pytest.mark.parametrize("writer", ["pyarrow", "polars"])
async def test_what_others_write_comes_back(store: fs.FeatureStore, tmp_path: Path, writer: str):
    await store.apply(REGIONS)
    table = await asyncio.to_thread(odd_table)
    folder = tmp_path / "data"
    await asyncio.to_thread(write_hive, writer, table, folder, ["region", "event_timestamp"])
    report = await store.ingest("regions", folder)
    assert len(report.loads) == len(ODD)
    stored = await store.repository("regions").history()
    found = stored.select(table.column_names).sort_by("driver_id")
    assert found.to_pylist() == table.to_pylist()


async def test_partitions_of_urls_and_objects(tmp_path: Path):
    """In a URL the percent signs of a folder's name are written as %25."""
    urls = [
        "https://host/day=2024-01-01/at=00%253A00/x=1%20a/part.parquet?date=1#b=2",
        "https://host/part.parquet?region=eu/",
    ]
    files = await resolve_sources(urls)
    assert [file.path for file in files] == urls
    assert files[0].partitions == (("day", "2024-01-01"), ("at", "00:00"), ("x", "1 a"))
    assert files[1].partitions == ()
    path = parquet(tmp_path / "a=b=c" / "=d" / "e=" / "%61=%25", REGIONS, [], "f=g.parquet")
    (local,) = await resolve_sources([str(path)])
    assert local.partitions[-3:] == (("a", "b=c"), ("e", ""), ("a", "%"))
