"""Arrow on disk for what may not fit into memory: written once, then mapped.

Files have no name any more while they are mapped, so they go with the last reader, however the
program ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import pyarrow as pa

from featurestore.errors import StoreUnavailableError

IN_MEMORY_BYTES = 1 << 30
"""Results larger than this go to the disk as they come, unless a memory limit says otherwise."""


@contextmanager
def spilling() -> Iterator[None]:
    """Around what writes temporary files: a full disk becomes a clear error."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"Temporary files in {place()} cannot be written: {error.strerror or error}. Make room "
            f"there, name another folder by TMPDIR, or allow more memory by memory_limit."
        ) from error


def place() -> str:
    """The folder of temporary files, for people."""
    try:
        return tempfile.gettempdir()
    except OSError:  # there is none that could be written
        return os.environ.get("TMPDIR") or "the system's folder for them"


class Spool:
    """Record batches on their way to a temporary file. Its owner calls :meth:`table` or
    :meth:`close`; both are a thread's work, as :meth:`write` is."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._removed = False
        with spilling():
            handle, self._path = tempfile.mkstemp(prefix="featurestore-", suffix=".arrow")
            self._file: IO[bytes] = os.fdopen(handle, "wb")
            try:
                self._writer = pa.ipc.new_file(self._file, schema)
            except BaseException:
                self.close()
                raise

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        with spilling():
            self._writer.write(batch)

    def table(self) -> pa.Table:
        """All that was written, mapped into memory: it takes up what is looked at."""
        with spilling():
            self._writer.close()
            self._file.close()
            mapped = pa.memory_map(self._path)
        self._remove()
        return pa.ipc.open_file(mapped).read_all()

    def close(self) -> None:
        """Throw away what was written; after :meth:`table`, nothing."""
        # Not through the writer, which would write an end that a full disk may refuse.
        with suppress(OSError):
            self._file.close()
        self._remove()

    def _remove(self) -> None:
        if self._removed:
            return
        self._removed = True
        with suppress(OSError):  # where open files cannot be removed they stay until a clean-up
            os.unlink(self._path)


class Collected:
    """Batches gathered in memory, and on disk from ``limit`` bytes on. For a thread."""

    def __init__(self, schema: pa.Schema, limit: int) -> None:
        self._schema = schema
        self._limit = limit
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._spool: Spool | None = None

    @property
    def on_disk(self) -> bool:
        return self._spool is not None

    def add(self, batch: pa.RecordBatch) -> None:
        if self._spool is not None:
            self._spool.write(batch)
            return
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > self._limit:
            self._spool = Spool(self._schema)
            for one in self._batches:
                self._spool.write(one)
            self._batches = []

    def table(self) -> pa.Table:
        """What was gathered; it may be mapped from a file."""
        if self._spool is None:
            return pa.Table.from_batches(self._batches, self._schema)
        return self._spool.table()

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


def collected(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    limit: int = IN_MEMORY_BYTES,
    stopped: threading.Event | None = None,
) -> pa.Table:
    """All of ``batches`` as one table, on disk where it is larger than ``limit`` bytes; no more of
    them when ``stopped`` is set."""
    gathered = Collected(schema, limit)
    try:
        for batch in batches:
            if stopped is not None and stopped.is_set():
                break
            gathered.add(batch)
        return gathered.table()
    finally:
        gathered.close()
