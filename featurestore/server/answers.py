"""What a request is answered with, errors among it: every one of them in one form."""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import dataclass
from typing import Any

from featurestore import wire
from featurestore.errors import (
    FeatureStoreError,
    NotFoundError,
    OverloadedError,
    SchemaMismatchError,
)
from featurestore.server.limits import RETRY_AFTER_SECONDS
from featurestore.wire.text import dumps, loads

log = logging.getLogger("featurestore.server")

JSON = b"application/json"
ARROW = wire.ARROW_STREAM.encode()

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()


class Refused(Exception):
    """A request that the server itself refuses, before the store sees it."""

    def __init__(self, status: int, message: str, *headers: Header) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


# --- JSON ---------------------------------------------------------------------------------


def read_json(body: bytes) -> Any:
    """The value of a JSON body; :class:`SchemaMismatchError` where it is none."""
    try:
        return loads(body)
    except (ValueError, RecursionError) as error:
        raise SchemaMismatchError(f"The body is no JSON: {error}.") from None


def write_json(document: Any) -> bytes:
    """``document`` as JSON."""
    try:
        return dumps(document)
    except ValueError:  # a name that was asked for holds a lone surrogate
        return json.dumps(document, allow_nan=False).encode()


# --- errors -------------------------------------------------------------------------------

_RETRY: Header = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)


def answer_of(error: Exception) -> Answer:
    """The answer to a request that failed."""
    if isinstance(error, Refused):
        return refusal(error.status, str(error), *error.headers)
    status = wire.status_of(error) if isinstance(error, FeatureStoreError) else 500
    if not isinstance(error, FeatureStoreError) or status == 500:
        return _unexpected(error)
    return Answer(status, _written(error), headers=(_RETRY,) if status == 503 else ())


def _written(error: FeatureStoreError) -> bytes:
    return write_json(wire.encode_error(error))


def refusal(status: int, message: str, *headers: Header) -> Answer:
    """An answer of the server's own, in the form of all errors."""
    kind: type[FeatureStoreError] = FeatureStoreError
    if status == 503:
        kind, headers = OverloadedError, (_RETRY, *headers)
    elif status == 404:
        kind = NotFoundError
    return Answer(status, _written(kind(message)), headers=headers)


def _unexpected(error: Exception) -> Answer:
    """Nobody foresaw it: the log has it whole, the client only where to find it there."""
    number = secrets.token_hex(6)
    log.error("error %s: %s", number, error, exc_info=error)
    message = f"The server failed unexpectedly; its log has the reason under {number}."
    # 503 as a 500 would do, but without Retry-After: coming again may fail again.
    return Answer(503, _written(FeatureStoreError(message)))
