"""init: an example, or what a Parquet file is about."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import DAY, Run

from featurestore import types
from featurestore.cli.columns import feature_type, name_for
from featurestore.cli.definitions import load_definitions
from featurestore.cli.init import Guess, guess
from featurestore.definitions import Entity, FeatureView

TIME = pa.array([DAY, DAY], pa.timestamp("us", "UTC"))


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def guessed(**columns: Any) -> Guess:
    """What is made of a file `rides.parquet` with these columns."""
    return guess(str(write(Path("rides.parquet"), **columns)))


def written(path: Path = Path("features.py")) -> FeatureView:
    """The view that a features.py defines."""
    (view,) = [one for one in load_definitions(path) if isinstance(one, FeatureView)]
    return view


# --- the guess ----------------------------------------------------------------------------


def test_of_a_plain_file(driver_stats: Path) -> None:
    found = guess(str(driver_stats))
    assert found.view == "driver_stats"
    assert found.entity == "driver"
    assert [one.name for one in found.keys] == ["driver_id"]
    assert found.time.name == "event_timestamp"
    assert found.created is None
    assert {one.name: one.type for one in found.features} == {
        "conv_rate": types.Float64,
        "trips": types.Int32,
        "city": types.String,
    }
    assert found.rows == 12
    assert not found.field_mapping
    assert not found.skipped


@pytest.mark.parametrize(
    ("names", "key", "entity"),
    [
        (("trips", "driver_id"), "driver_id", "driver"),
        (("user_id", "driver_id"), "user_id", "user"),
        (("zip_code", "driver_id"), "driver_id", "driver"),
        (("trips", "zip_code"), "zip_code", "zip"),
        (("trips", "id"), "id", "rides"),
        (("trips", "key"), "key", "rides"),
        (("trips", "userId"), "user_id", "user"),
        (("airport", "trips"), "airport", "airport"),
        (("paid", "trips"), "paid", "paid"),
    ],
)
def test_the_key_is_the_column_that_is_named_like_one(
    names: tuple[str, ...], key: str, entity: str
) -> None:
    found = guessed(**{name: [1, 2] for name in (*names, "time")} | {"time": TIME})
    assert [one.name for one in found.keys] == [key]
    assert found.entity == entity


def test_floats_times_and_lists_are_no_keys() -> None:
    found = guessed(float_id=[0.5, 1.5], list_id=[[1], [2]], time_id=TIME, name=["a", "b"], at=TIME)
    assert [one.name for one in found.keys] == ["name"]


@pytest.mark.parametrize(
    ("names", "event", "created"),
    [
        (("created", "event_timestamp"), "event_timestamp", "created"),
        (("created_at", "time"), "time", "created_at"),
        (("created_at",), "created_at", None),
        (("created_at", "landed"), "landed", "created_at"),
        (("landed", "ts"), "ts", None),
        (("EventTime", "landed"), "event_time", None),
    ],
)
def test_the_times_go_by_their_names(
    names: tuple[str, ...], event: str, created: str | None
) -> None:
    found = guessed(**{"id": [1, 2], "x": [1, 2]}, **dict.fromkeys(names, TIME))
    assert found.time.name == event
    assert (found.created and found.created.name) == created


def test_days_are_times_where_there_are_no_others(run: Run) -> None:
    write(Path("a.parquet"), id=[1], day=[dt.date(2024, 1, 1)], x=[1])
    done = run("init", "--from", "a.parquet")
    assert "day is a date and counts from its first moment" in done.err
    assert written().timestamp_field == "day"


ARROW_TYPES = [
    (pa.bool_(), types.Bool),
    (pa.int8(), types.Int32),
    (pa.int16(), types.Int32),
    (pa.int32(), types.Int32),
    (pa.uint8(), types.Int32),
    (pa.uint16(), types.Int32),
    (pa.uint32(), types.Int64),
    (pa.int64(), types.Int64),
    (pa.uint64(), types.Int64),
    (pa.float16(), types.Float32),
    (pa.float32(), types.Float32),
    (pa.float64(), types.Float64),
    (pa.string(), types.String),
    (pa.large_string(), types.String),
    (pa.string_view(), types.String),
    (pa.dictionary(pa.int8(), pa.string()), types.String),
    (pa.binary(), types.Bytes),
    (pa.large_binary(), types.Bytes),
    (pa.binary(16), types.Bytes),
    (pa.uuid(), types.Bytes),
    (pa.timestamp("s"), types.Timestamp),
    (pa.timestamp("ns", "Europe/Oslo"), types.Timestamp),
    (pa.date32(), types.Date),
    (pa.date64(), types.Date),
    (pa.decimal32(5, 2), types.Decimal(5, 2)),
    (pa.decimal128(38, 0), types.Decimal(38, 0)),
    (pa.decimal256(20, 5), types.Decimal(20, 5)),
    (pa.decimal128(5, -2), None),
    (pa.decimal256(39, 5), None),
    (pa.json_(), types.Json),
    (pa.list_(pa.float32()), types.Array(types.Float32)),
    (pa.large_list(pa.int8()), types.Array(types.Int32)),
    (pa.list_(pa.string(), 3), types.Array(types.String)),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), types.Array(types.String)),
    (pa.list_(pa.list_(pa.int64())), None),
    (pa.list_(pa.struct({"a": pa.int64()})), None),
    (pa.struct({"a": pa.int64()}), None),
    (pa.map_(pa.string(), pa.int64()), None),
    (pa.time32("s"), None),
    (pa.duration("s"), None),
    (pa.null(), None),
]


@pytest.mark.parametrize(("arrow", "kind"), ARROW_TYPES, ids=str)
def test_types(arrow: pa.DataType, kind: types.FeatureType | None) -> None:
    assert feature_type(arrow) == kind


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("conv_rate", "conv_rate"),
        ("Conv. Rate (%)", "conv_rate"),
        ("convRate", "conv_rate"),
        ("HTTPStatus", "http_status"),
        ("Größe Œ é", "groe_e"),
        ("2nd", "n_2nd"),
        ("a__b", "a_b"),
        ("_x_", "x"),
        ("ctid", "ctid_value"),
        ("温度", "column_7"),
        ("", "column_7"),
        ("x" * 50, "x" * 40),
    ],
)
def test_names_that_cannot_be_are_made_to_fit(text: str, name: str) -> None:
    assert name_for(text, "column_7") == name


def test_names_stay_apart() -> None:
    names = ["id", "a b", "a-b", "a_b", "x" * 41, "x" * 42]
    found = guessed(at=TIME[:1], **{name: [1] for name in names})
    assert found.field_mapping == {
        "a b": "a_b_2",
        "a-b": "a_b_3",
        "x" * 41: "x" * 40,
        "x" * 42: "x" * 38 + "_2",
    }


# --- the file that it writes --------------------------------------------------------------


def test_the_example_works(run: Run) -> None:
    done = run("init")
    assert done.out == ""
    assert "features.py is written" in done.err
    definitions = {type(one).__name__: one.name for one in load_definitions(Path("features.py"))}
    assert definitions == {
        "Entity": "driver",
        "FeatureView": "driver_stats",
        "FeatureService": "trip_time",
    }


def test_from_a_file(run: Run, driver_stats: Path) -> None:
    done = run("init", "--from", "driver_stats.parquet")
    assert "entity      driver, by driver_id (int64)" in done.err
    assert "event time  event_timestamp" in done.err
    assert "featurestore ingest driver_stats" in done.err
    view = written()
    assert view.entities == (Entity("driver", {"driver_id": types.Int64}),)
    assert view.types == {"conv_rate": types.Float64, "trips": types.Int32, "city": types.String}
    assert view.source is not None
    assert view.source.paths == ("driver_stats.parquet",)


def test_json_says_what_was_guessed(run: Run, driver_stats: Path) -> None:
    found = run("init", "--from", "driver_stats.parquet", "--json").json
    assert found["view"] == "driver_stats"
    assert found["join_keys"] == {"driver_id": "int64"}
    assert found["features"] == {"conv_rate": "float64", "trips": "int32", "city": "string"}


def test_whatever_names_a_file_has_the_result_is_python(run: Run) -> None:
    names = ['"', "'", "\\", "a\nb", '"""', "{x}", "% s", "# no", "\u2028", "\u202e", "\x1b[31m"]
    path = write(
        Path("od\"d's.parquet"), **{"import": ["k"], "def": TIME[:1], **{one: [1] for one in names}}
    )
    run("init", "--from", path, "--key", "import", "--time", "def")
    view = written()
    assert view.source is not None
    assert view.source.paths == (str(path),)
    assert set(view.source.field_mapping) == set(names)
    assert list(view.join_keys) == ["import"]


