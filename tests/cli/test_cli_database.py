"""What depends on the database: each command on SQLite and on PostgreSQL."""

from __future__ import annotations

import base64
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import DAY, Run
from sqlalchemy import make_url

pytestmark = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

FEATURES = """
import datetime
import featurestore as fs

thing = fs.Entity(
    "thing",
    join_keys={
        "name": fs.String, "number": fs.Int64, "flag": fs.Bool, "day": fs.Date,
        "code": fs.Bytes, "price": fs.Decimal(10, 2), "moment": fs.Timestamp,
    },
)
values = fs.FeatureView(
    "thing_values",
    entities=[thing],
    fields=[
        fs.Field("i", fs.Int32), fs.Field("f", fs.Float64), fs.Field("s", fs.String),
        fs.Field("b", fs.Bytes), fs.Field("t", fs.Timestamp), fs.Field("d", fs.Date),
        fs.Field("n", fs.Decimal(20, 4)), fs.Field("j", fs.Json),
        fs.Field("a", fs.Array(fs.Float32)), fs.Field("at", fs.Array(fs.Timestamp)),
    ],
    timestamp_field="event_timestamp",
    created_timestamp_field="created",
)
rain = fs.FeatureView(
    "rain", entities=[], fields=[fs.Field("mm", fs.Float64)], timestamp_field="at",
    ttl=datetime.timedelta(hours=1),
)
airport = fs.Entity("airport", join_keys={"airport": fs.String})
weather = fs.FeatureView(
    "weather", entities=[airport],
    fields=[fs.Field("wind", fs.Float64), fs.Field("gust", fs.Float64)],
    timestamp_field="at",
)
flight = fs.FeatureService(
    "flight",
    features=[
        weather[["wind"]].with_join_key_map({"airport": "origin"}),
        weather[["wind"]].with_name("dest_weather").with_join_key_map({"airport": "dest"}),
        rain,
    ],
)
"""

KEYS = {
    "name": 'Smith, "J" = 1',
    "number": 2**53 + 1,
    "flag": True,
    "day": "2024-02-29",
    "code": base64.b64encode(b"\x00\xff").decode(),
    "price": "12.50",
    "moment": "2024-02-29T12:00:00.000001Z",
}
VALUES = {
    "i": -7,
    "f": "Infinity",
    "s": "Œ\n温",
    "b": "AP8=",
    "t": "9999-12-31T23:59:59.999999Z",
    "d": "0001-01-01",
    "n": "1234567890123456.7891",
    "j": {"a": [1, 2.5, None], "b": "x"},
    "a": [0.5, None],
    "at": ["2024-01-01T00:00:00Z", None],
}


