"""The text of Hive's folders (``date=2024-01-01/``) as values of a view's types.

Spark, pyarrow, Polars and DuckDB write them; each type reads what they write of it, and no more:
what could mean two things is an error.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa

from featurestore.errors import SchemaMismatchError
from featurestore.ingest.layout import Layout
from featurestore.ingest.sources import SourceFile
from featurestore.types import (
    ArrayType,
    DecimalType,
    FeatureType,
    TypeMismatch,
    ValueMismatch,
    dump_json,
    load_json,
)

_SHOWN = 120
"""Characters of a folder's text in a message."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?")
_NO_NUMBER = re.compile(r"nan|[+-]?inf(inity)?", re.IGNORECASE)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?"
)


def partition_values(
    file: SourceFile,
    layout: Layout,
    mapping: Mapping[str, str],
    where: str,
    present: Collection[str] = (),
) -> dict[str, pa.Scalar]:
    """What the file's folders say of the view's columns, each a scalar of its Arrow type.

    ``mapping`` (folder's column → view column) applies as it does to columns of a file. Columns
    in ``present``, which the file itself has, are left out: the file's own values win. Raises
    :class:`SchemaMismatchError` for text that is no value of the column's type, and for a column
    that has two values.
    """
    renamed = {target: source for source, target in mapping.items()}
    found = {}
    for name, kind in layout.incoming.items():
        if name in present:
            continue
        texts = _texts(file, renamed.get(name)) if name in renamed else []
        if not texts and name not in mapping:
            texts = _texts(file, name)
        if not texts:
            continue
        place = f"view {layout.view.name!r}, column {name!r}: {where}"
        if len(texts) > 1:
            said = " and ".join(_quoted(text) for text in texts[:2])
            raise SchemaMismatchError(f"{place} lies in folders that say both {said}.")
        found[name] = _scalar(texts[0], kind, place)
    return found


def _texts(file: SourceFile, column: str | None) -> list[str | None]:
    """The different texts that the folders give a column."""
    return list(dict.fromkeys(text for named, text in file.partitions if named == column))


def _quoted(text: str | None) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _scalar(text: str | None, kind: FeatureType, place: str) -> pa.Scalar:
    if text is None:
        return pa.scalar(None, kind.arrow)
    try:
        return pa.scalar(_value(text, kind), kind.arrow)
    except TypeMismatch:
        raise SchemaMismatchError(f"{place}: a folder's name cannot become {kind}.") from None
    except ValueError as error:
        why = f" ({error})" if isinstance(error, ValueMismatch) and str(error) else ""
        raise SchemaMismatchError(
            f"{place}: its folder says {_quoted(text)}, which cannot become {kind}{why}."
        ) from None


def _value(text: str, kind: FeatureType) -> Any:
    """``text`` as ``kind`` keeps it; :class:`ValueError` where it is none."""
    if isinstance(kind, ArrayType):
        raise TypeMismatch
    if isinstance(kind, DecimalType):
        return kind.python(decimal.Decimal(_matching(_NUMBER, text)))
    return kind.python(_READ[kind.name](text)) if kind.name != "json" else _json(text)


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError
    return text


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[_matching(re.compile("(?i)true|false"), text).lower()]


def _float(text: str) -> float | int:
    if _INTEGER.fullmatch(text):
        return int(text)  # beyond 2**53 only some have a float
    if _NO_NUMBER.fullmatch(text):
        return float(text)
    number = float(_matching(_NUMBER, text))
    if number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _json(text: str) -> str:
    return dump_json(load_json(text))


_READ: dict[str, Callable[[str], Any]] = {
    "bool": _bool,
    "int32": lambda text: int(_matching(_INTEGER, text)),
    "int64": lambda text: int(_matching(_INTEGER, text)),
    "float32": _float,
    "float64": _float,
    "string": str,
    "bytes": lambda text: text.encode(errors="surrogateescape"),
    "timestamp": lambda text: dt.datetime.fromisoformat(_matching(_TIME, text)),
    "date": lambda text: dt.date.fromisoformat(_matching(_DATE, text)),
}
