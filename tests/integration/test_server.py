"""What the HTTP server answers: features, pushes, training sets, the registry, its own state."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pyarrow as pa
import pytest
from http_serving import (
    ARROW,
    DAY,
    DRIVER,
    DRIVERS,
    HISTORICAL,
    ONLINE,
    PUSH,
    asked,
    client_of,
    row,
)

import featurestore as fs
from featurestore import wire

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

EVERYTHING = fs.FeatureView(
    "everything",
    entities=[
        fs.Entity("thing", join_keys={"code": fs.Bytes, "day": fs.Date, "price": fs.Decimal(8, 2)})
    ],
    fields=[
        fs.Field("flag", fs.Bool),
        fs.Field("large", fs.Int64),
        fs.Field("small", fs.Float32),
        fs.Field("real", fs.Float64),
        fs.Field("raw", fs.Bytes),
        fs.Field("moment", fs.Timestamp),
        fs.Field("date", fs.Date),
        fs.Field("money", fs.Decimal(20, 4)),
        fs.Field("more", fs.Json),
        fs.Field("reals", fs.Array(fs.Float64)),
        fs.Field("moments", fs.Array(fs.Timestamp)),
    ],
    timestamp_field="at",
    ttl=dt.timedelta(days=100_000, microseconds=1),
    tags={"team": "a"},
)
KEYS = {"code": "AP8=", "day": "2024-02-29", "price": "12.50"}
VALUES: dict[str, Any] = {
    "flag": True,
    "large": 2**53 + 1,
    "small": 0.5,
    "real": "-Infinity",
    "raw": base64.b64encode(b"\0\xff").decode(),
    "moment": "9999-12-31T23:59:59.999999Z",
    "date": "0001-01-01",
    "money": "1234567890123456.7891",
    "more": {"a": [1, None, {"b": 2**70}], "é": 1.5},
    "reals": [1.5, None, "Infinity"],
    "moments": ["2024-01-01T00:00:00.000001Z"],
}


@pytest.fixture
async def client(feature_store: fs.FeatureStore) -> AsyncIterator[httpx.AsyncClient]:
    service = fs.FeatureService("eta", features=[DRIVERS[["rate"]]], owner="b")
    await feature_store.apply([DRIVERS, EVERYTHING, service])
    async with client_of(feature_store) as client:
        yield client


async def test_rows_are_pushed_and_read(client: httpx.AsyncClient):
    pushed = await client.post(PUSH, json={"rows": [row(1), row(2, None)]})
    assert pushed.status_code == 200
    report = pushed.json()
    assert report.pop("load_id") > 0
    assert report == {"view": "drivers", "rows_written": 2, "rows_future": 0}

    answer = await client.post(ONLINE, json=asked(2, 9, 1, features=["drivers:*"]))
    time = "2024-01-01T00:00:00.000000Z"
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "keys": {"driver_id": "int64"},
        "features": {"rate": "float64", "city": "string"},
        "rows": [[2, None, "Oslo"], [9, None, None], [1, 0.5, "Oslo"]],
        "statuses": [
            ["NULL_VALUE", "PRESENT"],
            ["NOT_FOUND", "NOT_FOUND"],
            ["PRESENT", "PRESENT"],
        ],
        "event_timestamps": {"drivers": [time, None, time]},
    }


async def test_a_service_and_full_names(client: httpx.AsyncClient):
    await client.post(PUSH, json={"rows": [row(1)]})
    answer = await client.post(ONLINE, json=asked(1, features="eta") | {"full_feature_names": True})
    assert answer.json()["features"] == {"drivers__rate": "float64"}
    assert answer.json()["rows"] == [[1, 0.5]]


@both
async def test_values_come_back_as_they_went_in(client: httpx.AsyncClient):
    path = "/v1/views/everything/rows"
    pushed = await client.post(path, json={"rows": [KEYS | {"at": DAY.isoformat()} | VALUES]})
    assert pushed.status_code == 200, pushed.text
    request = {"features": ["everything:*"], "entities": [KEYS]}
    answer = await client.post(ONLINE, json=request)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rows"] == [[*KEYS.values(), *VALUES.values()]]

    arrow = await client.post(ONLINE, json=request, headers={"Accept": ARROW})
    assert arrow.headers["content-type"] == ARROW
    found = wire.online_from_table(wire.read_stream(arrow.content)).to_dicts()[0]
    assert (found["price"], found["money"]) == (Decimal("12.50"), Decimal(VALUES["money"]))
    assert (found["real"], found["more"]) == (-math.inf, VALUES["more"])
    assert found["reals"] == [1.5, None, math.inf]


@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_nan_is_text(client: httpx.AsyncClient):
    rows = [row(1, "NaN"), row(2, "Infinity")]  # type: ignore[arg-type]
    assert (await client.post(PUSH, json={"rows": rows})).status_code == 200
    answer = await client.post(ONLINE, json=asked(1, 2))
    assert answer.json()["rows"] == [[1, "NaN"], [2, "Infinity"]]


async def test_arrow_is_pushed(client: httpx.AsyncClient, feature_store: fs.FeatureStore):
    cities = pa.array(["Oslo", None, "Bergen"])
    table = pa.table(
        {
            "driver_id": pa.array([1, 2, 3], pa.int64()),
            "at": pa.array([DAY] * 3, pa.timestamp("us", "UTC")),
            "rate": [0.1, 0.2, 0.3],
            "city": cities.dictionary_encode(),
            "ignored": cities.cast(pa.string_view()),
        }
    )
    pushed = await client.post(
        PUSH, content=wire.write_stream(table), headers={"Content-Type": ARROW}
    )
    assert pushed.json()["rows_written"] == 3
    answer = await feature_store.get_online_features(["drivers:*"], [{"driver_id": 3}])
    assert answer.to_dicts() == [{"driver_id": 3, "rate": 0.3, "city": "Bergen"}]


@both
async def test_historical_features(client: httpx.AsyncClient, feature_store: fs.FeatureStore):
    await client.post(PUSH, json={"rows": [row(1)]})
    entities = [
        {"driver_id": 1, "when": "2024-01-02T00:00:00Z", "label": 1.5},
        {"driver_id": 1, "when": "2023-01-02T00:00:00Z", "label": None},
    ]
    asks = {"features": ["drivers:rate"], "timestamp_column": "when"}
    answer = await client.post(HISTORICAL, json={"entities": entities} | asks)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["columns"] == {
        "driver_id": "int64",
        "when": "timestamp",
        "label": "double",
        "rate": "float64",
    }
    assert found["rows"] == [
        [1, "2024-01-02T00:00:00.000000Z", 1.5, 0.5],
        [1, "2023-01-02T00:00:00.000000Z", None, None],
    ]
    assert found["match_rate"] == {"drivers": 0.5}

    table = pa.Table.from_pylist([{**one, "when": DAY} for one in entities])
    training = await feature_store.get_historical_features(
        table, ["drivers:rate"], timestamp_column="when", full_feature_names=True
    )
    sent = await client.post(
        HISTORICAL,
        content=wire.write_stream(table),
        params={**asks, "full_feature_names": "true"},
        headers={"Content-Type": ARROW, "Accept": ARROW},
    )
    assert sent.status_code == 200, sent.text
    again = wire.training_from_table(wire.read_stream(sent.content))
    assert again.to_arrow() == training.to_arrow()
    assert again.match_rate == training.match_rate == {"drivers": 1.0}


async def test_definitions_can_be_rebuilt(
    client: httpx.AsyncClient, feature_store: fs.FeatureStore
):
    views = (await client.get("/v1/views")).json()["views"]
    assert [wire.decode_view(one) for one in views] == await feature_store.list_views()
    entities = (await client.get("/v1/entities")).json()["entities"]
    assert [wire.decode_entity(one) for one in entities] == await feature_store.list_entities()
    services = (await client.get("/v1/services")).json()["services"]
    assert [wire.decode_service(one) for one in services] == await feature_store.list_services()

    one = await client.get("/v1/views/everything")
    assert wire.decode_view(one.json()) == EVERYTHING
    assert wire.decode_entity((await client.get("/v1/entities/driver")).json()) == DRIVER
    named = await client.get("/v1/services/eta")
    assert wire.decode_service(named.json()) == await feature_store.get_service("eta")


async def test_what_another_process_applies_is_served(
    client: httpx.AsyncClient, featurestore_url: str
):
    assert (await client.post(ONLINE, json=asked(1))).status_code == 200
    other = fs.FeatureView(
        "other", entities=[DRIVER], fields=[fs.Field("x", fs.Int32)], timestamp_field="at"
    )
    wider = fs.FeatureView(
        "drivers",
        entities=[DRIVER],
        fields=[*DRIVERS.fields, fs.Field("age", fs.Int32)],
        timestamp_field="at",
    )
    async with fs.FeatureStore(featurestore_url) as second:
        await second.apply([other, wider])
    rows = [{"driver_id": 1, "at": DAY.isoformat(), "x": 7}]
    assert (await client.post("/v1/views/other/rows", json={"rows": rows})).status_code == 200
    answer = await client.post(ONLINE, json=asked(1, features=["other:x", "drivers:age"]))
    assert answer.json()["rows"] == [[1, 7, None]]


async def test_a_push_goes_by_the_definitions_that_there_are(
    client: httpx.AsyncClient, featurestore_url: str
):
    """Times come as text: how they are read depends on the field's type, which is new here."""
    assert (await client.post(PUSH, json={"rows": [row(1)]})).status_code == 200
    wider = fs.FeatureView(
        "drivers",
        entities=[DRIVER],
        fields=[*DRIVERS.fields, fs.Field("since", fs.Timestamp)],
        timestamp_field="at",
    )
    async with fs.FeatureStore(featurestore_url) as second:
        await second.apply([wider])
    answer = await client.post(PUSH, json={"rows": [row(2, since=DAY.isoformat())]})
    assert answer.status_code == 200, answer.text
    found = await client.post(ONLINE, json=asked(2, features=["drivers:since"]))
    assert found.json()["rows"] == [[2, "2024-01-01T00:00:00.000000Z"]]


