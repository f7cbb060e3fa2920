"""Errors of the store as HTTP answers, whatever the framework."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    InvalidRowsError,
    MigrationRequiredError,
    NotFoundError,
    OverloadedError,
    SchemaMismatchError,
    StoreUnavailableError,
)
from featurestore.wire.errors import encode_error

Statuses = Mapping[type[FeatureStoreError], int]

STATUSES: Statuses = {
    FeatureStoreError: 500,
    # In a service of one's own the code names the features: the caller cannot help it.
    DefinitionError: 500,
    NotFoundError: 404,
    SchemaMismatchError: 422,
    InvalidRowsError: 422,
    MigrationRequiredError: 503,
    StoreUnavailableError: 503,
    OverloadedError: 503,
}

RETRY_SECONDS = 1
"""After this long it is worth asking again: the store waits longer than that by itself."""

# What is wrong with the service is for its log, not for its callers: messages name hosts and files.
_IN_GENERAL = {
    OverloadedError: "Too many requests are waiting for features; try again later.",
    StoreUnavailableError: "The feature store cannot be reached at the moment; try again later.",
    MigrationRequiredError: "The feature store is not ready.",
    FeatureStoreError: "The feature store cannot answer this.",
}

log = logging.getLogger("featurestore.integrations")


@dataclass(frozen=True)
class Answer:
    """A status, the error as JSON, and further headers."""

    status: int
    error: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def message(self) -> str:
        return str(self.error["message"])


def check_statuses(statuses: Statuses | None) -> Statuses:
    """The table to answer by: ours, with the user's own entries in it."""
    for kind, status in (statuses or {}).items():
        if not (isinstance(kind, type) and issubclass(kind, FeatureStoreError)):
            raise DefinitionError(f"statuses: {kind!r} is no class of featurestore's errors.")
        if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 599:
            raise DefinitionError(
                f"statuses: {kind.__name__} has {status!r}; a status of an error is 400 to 599."
            )
    return {**STATUSES, **(statuses or {})}


def answer_to(error: FeatureStoreError, statuses: Statuses, asked: str) -> Answer:
    """How to answer a request that ended in ``error``. ``asked`` names the request for the log,
    which has every answer of 500 and above in full."""
    status = _nearest(type(error), statuses)
    told: dict[str, Any] = encode_error(error)["error"]
    if status >= 500:
        told = {"type": told["type"], "message": _nearest(type(error), _IN_GENERAL)}
        level = logging.WARNING if status == 503 else logging.ERROR
        log.log(level, "%s: %s", asked, error, exc_info=error if status == 500 else None)
    again = status == 503 and not isinstance(error, MigrationRequiredError)
    return Answer(status, told, {"Retry-After": str(RETRY_SECONDS)} if again else {})


def _nearest(kind: type[FeatureStoreError], table: Mapping[type[FeatureStoreError], Any]) -> Any:
    return next(table[one] for one in kind.__mro__ if one in table)