def test_an_entity_and_a_view_of_one_name_get_two_variables(run: Run) -> None:
    run("init", "--from", write(Path("class.parquet"), class_id=[1], at=TIME[:1], x=[1]))
    assert [one.name for one in load_definitions(Path("features.py"))] == ["class", "class"]


def test_columns_that_do_not_fit_are_left_out_and_named(run: Run) -> None:
    path = write(Path("a.parquet"), id=[1], at=TIME[:1], x=[1], point=[{"x\ny": 1}], nothing=[None])
    done = run("init", "--from", path)
    assert "Column 'point' is left out: struct<x\\ny: int64> is no type" in done.err
    text = Path("features.py").read_text()
    assert "#   'nothing': null is no type of featurestore" in text
    assert list(written().types) == ["x"]


def test_options_overrule_the_guess(run: Run) -> None:
    days = {"To Day": [dt.date(2024, 1, 1)]}
    write(Path("a.parquet"), user_id=[1], **days, at=TIME[:1], seen=TIME[:1], x=[1])
    run(
        *("init", "--from", "a.parquet", "--key", "user_id", "--key", "To Day"),
        *("--time", "seen", "--entity", "visit", "--view", "visits"),
    )
    view = written()
    assert view.name == "visits"
    assert view.join_keys == {"user_id": types.Int64, "to_day": types.Date}
    assert view.entities[0].name == "visit"
    assert view.timestamp_field == "seen"
    assert list(view.types) == ["at", "x"]


