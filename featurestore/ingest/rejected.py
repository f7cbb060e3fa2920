"""Rows that do not fit: their numbers and reasons, and their values for people to read."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa


@dataclass(frozen=True)
class Rejected:
    """A row that does not fit: its number within the file or call, why, and what it held.

    ``entity`` has the values of its join keys, None where one of them is not there.
    """

    row: int
    reason: str
    values: dict[str, Any]
    entity: list[Any] | None


class RejectedRows(Sequence[Rejected]):
    """Rejected rows of a batch, kept as columns: their values become Python's when asked for."""

    def __init__(
        self,
        rows: Sequence[int],
        reasons: Sequence[str],
        columns: Mapping[str, pa.Array],
        keys: Mapping[str, pa.Array],
    ) -> None:
        self._rows = rows
        self._reasons = reasons
        self._columns = columns
        self._keys = keys

    @property
    def nbytes(self) -> int:
        """How much memory the rows take."""
        return sum(column.nbytes for column in self._columns.values())

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Rejected: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rejected]: ...

    def __getitem__(self, index: int | slice) -> Rejected | list[Rejected]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        entity = [column[index].as_py() for column in self._keys.values()]
        return Rejected(
            self._rows[index],
            self._reasons[index],
            {name: _readable(column, index) for name, column in self._columns.items()},
            None if any(value is None for value in entity) else entity,
        )


def _readable(array: pa.Array, index: int) -> Any:
    try:
        return as_json(array[index].as_py())
    except (ValueError, OverflowError):  # text that is none, a time that Python has no value for
        if pa.types.is_string(array.type):
            return as_json(array.slice(index, 1).cast(pa.binary())[0].as_py())
        return f"a {array.type} that Python has no value for"


def as_json(value: Any) -> Any:
    """Any value as one that JSON has, for people to read."""
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, bool | int | str | None):
        if isinstance(value, str):
            return value.encode(errors="replace").decode().replace("\0", "\\0")
        return value
    if isinstance(value, float):
        return value if abs(value) != float("inf") else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.date | decimal.Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(as_json(k)): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return repr(value)
