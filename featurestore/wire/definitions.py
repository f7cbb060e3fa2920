"""Entities, views and services as JSON objects that stand for themselves, and back.

A view carries its entities and a service its views, so that each can be rebuilt without asking
for more. Only what is secret in a source's URLs stays with the store.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from featurestore.definitions import (
    Definition,
    Entity,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    FrozenMap,
    ParquetSource,
)
from featurestore.types import FeatureType, parse_type
from featurestore.urls import without_secrets


def encode_entity(entity: Entity) -> dict[str, Any]:
    """An entity: ``name``, ``join_keys`` (name → type, in order), and what describes it."""
    return {"name": entity.name, "join_keys": encode_types(entity.join_keys), **_about(entity)}


def decode_entity(data: Mapping[str, Any]) -> Entity:
    """The entity that :func:`encode_entity` was given."""
    return Entity(data["name"], decode_types(data["join_keys"]), **_described(data))


def encode_view(view: FeatureView) -> dict[str, Any]:
    """A view with its entities and fields. ``ttl`` is an object of days, seconds and
    microseconds, or null."""
    return {
        "name": view.name,
        "entities": [encode_entity(entity) for entity in view.entities],
        "fields": [
            {
                "name": one.name,
                "type": one.type.name,
                "description": one.description,
                "tags": dict(one.tags),
            }
            for one in view.fields
        ],
        "timestamp_field": view.timestamp_field,
        "created_timestamp_field": view.created_timestamp_field,
        "ttl": None if view.ttl is None else _duration(view.ttl),
        "source": None if view.source is None else _source(view.source),
        "online": view.online,
        "notify": view.notify,
        **_about(view),
    }


def decode_view(data: Mapping[str, Any]) -> FeatureView:
    """The view that :func:`encode_view` was given; its source without secrets of URLs."""
    source = data["source"]
    return FeatureView(
        data["name"],
        entities=[decode_entity(one) for one in data["entities"]],
        fields=[
            Field(one["name"], parse_type(one["type"]), one["description"], one["tags"])
            for one in data["fields"]
        ],
        timestamp_field=data["timestamp_field"],
        created_timestamp_field=data["created_timestamp_field"],
        ttl=None if data["ttl"] is None else dt.timedelta(**data["ttl"]),
        source=None
        if source is None
        else ParquetSource(source["paths"], field_mapping=source["field_mapping"]),
        online=data["online"],
        notify=data["notify"],
        **_described(data),
    )


def encode_service(service: FeatureService) -> dict[str, Any]:
    """A service; each of its ``features`` is a view and what the service takes of it."""
    return {
        "name": service.name,
        "features": [
            {
                "view": encode_view(one.view),
                "features": list(one.features),
                "name": one.name,
                "join_key_map": dict(one.join_key_map),
            }
            for one in service.features
            if isinstance(one, FeatureSelection)
        ],
        **_about(service),
    }


def decode_service(data: Mapping[str, Any]) -> FeatureService:
    """The service that :func:`encode_service` was given."""
    selections = [
        FeatureSelection(
            decode_view(one["view"]),
            tuple(one["features"]),
            one["name"],
            FrozenMap(one["join_key_map"]),
        )
        for one in data["features"]
    ]
    return FeatureService(data["name"], selections, **_described(data))


def encode_types(types: Mapping[str, FeatureType]) -> dict[str, str]:
    """Columns and how their types are spelled."""
    return {name: kind.name for name, kind in types.items()}


def decode_types(types: Mapping[str, str]) -> dict[str, FeatureType]:
    """Columns and their types."""
    return {name: parse_type(kind) for name, kind in types.items()}


def _about(one: Definition) -> dict[str, Any]:
    return {"description": one.description, "tags": dict(one.tags), "owner": one.owner}


def _described(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("description", "tags", "owner")}


def _duration(ttl: dt.timedelta) -> dict[str, int]:
    return {"days": ttl.days, "seconds": ttl.seconds, "microseconds": ttl.microseconds}


def _source(source: ParquetSource) -> dict[str, Any]:
    return {
        "paths": [without_secrets(path) for path in source.paths],
        "field_mapping": dict(source.field_mapping),
    }