@pytest.mark.parametrize("source", ["data", "data/*.parquet", "data/year=2024"])
def test_of_a_folder_or_a_glob_the_first_file_counts(run: Run, source: str) -> None:
    write(Path("data/year=2024/b.parquet"), id=[1], at=TIME[:1], x=[1])
    write(Path("data/a.parquet"), id=[1], at=TIME[:1], x=[1])
    write(Path("data/_b.parquet"), id=["no"])
    run("init", "--from", source)
    view = written()
    assert view.source is not None
    assert view.source.paths == (source,)
    assert view.name == ("year_2024" if source.endswith("2024") else "data")


def test_a_file_of_all_types_and_odd_names_can_be_loaded_as_it_is(run: Run) -> None:
    """The types that Parquet can hold, each under a name that needs care."""
    columns = {"Driver ID": pa.array([7]), "Known At": TIME[:1].cast(pa.timestamp("ns"))}
    for number, (arrow, kind) in enumerate(ARROW_TYPES):
        if kind is not None and not pa.types.is_float16(arrow):
            columns[f"{number} ø {arrow}"] = _one_of(arrow)
    pq.write_table(pa.table(columns), "odd 1.parquet")
    run("init", "--from", "odd 1.parquet")
    run("apply")
    assert run("ingest", "odd_1", "--json").json["rows_written"] == 1
    found = run("online", "odd_1:*", "driver_id=7", "--json").json
    assert set(found["statuses"][0].values()) == {"PRESENT"}
    assert len(found["statuses"][0]) == len(columns) - 2


