"""Arrow bodies of requests: what they would take in memory is known before they are used."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SchemaMismatchError
from featurestore.server.answers import Refused
from featurestore.server.messages import has_compressed_batches
from featurestore.wire import read_stream

_SHARED = (
    *(pa.types.is_string, pa.types.is_large_string),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_primitive),
)
"""What a dictionary may hold."""

_REFUSED = (
    *(pa.types.is_union, pa.types.is_run_end_encoded),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)


def read_table(body: bytes, max_bytes: int, max_values: int) -> pa.Table:
    """The table of an Arrow stream. For a thread.

    Raises :class:`SchemaMismatchError` for what is no stream or of a kind that is not taken, and
    :class:`Refused` (413) for more than so many values, or bytes once it is decoded: a few
    kilobytes of a stream can stand for terabytes of text.
    """
    if has_compressed_batches(body):
        raise SchemaMismatchError(
            "The body is an Arrow stream with compressed buffers: send it uncompressed."
        )
    table = read_stream(body)
    for field in table.schema:
        _check_type(field.name, field.type)
    if table.num_rows * max(table.num_columns, 1) > max_values:
        raise Refused(
            413,
            f"{table.num_rows:,} rows of {table.num_columns} columns are more than the "
            f"{max_values:,} values that are taken at a time: send them in parts.",
        )
    if sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks) > max_bytes:
        raise Refused(
            413, f"Decoded, the table is larger than {max_bytes:,} bytes: send it in parts."
        )
    return table


def _check_type(name: str, kind: pa.DataType) -> None:
    coded = pa.types.is_dictionary(kind) and not any(one(kind.value_type) for one in _SHARED)
    if coded or any(is_one(kind) for is_one in _REFUSED):
        raise SchemaMismatchError(f"Column {name!r} is {kind}, which the server does not take.")
    for number in range(kind.num_fields):
        _check_type(name, kind.field(number).type)


def _text_bytes(array: pa.Array) -> int:
    """How many bytes of text a column comes to where several rows may share them."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _text_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        if pa.types.is_primitive(kind.value_type):
            return 0
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.take(lengths, array.indices)).as_py() or 0)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        views = array.buffers()[1]
        if views is None or not len(array):
            return 0
        # 16 bytes each, of which the first four are the length.
        numbers = memoryview(views).cast("b").cast("i")
        return sum(numbers[4 * array.offset : 4 * (array.offset + len(array)) : 4])
    if pa.types.is_map(kind):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    if pa.types.is_struct(kind):
        return sum(map(_text_bytes, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _text_bytes(array.flatten())
    return 0