# --- errors -------------------------------------------------------------------------------

WRONG: list[tuple[str, str, Any, int, str]] = [
    ("POST", ONLINE, asked(1, features=["drivers:rat"]), 404, "Did you mean 'rate'"),
    ("POST", ONLINE, asked(1, features="etta"), 404, "Did you mean 'eta'"),
    ("POST", ONLINE, asked(1, features=["drivers"]), 400, "'view:feature'"),
    ("POST", ONLINE, asked(1, features=[]), 400, "No feature is asked for"),
    ("POST", ONLINE, {"entities": []}, 422, '"features"'),
    ("POST", ONLINE, {"features": [1], "entities": []}, 422, '"features"'),
    ("POST", ONLINE, {"features": ["drivers:rate"], "entities": {}}, 422, '"entities"'),
    ("POST", ONLINE, {"features": ["drivers:rate"], "entities": [1]}, 422, "driver_id"),
    ("POST", ONLINE, {"features": ["drivers:rate"], "entities": [{}]}, 422, "driver_id"),
    ("POST", HISTORICAL, {"features": ["drivers:rate"], "entities": [{}]}, 422, "driver_id"),
    ("POST", ONLINE, asked(1) | {"entity_rows": []}, 422, "'entity_rows'"),
    ("POST", ONLINE, asked(1) | {"full_feature_names": 1}, 422, "full_feature_names"),
    ("POST", ONLINE, [], 422, "JSON object"),
    ("POST", ONLINE, "", 422, "JSON object"),
    ("POST", PUSH, {"rows": [row(1, city=5)]}, 422, "string"),
    ("POST", PUSH, {"rows": [row(2**63)]}, 422, "int64"),
    ("POST", PUSH, {"rows": [row(1, at="today")]}, 422, "ISO 8601"),
    ("POST", PUSH, {"rows": [row(1, nme=1)]}, 422, "nme"),
    ("POST", "/v1/views/driver/rows", {"rows": []}, 404, "Did you mean 'drivers'"),
    ("POST", HISTORICAL, asked(1), 422, "event_timestamp"),
    ("POST", HISTORICAL, asked(1) | {"timestamp_column": 1}, 422, "timestamp_column"),
    ("GET", "/v1/views/driver", None, 404, "Did you mean 'drivers'"),
    ("GET", "/v1/view", None, 404, "/docs"),
    ("GET", ONLINE, None, 405, "Method Not Allowed"),
    ("POST", "/health", None, 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "said"), WRONG)