def _one_of(arrow: pa.DataType) -> pa.Array:
    """A column of one value that is not null."""
    if isinstance(arrow, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(arrow, _one_of(arrow.storage_type))
    if pa.types.is_dictionary(arrow):
        return pa.array(["a"]).dictionary_encode().cast(arrow)
    if pa.types.is_fixed_size_list(arrow):
        return pa.array([["a"] * arrow.list_size], arrow)
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        items = _one_of(arrow.value_type)
        kind = pa.ListArray if pa.types.is_list(arrow) else pa.LargeListArray
        return kind.from_arrays([0, 1], items)
    if pa.types.is_fixed_size_binary(arrow):
        return pa.array([b"x" * arrow.byte_width], arrow)
    texts = {pa.string(), pa.large_string(), pa.string_view()}
    return pa.array(['"1"' if arrow in texts else _PLAIN.get(arrow, 1)], arrow)


_PLAIN: dict[pa.DataType, Any] = {
    pa.bool_(): True,
    pa.binary(): b"x",
    pa.large_binary(): b"x",
    pa.date32(): dt.date(2024, 1, 1),
    pa.date64(): dt.date(2024, 1, 1),
}


# --- what goes wrong ----------------------------------------------------------------------


def test_nothing_is_overwritten_unless_forced(run: Run, driver_stats: Path) -> None:
    Path("features.py").write_text("mine = 1")
    done = run("init", "--from", driver_stats, status=2)
    assert "features.py is there already: --force replaces it" in done.err
    assert Path("features.py").read_text() == "mine = 1"
    run("init", "--from", driver_stats, "--force")
    assert written().name == "driver_stats"


def test_definitions_names_the_file(run: Run, driver_stats: Path) -> None:
    run("init", "--from", driver_stats, "--definitions", "other.py")
    assert written(Path("other.py")).name == "driver_stats"
    assert not Path("features.py").exists()


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"id": [1], "x": [1]}, [], "has no timestamp column"),
        ({"id": [0.5], "at": TIME[:1]}, [], "no integer or text column"),
        ({"id": [1], "at": TIME[:1]}, [], "no column left to be a feature"),
        ({"id": [1], "at": TIME[:1], "x": [1]}, ["--time", "x"], "--time x: the column is int64"),
        ({"id": [1], "at": TIME[:1], "x": [1]}, ["--time", "ta"], "Did you mean 'at'?"),
        ({"id": [1], "at": TIME[:1], "x": [0.5]}, ["--key", "x"], "float64 cannot be a join key"),
        ({"id": [1], "at": TIME[:1], "x": [1]}, ["--key", "iD"], "no column for --key 'iD'"),
        ({"id": [1], "at": TIME[:1], "x": [1]}, ["--view", "A"], "'A' cannot name a view"),
    ],
)
def test_what_cannot_be_guessed_is_said(
    run: Run, columns: dict[str, Any], options: list[str], words: str
) -> None:
    done = run("init", "--from", write(Path("a.parquet"), **columns), *options, status=1)
    assert words in done.err
    assert done.err.startswith("error: ")
    assert not Path("features.py").exists()


def test_a_file_that_is_none(run: Run) -> None:
    Path("a.parquet").write_bytes(b"PAR1 no PAR1")
    done = run("init", "--from", "a.parquet", status=1)
    assert "a.parquet is damaged" in done.err
    assert "no Parquet file b.parquet" in run("init", "--from", "b.parquet", status=1).err
    assert "download" in run("init", "--from", "https://x.org/a.parquet", status=1).err


def test_options_of_the_guess_need_a_file(run: Run) -> None:
    assert "need --from" in run("init", "--key", "id", status=2).err
