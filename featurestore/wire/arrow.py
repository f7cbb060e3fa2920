"""Arrow tables as streams of bytes, and back."""

from __future__ import annotations

import pyarrow as pa

from featurestore.errors import SchemaMismatchError

ARROW_STREAM = "application/vnd.apache.arrow.stream"
"""The media type of a table on the wire."""


def write_stream(table: pa.Table) -> bytes:
    """``table`` as an Arrow IPC stream. For a thread, where the table may be large."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def read_stream(data: bytes | memoryview) -> pa.Table:
    """The table of an Arrow IPC stream. For a thread.

    What it holds is checked before any of it is used: raises :class:`SchemaMismatchError` for
    what is no stream, and for one whose arrays point outside their buffers.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SchemaMismatchError(f"The body is no Arrow stream: {error}") from error
    return table
