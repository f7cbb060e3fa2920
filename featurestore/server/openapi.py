"""The server's OpenAPI document: what its routes take and give.

It is written out here, because the routes read and write JSON by themselves. schemathesis holds
them to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurestore.online.vectors import Status
from featurestore.wire import ARROW_STREAM

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer", "minimum": 0}
_TAGS: Json = {"type": "object", "additionalProperties": _TEXT}
_TYPES: Json = {
    "type": "object",
    "additionalProperties": _TEXT,
    "description": "Column → type, in order; types are spelled as `int64` or `array(float64)`.",
}
_ROW: Json = {
    "type": "object",
    "description": "Column → value. Bytes are base64, times and dates ISO 8601, decimals text; "
    '"NaN", "Infinity" and "-Infinity" stand for the floats that JSON lacks.',
}
_VALUES: Json = {"type": "array", "items": {"type": "array"}}
_FEATURES: Json = {
    "description": '"view:feature" and "view:*", or the name of a feature service.',
    "oneOf": [
        {
            "type": "array",
            "items": {"type": "string", "pattern": r"^[a-z][a-z0-9_]*:([a-z][a-z0-9_]*|\*)$"},
            "minItems": 1,
        },
        {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
    ],
}
_ABOUT: Json = {"description": _TEXT, "tags": _TAGS, "owner": _TEXT}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Any], *optional: str, closed: bool = False) -> Json:
    required = [name for name in properties if name not in optional]
    schema: Json = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = required
    if closed:
        schema["additionalProperties"] = False
    return schema


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_ERROR = _object(
    {
        "error": _object(
            {
                "type": {**_TEXT, "description": "The class of featurestore's errors."},
                "message": {**_TEXT, "description": "What is wrong, where, and what to do."},
                "where": _TEXT,
                "rows": _list(_object({"row": _WHOLE, "reason": _TEXT})),
                "count": _WHOLE,
                "name": _TEXT,
                "candidates": _list(_TEXT),
            },
            *("where", "rows", "count", "name", "candidates"),
        )
    }
)

_SCHEMAS: Json = {
    "Error": _ERROR,
    "OnlineRequest": _object(
        {
            "features": _FEATURES,
            "entities": _list(_ROW),
            "full_feature_names": {"type": "boolean", "default": False},
        },
        "full_feature_names",
        closed=True,
    ),
    "OnlineFeatures": _object(
        {
            "keys": _TYPES,
            "features": _TYPES,
            "rows": {**_VALUES, "description": "Per entity its keys, then its features."},
            "statuses": _list(_list({"enum": [status.value for status in Status]})),
            "event_timestamps": {
                "type": "object",
                "description": "View → the time of each entity's row, null where there is none.",
                "additionalProperties": _list(_or_null({**_TEXT, "format": "date-time"})),
            },
        }
    ),
    "Rows": _object({"rows": _list(_ROW)}, closed=True),
    "Pushed": _object(
        {"view": _TEXT, "load_id": _WHOLE, "rows_written": _WHOLE, "rows_future": _WHOLE}
    ),
    "HistoricalRequest": _object(
        {
            "entities": _list(_ROW),
            "features": _FEATURES,
            "timestamp_column": {**_TEXT, "default": "event_timestamp"},
            "full_feature_names": {"type": "boolean", "default": False},
        },
        *("timestamp_column", "full_feature_names"),
        closed=True,
    ),
    "HistoricalFeatures": _object(
        {
            "columns": _TYPES,
            "rows": _VALUES,
            "match_rate": {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
            },
        }
    ),
    "Entity": _object({"name": _TEXT, "join_keys": _TYPES, **_ABOUT}),
    "Field": _object({"name": _TEXT, "type": _TEXT, "description": _TEXT, "tags": _TAGS}),
    "View": _object(
        {
            "name": _TEXT,
            "entities": _list(_ref("Entity")),
            "fields": _list(_ref("Field")),
            "timestamp_field": _TEXT,
            "created_timestamp_field": _or_null(_TEXT),
            "ttl": _or_null(_object({"days": _WHOLE, "seconds": _WHOLE, "microseconds": _WHOLE})),
            "source": _or_null(_object({"paths": _list(_TEXT), "field_mapping": _TAGS})),
            "online": {"type": "boolean"},
            "notify": {"type": "boolean"},
            **_ABOUT,
        }
    ),
    "Service": _object(
        {
            "name": _TEXT,
            "features": _list(
                _object(
                    {
                        "view": _ref("View"),
                        "features": _list(_TEXT),
                        "name": _TEXT,
                        "join_key_map": _TAGS,
                    }
                )
            ),
            **_ABOUT,
        }
    ),
    "Live": _object({"status": {"const": "live"}}),
    "Ready": _object({"status": {"enum": ["ready", "not ready"]}, "reason": _TEXT}, "reason"),
    "Health": _object(
        {"live": {"type": "boolean"}, "ready": {"type": "boolean"}, "reason": _or_null(_TEXT)}
    ),
}

_ERRORS = {
    400: "A definition or a name that cannot be.",
    401: "No key, or a wrong one.",
    403: "The key does not allow it.",
    404: "It is not registered; the message has the closest names.",
    413: "The body, or entities × features, are beyond the server's limits.",
    415: "A Content-Type that is not read.",
    422: "The request, or rows of it, do not fit.",
    503: "Overloaded, or the database is away: come again after Retry-After seconds.",
}
_NAME_PATTERN = "^[a-z][a-z0-9_]{0,39}$"


def _json(name: str) -> Json:
    return {"application/json": {"schema": _ref(name)}}


def _arrow() -> Json:
    return {ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}}}


def _answers(content: Json, what: str, *errors: int) -> Json:
    answers: Json = {"200": {"description": what, "content": content}}
    for status in errors:
        answer: Json = {"description": _ERRORS[status], "content": _json("Error")}
        if status == 503:
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
        answers[str(status)] = answer
    return answers


def _named(name: str) -> Json:
    schema = {"type": "string", "pattern": _NAME_PATTERN}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Json, what: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": what}


def _operation(what: str, tag: str, responses: Json, **more: Any) -> Json:
    return {"summary": what, "tags": [tag], "responses": responses, **more}


_ALL = (400, 401, 403, 404, 413, 415, 422, 503)


def _feature_paths() -> Json:
    online = _operation(
        "Feature vectors of entities, as of now",
        "features",
        _answers({**_json("OnlineFeatures"), **_arrow()}, "One row per entity, in order.", *_ALL),
        requestBody={"required": True, "content": _json("OnlineRequest")},
        operationId="get_online_features",
    )
    push = _operation(
        "Write rows into a view",
        "features",
        _answers(_json("Pushed"), "The rows are durable, and readable online.", *_ALL),
        parameters=[_named("view")],
        requestBody={"required": True, "content": {**_json("Rows"), **_arrow()}},
        operationId="push",
    )
    beside = "As in a JSON body, for an Arrow one: "
    historical = _operation(
        "Entities with the features as they were known at their times",
        "features",
        _answers(
            {**_json("HistoricalFeatures"), **_arrow()}, "One row per entity, in order.", *_ALL
        ),
        parameters=[
            _query("features", _list(_TEXT), f"{beside}what to read, several times."),
            _query("timestamp_column", _TEXT, f"{beside}the column of times."),
            _query("full_feature_names", {"type": "boolean"}, f"{beside}view__feature."),
        ],
        requestBody={"required": True, "content": {**_json("HistoricalRequest"), **_arrow()}},
        operationId="get_historical_features",
    )
    return {
        "/v1/online-features": {"post": online},
        "/v1/views/{view}/rows": {"post": push},
        "/v1/historical-features": {"post": historical},
    }


def _registry_paths() -> Json:
    paths: Json = {}
    for many, one, schema in (
        ("views", "feature view", "View"),
        ("entities", "entity", "Entity"),
        ("services", "feature service", "Service"),
    ):
        listed = {"application/json": {"schema": _object({many: _list(_ref(schema))})}}
        paths[f"/v1/{many}"] = {
            "get": _operation(
                f"All {many}",
                "registry",
                _answers(listed, "By name.", 401, 403, 503),
                operationId=f"list_{many}",
            )
        }
        paths[f"/v1/{many}/{{name}}"] = {
            "get": _operation(
                f"One {one}",
                "registry",
                _answers(_json(schema), "As it is registered.", 401, 403, 404, 503),
                parameters=[_named("name")],
                operationId=f"get_{schema.lower()}",
            )
        }
    return paths


def _operations_paths() -> Json:
    paths: Json = {}
    for path, schema, what in (
        ("/health/live", "Live", "Whether the process answers"),
        ("/health/ready", "Ready", "Whether requests should come here"),
        ("/health", "Health", "Both"),
    ):
        answers = _answers(_json(schema), "Yes.")
        if schema != "Live":
            answers["503"] = {"description": "No.", "content": _json(schema)}
        paths[path] = {
            "get": _operation(
                what, "operations", answers, security=[], operationId=f"health_{schema.lower()}"
            )
        }
    text = {"text/plain": {"schema": _TEXT}}
    paths["/metrics"] = {
        "get": _operation(
            "Figures for Prometheus",
            "operations",
            _answers(text, "Of all workers.", 401, 403, 503),
            operationId="metrics",
        )
    }
    return paths


def document(version: str, project: str, auth: str) -> Json:
    """The OpenAPI document of a server that demands keys as ``auth`` says."""
    components: Json = {"schemas": _SCHEMAS}
    whole: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "featurestore",
            "version": version,
            "description": f"The features of project `{project}`.",
        },
        "paths": {**_feature_paths(), **_registry_paths(), **_operations_paths()},
        "components": components,
    }
    if auth != "none":
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "bearerFormat": "fs_<id>_<secret>"}
        }
        whole["security"] = [{"key": []}] if auth == "required" else [{"key": []}, {}]
    return whole