async def test_a_mistake_gets_one_clear_error(
    client: httpx.AsyncClient, method: str, path: str, body: Any, status: int, said: str
):
    answer = await client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert issubclass(getattr(fs, error["type"]), fs.FeatureStoreError)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a": NaN}', b'{"a": 1e400}', b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}'],
)
async def test_what_is_no_json_is_refused(client: httpx.AsyncClient, body: bytes):
    headers = {"Content-Type": "application/json"}
    answer = await client.post(ONLINE, content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "SchemaMismatchError"


async def test_rows_that_do_not_fit_are_named(client: httpx.AsyncClient):
    rows = [row(1), row(2) | {"driver_id": None}, row(3, at="x")]
    answer = await client.post(PUSH, json={"rows": rows})
    error = wire.decode_error(answer.json())
    assert isinstance(error, fs.InvalidRowsError)
    assert [bad.row for bad in error.rows] == [2]  # the text is read before values are checked
    answer = await client.post(PUSH, json={"rows": rows[:2]})
    error = wire.decode_error(answer.json())
    assert isinstance(error, fs.InvalidRowsError)
    assert [bad.row for bad in error.rows] == [1]
    assert (await client.post(ONLINE, json=asked(1))).json()["rows"] == [[1, None]]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_bodies_are_not_read(client: httpx.AsyncClient, kind: str):
    """A page of another site could have a browser send them."""
    body = json.dumps({"rows": [row(1)]}).encode()
    answer = await client.post(PUSH, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


async def test_compressed_bodies_are_not_read(client: httpx.AsyncClient):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await client.post(PUSH, content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415


async def test_an_unexpected_error_is_logged_and_not_shown(
    client: httpx.AsyncClient,
    feature_store: fs.FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    async def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the password is 12345")

    monkeypatch.setattr(feature_store, "get_online_features", fail)
    answer = await client.post(ONLINE, json=asked(1))
    assert answer.status_code == 503
    assert "retry-after" not in answer.headers
    assert "12345" not in answer.text
    number = answer.json()["error"]["message"].rpartition(" ")[2].rstrip(".")
    assert number in caplog.text
    assert "Traceback" in caplog.text
    assert "12345" in caplog.text


# --- its own state ------------------------------------------------------------------------


async def test_health_of_a_server_that_is_ready(client: httpx.AsyncClient):
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}
    assert (await client.get("/health")).json() == {"live": True, "ready": True, "reason": None}


async def test_health_without_a_database(tmp_path: Any):
    async with (
        fs.FeatureStore(f"sqlite:///{tmp_path}/nowhere/x.db") as store,
        client_of(store, auth="none") as client,
    ):
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json() == {"status": "not ready", "reason": "StoreUnavailableError"}
        assert (await client.get("/health")).status_code == 503
        answer = await client.post(ONLINE, json=asked(1))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "StoreUnavailableError"
        # What others ask for is there all the same.
        assert "featurestore_request_seconds" in (await client.get("/metrics")).text


async def test_health_of_a_database_without_tables(feature_store: fs.FeatureStore):
    async with client_of(feature_store, auth="none") as client:
        ready = await client.get("/health/ready")
        assert ready.json()["reason"] == "MigrationRequiredError"
        answer = await client.post(ONLINE, json=asked(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["type"] == "MigrationRequiredError"


async def test_metrics(client: httpx.AsyncClient):
    await client.post(PUSH, json={"rows": [row(1)]})
    for _ in range(3):
        await client.post(ONLINE, json=asked(1))
    await client.post(ONLINE, json=[])
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    figures = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            figures[name] = float(value)
    route = f'method="POST",route="{ONLINE}"'
    count = "featurestore_request_seconds_count"
    assert figures[f'{count}{{{route},status="200",worker="0"}}'] == 3
    assert figures[f'{count}{{{route},status="422",worker="0"}}'] == 1
    reads = 'kind="read",worker="0"'
    assert figures[f"featurestore_store_batch_requests_count{{{reads}}}"] == 3
    assert figures['featurestore_store_batch_requests_bucket{kind="read",le="1.0",worker="0"}'] == 3
    assert figures[f"featurestore_store_rows_total{{{reads}}}"] == 3
    assert figures[f"featurestore_store_queue{{{reads}}}"] == 0
    assert 0 <= figures['featurestore_view_freshness_seconds{view="drivers"}'] < 60
    assert 'featurestore_view_freshness_seconds{view="everything"}' not in figures
    assert figures['featurestore_requests_in_flight{worker="0"}'] == 1
    assert figures['featurestore_pool_connections{worker="0"}'] >= 1
    assert figures['featurestore_loop_lag_seconds_count{worker="0"}'] >= 0
    assert figures['featurestore_worker_up{worker="0"}'] == 1


async def test_the_documents(client: httpx.AsyncClient):
    document = (await client.get("/openapi.json")).json()
    assert document["paths"].keys() >= {ONLINE, HISTORICAL, "/v1/views/{view}/rows", "/metrics"}
    assert (await client.get("/docs")).status_code == 200
