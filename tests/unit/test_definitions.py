"""Definitions are frozen values, and refuse by themselves what cannot be."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore.types as t
from featurestore.definitions import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    ParquetSource,
    check_name,
    ttl_text,
)
from featurestore.errors import DefinitionError, NotFoundError

DRIVER = Entity("driver", join_keys={"driver_id": t.Int64})
AIRPORT = Entity("airport", join_keys={"airport": t.String})
CONV_RATE = Field("conv_rate", t.Float64)
TRIPS = Field("trips", t.Int32)


def view(name: str = "driver_stats", **changes: Any) -> FeatureView:
    options: dict[str, Any] = {
        "entities": [DRIVER],
        "fields": [CONV_RATE, TRIPS],
        "timestamp_field": "event_timestamp",
    }
    return FeatureView(name, **(options | changes))


WEATHER = view("weather", entities=[AIRPORT], fields=[Field("temp", t.Float64)])

EXAMPLES = {
    "entity": lambda: Entity("driver", {"driver_id": t.Int64}, tags={"a": "b"}),
    "field": lambda: Field("x", t.Array(t.Decimal(5, 2)), tags={"a": "b"}),
    "source": lambda: ParquetSource(["a", "b"], field_mapping={"A": "b"}),
    "view": lambda: view(source=ParquetSource("a"), ttl=timedelta(1), tags={"a": "b", "c": "d"}),
    "selection": lambda: WEATHER[["temp"]].with_name("x").with_join_key_map({"airport": "dest"}),
    "service": lambda: FeatureService("model", [view(), WEATHER[["temp"]]]),
}


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
def test_a_definition_is_a_value(make):
    one, two = make(), make()
    assert one is not two
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two}) == 1
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    assert copy.deepcopy(one) == one
    assert type(one).__name__ in repr(one)


@pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
def test_a_definition_is_frozen(make):
    one = make()
    for field in dataclasses.fields(one):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field.name, None)
        value = getattr(one, field.name)
        assert not isinstance(value, list | dict | set), f"{field.name} can be changed in place"
        assert not hasattr(value, "__setitem__"), f"{field.name} can be changed in place"


def test_changing_what_a_definition_was_made_of_leaves_it_alone():
    keys, fields, tags, paths = {"driver_id": t.Int64}, [CONV_RATE], {"a": "b"}, ["x"]
    entity = Entity("driver", keys)
    source = ParquetSource(paths)
    one = view(entities=[entity], fields=fields, tags=tags, source=source)
    keys["more"] = t.Int64
    fields.append(TRIPS)
    tags["c"] = "d"
    paths.append("y")
    assert dict(one.join_keys) == {"driver_id": t.Int64}
    assert list(one.types) == ["conv_rate"]
    assert dict(one.tags) == {"a": "b"}
    assert source.paths == ("x",)


def test_the_types_of_a_view_are_its_fields_and_no_part_of_its_value():
    one = view()
    assert one.types == {"conv_rate": t.Float64, "trips": t.Int32}
    assert one.types is one.types
    assert "types=" not in repr(one)
    changed = dataclasses.replace(one, fields=[Field("conv_rate", t.Float32)])
    assert changed.types == {"conv_rate": t.Float32}
    assert pickle.loads(pickle.dumps(changed)).types == changed.types  # noqa: S301


def test_a_source_prints_as_it_was_written_without_its_secrets():
    assert repr(ParquetSource("data/*.parquet")) == "ParquetSource('data/*.parquet')"
    several = ParquetSource(["a", "https://me:hush@host/x?sig=hush"], field_mapping={"x": "y"})
    assert repr(several) == (
        "ParquetSource(['a', 'https://host/x?sig=***'], field_mapping={'x': 'y'})"
    )
    assert several.paths[1] == "https://me:hush@host/x?sig=hush"
    assert "hush" not in repr(view(source=several))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"entities": [AIRPORT]},
        {"fields": [TRIPS, CONV_RATE]},
        {"timestamp_field": "ts"},
        {"created_timestamp_field": "created"},
        {"ttl": timedelta(days=1)},
        {"source": ParquetSource("a")},
        {"online": False},
        {"description": "x"},
        {"tags": {"a": "b"}},
        {"owner": "me"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_views_differ_where_anything_differs(change: dict[str, Any]):
    assert view(**change) != view()


def test_the_order_of_tags_is_no_difference():
    assert view(tags={"a": "1", "b": "2"}) == view(tags={"b": "2", "a": "1"})
    assert hash(view(tags={"a": "1", "b": "2"})) == hash(view(tags={"b": "2", "a": "1"}))


def test_making_definitions_does_no_io(tmp_path: Path):
    source = ParquetSource(tmp_path / "nowhere" / "*.parquet")
    assert view(source=source).source == source
    assert ParquetSource("https://nowhere.invalid/x.parquet").paths == (
        "https://nowhere.invalid/x.parquet",
    )


# --- names ------------------------------------------------------------------------------------

GOOD_NAMES = ["a", "a1", "a_b", "a_", "select", "order", "x" * 40, "user", "id", "name2_"]
BAD_NAMES = {
    "": "begin with a small letter",
    "A": "begin with a small letter",
    "_a": "begin with a small letter",
    "1a": "begin with a small letter",
    "a-b": "small letters",
    "a b": "small letters",
    "a.b": "small letters",
    "é": "small letters",
    "a\n": "small letters",
    "a²": "small letters",
    "a__b": "__",
    "x" * 41: "40",
    "ctid": "system column",
    "xmin": "system column",
    "xmax": "system column",
    "cmin": "system column",
    "cmax": "system column",
    "tableoid": "system column",
    "oid": "system column",
    "rowid": "system column",
}
MAKERS = {
    "entity": lambda name: Entity(name, join_keys={"k": t.Int64}),
    "join key": lambda name: Entity("e", join_keys={name: t.Int64}),
    "field": lambda name: Field(name, t.Int64),
    "view": lambda name: view(name),
    "service": lambda name: FeatureService(name, features=[WEATHER]),
    "other name": lambda name: WEATHER.with_name(name),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_good_names_are_taken(make):
    for name in GOOD_NAMES:
        make(name)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_bad_names_are_refused_and_the_error_says_why(make, name: str):
    with pytest.raises(DefinitionError, match=BAD_NAMES[name]) as caught:
        make(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("name", [None, 1, b"a"], ids=repr)
def test_a_name_is_text(make, name):
    with pytest.raises(DefinitionError):
        make(name)


@given(st.text(max_size=45))
def test_a_name_is_good_by_the_contract_or_refused(name: str):
    letters = "abcdefghijklmnopqrstuvwxyz"
    good = (
        0 < len(name) <= 40
        and name[0] in letters
        and all(letter in letters + "0123456789_" for letter in name)
        and "__" not in name
        and name not in ("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid", "rowid")
    )
    if good:
        assert check_name("field", name) == name
    else:
        with pytest.raises(DefinitionError):
            check_name("field", name)


# --- what cannot be ---------------------------------------------------------------------------

REFUSED = {
    "entity without keys": (lambda: Entity("e", join_keys={}), "join_keys"),
    "keys as a list": (lambda: Entity("e", join_keys=["a"]), "join_keys"),  # type: ignore[arg-type]
    "key without type": (lambda: Entity("e", join_keys={"k": int}), "fs.Int64"),  # type: ignore[dict-item]
    "field without type": (lambda: Field("x", float), "fs.Float64"),  # type: ignore[arg-type]
    "view without fields": (lambda: view(fields=[]), "at least one field"),
    "two fields of a name": (lambda: view(fields=[TRIPS, TRIPS]), "trips"),
    "field named as a key": (lambda: view(fields=[Field("driver_id", t.Int64)]), "driver_id"),
    "field named as the time": (lambda: view(timestamp_field="trips"), "trips"),
    "created is the time": (
        lambda: view(created_timestamp_field="event_timestamp"),
        "event_timestamp",
    ),
    "time is a key": (lambda: view(timestamp_field="driver_id"), "driver_id"),
    "empty time": (lambda: view(timestamp_field=""), "timestamp field"),
    "no time": (lambda: view(timestamp_field=None), "timestamp field"),
    "time with NUL": (lambda: view(timestamp_field="a\0"), "NUL"),
    "two entities of a key": (
        lambda: view(entities=[DRIVER, Entity("d", {"driver_id": t.Int32})]),
        "driver_id",
    ),
    "zero ttl": (lambda: view(ttl=timedelta(0)), "above zero"),
    "negative ttl": (lambda: view(ttl=timedelta(microseconds=-1)), "above zero"),
    "ttl as a number": (lambda: view(ttl=5), "timedelta"),
    "source as a path": (lambda: view(source="a.parquet"), "ParquetSource"),
    "online as text": (lambda: view(online="yes"), "online"),
    "entities as one": (lambda: view(entities=DRIVER), "entities"),
    "entities by name": (lambda: view(entities=["driver"]), "driver"),
    "fields as names": (lambda: view(fields=["trips"]), "trips"),
    "description as a number": (lambda: view(description=5), "description"),
    "tags as text": (lambda: view(tags="a"), "tags"),
    "tags of numbers": (lambda: view(tags={"a": 1}), "tag 'a'"),
    "owner with NUL": (lambda: view(owner="\0"), "NUL"),
    "no path": (lambda: ParquetSource([]), "path"),
    "empty path": (lambda: ParquetSource(""), "path"),
    "one target of two columns": (
        lambda: ParquetSource("a", field_mapping={"a": "x", "b": "x"}),
        "x",
    ),
    "service without features": (lambda: FeatureService("s", []), "at least one"),
    "service of names": (lambda: FeatureService("s", ["driver_stats:trips"]), "driver_stats"),  # type: ignore[list-item]
    "service of one view": (lambda: FeatureService("s", WEATHER), "list"),  # type: ignore[arg-type]
    "the same twice": (lambda: FeatureService("s", [view(), view()[["trips"]]]), "trips"),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(make, text: str):
    with pytest.raises(DefinitionError, match=text):
        make()


@pytest.mark.parametrize(
    "kind", [t.Float32, t.Float64, t.Json, t.Array(t.Int64), t.Array(t.String)], ids=str
)
def test_a_key_cannot_be_a_float_json_or_array(kind):
    with pytest.raises(DefinitionError, match="Bool, Int32, Int64, String, Bytes, Date"):
        Entity("e", join_keys={"k": kind})


@pytest.mark.parametrize(
    "kind",
    [t.Bool, t.Int32, t.Int64, t.String, t.Bytes, t.Date, t.Timestamp, t.Decimal(38, 10)],
    ids=str,
)
def test_a_key_can_be_of_each_exact_type(kind):
    assert Entity("e", join_keys={"k": kind}).join_keys == {"k": kind}


def test_an_error_says_where():
    with pytest.raises(DefinitionError, match="view 'driver_stats'"):
        view(ttl=timedelta(0))
    with pytest.raises(DefinitionError, match="entity 'driver'"):
        Entity("driver", join_keys={})
    with pytest.raises(DefinitionError, match="service 'model'"):
        FeatureService("model", [])


# --- views and selections ---------------------------------------------------------------------


def test_a_view_has_the_keys_of_its_entities_in_order():
    both = view(entities=[AIRPORT, DRIVER])
    assert list(both.join_keys.items()) == [("airport", t.String), ("driver_id", t.Int64)]
    assert dict(view(entities=[]).join_keys) == {}


def test_a_selection_holds_the_features_asked_for_in_their_order():
    chosen = view()[["trips", "conv_rate"]]
    assert chosen.features == ("trips", "conv_rate")
    assert chosen.view == view()
    assert view()["trips"] == view()[["trips"]]
    assert chosen[["trips"]].features == ("trips",)


def test_a_selection_of_something_unknown_names_the_closest():
    with pytest.raises(NotFoundError, match="'trips'") as caught:
        view()[["trip"]]
    assert caught.value.name == "trip"
    assert caught.value.candidates == ("trips",)
    with pytest.raises(NotFoundError, match="conv_rate"):
        view()[["trips"]][["conv_rate"]]


def test_a_selection_of_nothing_or_of_one_feature_twice_is_refused():
    with pytest.raises(DefinitionError, match="driver_stats"):
        view()[[]]
    with pytest.raises(DefinitionError, match="twice"):
        view()[["trips", "trips"]]


def test_another_name_and_key_leave_the_view_alone():
    there = WEATHER.with_name("dest_weather").with_join_key_map({"airport": "dest"})
    assert (there.name, dict(there.join_key_map)) == ("dest_weather", {"airport": "dest"})
    assert there.view is WEATHER
    assert there == WEATHER.with_join_key_map({"airport": "dest"}).with_name("dest_weather")
    assert there != WEATHER.with_name("dest_weather")
    assert WEATHER.name == "weather"


def test_only_keys_of_the_view_can_be_mapped():
    with pytest.raises(NotFoundError, match="'airport'"):
        WEATHER.with_join_key_map({"airprot": "dest"})


def test_a_service_may_hold_a_feature_of_one_name_from_two_views():
    there = WEATHER.with_name("dest_weather")
    service = FeatureService("eta", features=[WEATHER, there, view()[["trips"]]])
    assert len(service.features) == 3


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("a.parquet", ("a.parquet",)),
        (Path("a") / "b", ("a/b",)),
        (["a", Path("b")], ("a", "b")),
        (("https://host/x.parquet",), ("https://host/x.parquet",)),
    ],
    ids=str,
)
def test_a_source_is_a_path_or_several(path, paths):
    assert ParquetSource(path).paths == paths


@pytest.mark.parametrize(
    ("ttl", "text"),
    [
        ({"days": 30}, "30 d"),
        ({"days": 1, "hours": 12}, "36 h"),
        ({"minutes": 90}, "90 min"),
        ({"days": 20, "seconds": 1}, "1728001 s"),
        ({"seconds": 100}, "100 s"),
        ({"microseconds": 500_001}, "0.500001 s"),
    ],
)
def test_a_ttl_is_written_in_its_largest_whole_unit(ttl: dict[str, int], text: str):
    assert ttl_text(timedelta(**ttl)) == text
