"""Errors of the tree, as JSON and as HTTP's status, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    InvalidRow,
    InvalidRowsError,
    MigrationRequiredError,
    NotFoundError,
    OverloadedError,
    SchemaMismatchError,
    SourceError,
    StoreUnavailableError,
)

_STATUSES: dict[type[FeatureStoreError], int] = {
    DefinitionError: 400,
    NotFoundError: 404,
    SchemaMismatchError: 422,
    InvalidRowsError: 422,
    SourceError: 422,
    MigrationRequiredError: 503,
    StoreUnavailableError: 503,
    OverloadedError: 503,
    FeatureStoreError: 500,
}
_CLASSES = {kind.__name__: kind for kind in _STATUSES}


class NotOurs(ValueError):
    """An answer that no server of featurestore gives."""


def _public(error: FeatureStoreError) -> type[FeatureStoreError]:
    """The class of the tree that ``error`` is of: subclasses are nobody else's business."""
    return next(kind for kind in type(error).__mro__ if kind in _STATUSES)


def status_of(error: FeatureStoreError) -> int:
    """HTTP's status for an error."""
    return _STATUSES[_public(error)]


def encode_error(error: FeatureStoreError) -> dict[str, Any]:
    """``{"error": {"type", "message", …}}``: rows and count of an :class:`InvalidRowsError`,
    name and candidates of a :class:`NotFoundError`."""
    body: dict[str, Any] = {"type": _public(error).__name__, "message": str(error)}
    if isinstance(error, InvalidRowsError):
        body["where"] = error.where
        body["rows"] = [{"row": bad.row, "reason": bad.reason} for bad in error.rows]
        body["count"] = error.count
    if isinstance(error, NotFoundError):
        body["name"] = error.name
        body["candidates"] = list(error.candidates)
    return {"error": body}


def decode_error(data: Any) -> FeatureStoreError:
    """The error that :func:`encode_error` was given; :class:`NotOurs` for anything else.

    A type of a newer server becomes a plain :class:`FeatureStoreError`.
    """
    try:
        body = data["error"]
        name, message = body["type"], body["message"]
        if not (isinstance(name, str) and isinstance(message, str)):
            raise TypeError("type and message are text")
        return _error(_CLASSES.get(name, FeatureStoreError), message, body)
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise NotOurs(f"no error of featurestore: {error!r}") from error


def _error(
    kind: type[FeatureStoreError], message: str, body: Mapping[str, Any]
) -> FeatureStoreError:
    if kind is NotFoundError:
        return NotFoundError(
            message, name=str(body.get("name", "")), candidates=list(body.get("candidates", ()))
        )
    if kind is not InvalidRowsError:
        return kind(message)
    rows = [InvalidRow(int(bad["row"]), str(bad["reason"])) for bad in body.get("rows", ())]
    error = InvalidRowsError(str(body.get("where", "the request")), rows, body.get("count"))
    error.args = (message,)
    return error
