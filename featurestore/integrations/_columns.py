"""Which columns of a training set an item has, and what stands for their nulls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import DefinitionError, NotFoundError, SchemaMismatchError
from featurestore.integrations._blocks import Piece

NonNumeric = Literal["drop", "list"]
Number = int | float | bool
FillNull = Mapping[str, Number] | Number | None

_SHOWN = 5
_NAN = pa.scalar(float("nan"), pa.float64())

# Tensors of these hold the same numbers, and all of torch's operations know them.
_STAND_IN = {pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.int64()}


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type becomes a tensor."""
    types = pa.types
    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
    )


def mask_of(name: str) -> str:
    """The name of the column that says where column ``name`` is null."""
    return f"{name}__is_null"


@dataclass(frozen=True)
class ItemColumns:
    """What is made of a training set's columns: the features, then the ``labels``.

    Nulls of floats become ``fill_null`` or NaN; those of whole numbers and bools ``fill_null``,
    with ``null_masks`` 0 and False, or else an error. Columns of other types are left out or, with
    ``non_numeric="list"``, kept as they are.
    """

    labels: tuple[str, ...] = ()
    fill_null: FillNull = None
    null_masks: bool = False
    non_numeric: NonNumeric = "drop"

    def check_labels(self, entities: pa.Schema) -> None:
        """:class:`SchemaMismatchError` for a label that is no column of the entity table."""
        for label in self.labels:
            if label not in entities.names:
                hint = NotFoundError.of("column", label, entities.names)
                raise SchemaMismatchError(
                    f"The entity table has no column {label!r} to give as a label. {hint}"
                )

    def choose(self, joined: pa.Table, entities: pa.Schema, piece: Piece) -> pa.Table:
        """The columns of an item, of the rows of ``piece``: those that :func:`is_numeric` have no
        nulls and are of types that torch knows."""
        features = [name for name in joined.column_names if name not in entities.names]
        names = [*features, *self.labels]
        numeric = [name for name in names if is_numeric(joined.schema.field(name).type)]
        self._check_fill(numeric)
        chosen: dict[str, Any] = {}
        for name in names:
            column = joined.column(name)
            if name in numeric:
                chosen[name] = self._filled(name, column, piece)
                if self.null_masks:
                    chosen[mask_of(name)] = column.is_null()
            elif self.non_numeric == "list":
                chosen[name] = column
        if not chosen:
            raise DefinitionError(
                f"None of {', '.join(names)} is a number: give them as lists by "
                f"non_numeric='list', or ask for other features."
            )
        return pa.table(chosen)

    def _check_fill(self, numeric: Iterable[str]) -> None:
        if isinstance(self.fill_null, Mapping):
            for name in self.fill_null:
                if name not in numeric:
                    raise NotFoundError.of("number", name, numeric, " to fill nulls of (fill_null)")

    def _filled(self, name: str, column: pa.ChunkedArray, piece: Piece) -> pa.ChunkedArray:
        column = _of_torch(name, column)
        fill = self._fill_of(name, column.type)
        if fill is not None:
            return column.fill_null(fill)
        if column.null_count:
            self._refuse(name, column, piece)
        return column

    def _fill_of(self, name: str, kind: pa.DataType) -> pa.Scalar | None:
        given = self.fill_null.get(name) if isinstance(self.fill_null, Mapping) else self.fill_null
        if given is not None:
            try:
                fill = pa.scalar(bool(given) if pa.types.is_boolean(kind) else given, kind)
            except (pa.ArrowException, TypeError, OverflowError):
                fill = None
            if fill is None or (pa.types.is_integer(kind) and fill.as_py() != given):
                raise DefinitionError(
                    f"fill_null={given!r} is no value for {name!r} ({kind}): give one for each "
                    f"column, such as fill_null={{{name!r}: 0}}."
                )
            return fill
        if pa.types.is_floating(kind):
            return _NAN.cast(kind)
        return pa.scalar(0, pa.int8()).cast(kind) if self.null_masks else None

    def _refuse(self, name: str, column: pa.ChunkedArray, piece: Piece) -> None:
        positions = pc.indices_nonzero(column.is_null()).to_pylist()
        shown = ", ".join(str(piece.row(position)) for position in positions[:_SHOWN])
        more = ", …" if len(positions) > _SHOWN else ""
        raise SchemaMismatchError(
            f"{name!r} ({column.type}) is null for rows {shown}{more} of the entity table, and a "
            f"tensor of that type holds no null: say what stands for it, such as "
            f"fill_null={{{name!r}: 0}}, or give null_masks=True for a mask beside each column."
        )


def _of_torch(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    try:
        if pa.types.is_decimal(kind):
            return column.cast(pa.float64())
        return column.cast(_STAND_IN[kind]) if kind in _STAND_IN else column
    except pa.ArrowInvalid as error:
        raise SchemaMismatchError(f"{name!r} ({kind}) cannot become a tensor: {error}") from error
