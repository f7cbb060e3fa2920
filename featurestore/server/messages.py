"""A look at the headers of an Arrow stream: whether its buffers are compressed.

pyarrow tells of that only by decompressing, and a megabyte of zeros compressed is terabytes.
Headers are flatbuffers: a table begins with the distance back to its vtable, which has the
places of its fields. https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

from featurestore.errors import SchemaMismatchError

_HEADER = 2  # fields of a Message
_DATA = 1  # of a DictionaryBatch
_COMPRESSION = 3  # of a RecordBatch


def has_compressed_batches(body: bytes) -> bool:
    """Whether a message of the stream has compressed buffers.

    Raises :class:`SchemaMismatchError` for what is no stream.
    """
    try:
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
            if message.type in ("record batch", "dictionary") and _is_compressed(message):
                return True
    except (pa.ArrowException, OSError, struct.error) as error:
        raise SchemaMismatchError(f"The body is no Arrow stream: {error}") from error
    return False


def _is_compressed(message: Any) -> bool:
    buffer = memoryview(message.metadata)
    (root,) = struct.unpack_from("<I", buffer, 0)
    batch = _table(buffer, root, _HEADER)
    if batch is not None and message.type == "dictionary":
        batch = _table(buffer, batch, _DATA)
    return batch is not None and _field(buffer, batch, _COMPRESSION) is not None


def _field(buffer: memoryview, table: int, number: int) -> int | None:
    """Where a field of a table is; None where it has none."""
    (back,) = struct.unpack_from("<i", buffer, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", buffer, vtable)
    slot = 4 + 2 * number
    if slot + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + slot)
    return table + offset if offset else None


def _table(buffer: memoryview, table: int, number: int) -> int | None:
    """Where the table is that a field leads to."""
    place = _field(buffer, table, number)
    if place is None:
        return None
    (distance,) = struct.unpack_from("<I", buffer, place)
    return place + int(distance)
