"""JSON text of what :mod:`featurestore.wire` makes, and back, exactly.

orjson is fast, and has no integers beyond 64 bits: it refuses to write them and reads them as
floats. A Json value may hold them, so texts with such numbers go through the standard library.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

# Integers from 10**19 and below -9.2 * 10**18: orjson reads those from -2**63 to 2**64 - 1.
_LONG_NUMBER = re.compile(rb"[0-9]{20}|-9[2-9][0-9]{17}")


def dumps(value: Any) -> bytes:
    """``value`` as JSON in UTF-8. Raises :class:`ValueError` or :class:`TypeError` for what JSON
    has no form for; NaN and infinities must have been encoded before."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()


def loads(data: bytes) -> Any:
    """The value of JSON ``data``; :class:`ValueError` where it is none."""
    if _LONG_NUMBER.search(data) is None:
        return orjson.loads(data)
    orjson.loads(data)  # the same texts are JSON by either way: its depth is bounded, too
    return json.loads(data, parse_constant=_refuse)


def _refuse(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")