@pytest.fixture(autouse=True)
def applied(run: Run, featurestore_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_URL", featurestore_url)
    Path("features.py").write_text(FEATURES)
    run("apply")


def push(run: Run, view: str, *rows: dict[str, Any]) -> None:
    Path("rows.json").write_text(json.dumps(rows))
    run("push", view, "rows.json")


def reading(airport: str, at: str, wind: float) -> dict[str, Any]:
    return {"airport": airport, "at": at, "wind": wind, "gust": None}


def test_every_type_goes_in_and_comes_out_as_json(run: Run) -> None:
    row = KEYS | VALUES | {"event_timestamp": "2024-01-01", "created": None}
    push(run, "thing_values", row)
    found = run("online", "thing_values:*", "--entity", json.dumps(KEYS), "--json").json
    assert found["rows"] == [KEYS | VALUES]
    assert found["event_timestamps"] == [{"thing_values": "2024-01-01T00:00:00Z"}]


def test_keys_of_every_type_are_read_from_text(run: Run) -> None:
    push(run, "thing_values", KEYS | VALUES | {"event_timestamp": "2024-01-01", "created": None})
    pairs = [f"{key}={value}" for key, value in (KEYS | {"flag": "true"}).items()]
    in_one = run("online", "thing_values:i", "--entity", ",".join(pairs), "--json").json
    as_words = run("online", "thing_values:i", *pairs, "--json").json
    assert in_one == as_words
    assert in_one["rows"] == [KEYS | {"i": -7}]


def test_a_service_joins_by_its_own_keys(run: Run) -> None:
    now = dt.datetime.now(dt.UTC).isoformat()
    push(run, "weather", reading("A", now, 1.0), reading("B", now, 2.0))
    push(run, "rain", {"at": "2024-01-01", "mm": 3.0})
    found = run("online", "flight", "origin=A", "dest=B", "--full-feature-names")
    assert found.out.splitlines() == [
        "origin  dest  weather__wind  dest_weather__wind  rain__mm",
        "A       B     1.0            2.0                 OUTSIDE_MAX_AGE",
    ]
    assert run("online", "rain:*", "weather:*", "airport=A").out.splitlines()[1].split() == [
        *("A", "OUTSIDE_MAX_AGE", "1.0", "NULL_VALUE")
    ]


def test_a_view_without_entities_needs_no_keys(run: Run) -> None:
    push(run, "rain", {"at": dt.datetime.now(dt.UTC).isoformat(), "mm": 3.5})
    assert run("online", "rain:mm").out == "mm\n3.5\n"


def test_a_training_set_of_csv(run: Run) -> None:
    push(run, "weather", reading("NA", "2024-01-01", 1.5), reading("007", "2024-01-01", 1.5))
    push(run, "rain", {"at": "2024-01-01T10:00:00Z", "mm": 3.0})
    Path("flights.csv").write_text(
        "origin,dest,when,delay\n"
        "NA,007,2024-01-01T10:30:00Z,5\n"
        "7,,2024-01-01 11:30+01:00,NA\n"
        "NA,NA,2023-12-31,\n"
    )
    done = run(
        *("training-set", "flights.csv", "flight", "--out", "set.parquet"),
        *("--timestamp-column", "when", "--full-feature-names", "--json"),
    )
    told = done.json
    assert (told["output"], told["rows"], told["columns"]) == ("set.parquet", 3, 7)
    assert told["match_rate"] == {"weather": 1 / 3, "dest_weather": 1 / 3, "rain": 2 / 3}
    table = pq.read_table("set.parquet")
    assert table.column("origin").to_pylist() == ["NA", "7", "NA"]
    assert table.column("delay").to_pylist() == [5, None, None]
    assert table.column("weather__wind").to_pylist() == [1.5, None, None]
    assert table.column("dest_weather__wind").to_pylist() == [1.5, None, None]
    assert table.column("rain__mm").to_pylist() == [3.0, 3.0, None]


def test_a_training_set_of_nothing_has_its_columns(run: Run) -> None:
    schema = pa.schema({"airport": pa.string(), "event_timestamp": pa.timestamp("us", "UTC")})
    pq.write_table(schema.empty_table(), "none.parquet")
    run("training-set", "none.parquet", "weather:*", "-o", "set.parquet")
    table = pq.read_table("set.parquet")
    assert table.num_rows == 0
    assert table.column_names == ["airport", "event_timestamp", "wind", "gust"]


def test_a_training_set_that_fails_leaves_no_file(run: Run) -> None:
    pq.write_table(pa.table({"airport": ["A"]}), "entities.parquet")
    Path("set.parquet").write_text("mine")
    done = run("training-set", "entities.parquet", "weather:*", "-o", "set.parquet", status=1)
    assert "event_timestamp" in done.err
    assert Path("set.parquet").read_text() == "mine"
    assert not list(Path().glob(".featurestore-*"))


def test_rows_that_do_not_fit_are_refused_or_set_aside(run: Run) -> None:
    rows = {"airport": ["A", None], "at": [DAY, DAY], "wind": [1.0, 2.0], "gust": [0.0, 0.0]}
    pq.write_table(pa.table(rows), "weather.parquet")
    refused = run("ingest", "weather", "weather.parquet", status=1)
    assert "row 1: airport is null" in refused.err
    assert run("loads").out == ""

    aside = run("ingest", "weather", "weather.parquet", "--on-invalid", "quarantine")
    assert "featurestore loads weather --rejected" in aside.err
    rejected = run("loads", "weather", "--rejected")
    assert "airport is null" in rejected.out
    (row,) = run("loads", "--rejected", "--json").json
    assert (row["row"], row["source"]) == (1, "weather.parquet")


def test_a_source_is_shown_without_its_secrets(run: Run) -> None:
    text = Path("features.py").read_text()
    for secret in ("hush-1", "hush-2"):
        url = f"https://me:{secret}@host/x.parquet?signature={secret}"
        at = 'timestamp_field="at",\n)\nflight'
        assert at in text
        source = f'timestamp_field="at", source=fs.ParquetSource("{url}"),\n)\nflight'
        Path("features.py").write_text(text.replace(at, source))
        for done in (run("plan"), run("plan", "--json"), run("apply"), run("status", "--json")):
            assert "https://host/x.parquet?signature=***" in done.out
            assert "hush" not in done.out + done.err


def test_materialize_by_view_and_time(run: Run) -> None:
    push(run, "weather", reading("A", "2024-01-01", 1.0))
    done = run("materialize", "weather", "--start", "2024-01-01", "--end", "2024-01-02")
    assert done.out == "view     keys changed\nweather             0\n"
    assert set(run("materialize", "--json").json["keys_changed"]) == {
        *("thing_values", "rain", "weather")
    }


def test_many_rows_set_aside_are_shown_a_few_at_a_time_or_all(run: Run) -> None:
    rows = {
        "airport": pa.nulls(2_500, pa.string()),
        "at": pa.array([DAY] * 2_500),
        "wind": pa.array(range(2_500), pa.float64()),
        "gust": pa.nulls(2_500, pa.float64()),
    }
    for name, count in (("a.parquet", 2_500), ("b.parquet", 3)):
        pq.write_table(pa.table(rows).slice(0, count), name)
    assert run("loads", "--rejected", "--json").json == []
    assert run("loads", "weather", "--rejected").err == "No row set aside of weather.\n"
    run("ingest", "weather", "a.parquet", "b.parquet", "--on-invalid", "quarantine")
    expected = [("a.parquet", row) for row in range(2_500)]
    expected += [("b.parquet", row) for row in range(3)]

    latest = run("loads", "--rejected")
    assert latest.err == "These are the latest 50; --limit 0 shows all.\n"
    assert _places(latest.out) == expected[-50:]
    every = run("loads", "--rejected", "--limit", "0")
    assert (every.err, _places(every.out)) == ("", expected)
    assert every.out.count("reason") == 1
    document = run("loads", "--rejected", "--json")
    assert [(row["source"], row["row"]) for row in document.json] == expected
    assert document.out == json.dumps(document.json, indent=2) + "\n"
    few = run("loads", "weather", "--rejected", "--json", "--limit", "4")
    assert [(row["source"], row["row"]) for row in few.json] == expected[-4:]
    assert few.err == ""


def _places(table: str) -> list[tuple[str, int]]:
    """Source and row of each line below the heads."""
    cells = [line.split() for line in table.splitlines()[1:]]
    return [(source, int(row)) for _, _, source, row, *_ in cells]


def test_undo_says_what_it_did_to_online(run: Run) -> None:
    push(run, "weather", reading("A", "2024-01-01", 1.0))
    push(run, "weather", *(reading(name, "2024-01-02", 2.0) for name in "ABC"))
    push(run, "weather", reading("C", "2024-01-03", 3.0))
    _, second, _ = (load["load_id"] for load in run("loads", "--json").json)
    assert run("undo", second).err == (
        f"Load {second} is undone: 3 rows of weather removed; online, 1 key is back to an older "
        f"value and 1 key is gone.\n"
    )
    found = run("online", "weather:wind", *(f"--entity=airport={name}" for name in "ABC"))
    assert found.out.split()[2:] == ["A", "1.0", "B", "NOT_FOUND", "C", "3.0"]
    again = run("undo", second, status=1)
    assert again.err.startswith(f"error: Load {second} was undone already, at ")
    push(run, "weather", reading("C", "2024-01-02", 4.0))
    late = run("loads", "--json").json[-1]["load_id"]
    assert run("undo", late).err.endswith("1 row of weather removed; online, nothing changed.\n")


@pytest.mark.parametrize("number", ["0", "77", str(2**62), str(2**80)])
def test_undo_of_a_load_that_is_not_there(run: Run, number: str) -> None:
    done = run("undo", number, status=1)
    assert done.err == (
        f"error: There is no load {number} in project 'default'; `featurestore loads` "
        f"(store.loads()) lists them.\n"
    )


def test_loads_are_listed_from_the_latest_back(run: Run) -> None:
    for number in range(4):
        push(run, "weather" if number % 2 else "rain", *_one(number))
    ids = [load["load_id"] for load in run("loads", "--json").json]
    assert ids == sorted(ids)
    done = run("loads", "--limit", "3")
    assert done.err == "These are the latest 3; --limit 0 shows all.\n"
    assert [int(line.split()[0]) for line in done.out.splitlines()[1:]] == ids[-3:]
    for more in (("--limit", "4"), ("--limit", "0")):
        done = run("loads", *more)
        assert done.err == ""
        assert [int(line.split()[0]) for line in done.out.splitlines()[1:]] == ids
    assert [one["load_id"] for one in run("loads", "rain", "--json").json] == ids[::2]


def _one(number: int) -> list[dict[str, Any]]:
    at = f"2024-01-0{number + 1}"
    return [reading("A", at, 1.0) if number % 2 else {"at": at, "mm": 1.0}]


def test_undo_takes_a_push_back(run: Run) -> None:
    for wind in (1.0, 2.0):
        push(run, "weather", reading("A", "2024-01-01", wind))
    assert run("undo", "2", "--json").json == {
        **{"load_id": 2, "view": "weather", "rows_removed": 1, "keys_changed": 1},
        "keys_removed": 0,
    }
    assert "1.0" in run("online", "weather:wind", "airport=A").out
    assert run("loads", "weather", "--limit", "1").out.splitlines()[1].endswith("undone")


def test_status_shows_no_password(run: Run, featurestore_url: str) -> None:
    found = run("status", "--json").json
    assert found["project"] == "default"
    assert [view["name"] for view in found["views"]] == ["rain", "thing_values", "weather"]
    assert [one["name"] for one in found["services"]] == ["flight"]
    assert (make_url(featurestore_url).password or "\0") not in found["database"]
    done = run("status")
    assert "services  flight" in done.out
    assert "1 h" in done.out


def test_migrate_says_what_it_found(run: Run) -> None:
    assert "already" in run("migrate").err
    found = run("migrate", "--json").json
    assert found["before"] == found["after"]
    assert not found["changed"]


def test_decimals_in_json_keep_their_digits(run: Run) -> None:
    text = json.dumps(KEYS | VALUES | {"event_timestamp": "2024-01-01", "created": None})
    text = text.replace('"1234567890123456.7891"', "1234567890123456.7891")
    Path("rows.jsonl").write_text(text)
    run("push", "thing_values", "rows.jsonl")
    found = run("online", "thing_values:n", "--entity", json.dumps(KEYS), "--json").json
    assert Decimal(found["rows"][0]["n"]) == Decimal("1234567890123456.7891")
