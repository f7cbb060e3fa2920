"""Parquet by row groups: the bytes of the next are read while the present one is decoded.

Only the column chunks that the view names are read. Row groups of which two fit the memory given
are read whole; of larger ones each column comes in pieces, read ahead of the decoder. Decoding
runs in a thread, from bytes that are there already.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from featurestore.errors import SourceError
from featurestore.ingest.decode import BATCH_ROWS, Chunks, Decoder, Limits, RowGroup
from featurestore.ingest.footer import Footer, read_footer
from featurestore.ingest.probes import KNOWN_CODECS
from featurestore.ingest.ranges import RangeReader

__all__ = [
    "BATCH_ROWS",
    "Chunks",
    "ContentDigest",
    "Footer",
    "Limits",
    "content_digest",
    "plan_chunks",
    "read_batches",
    "read_footer",
]

T = TypeVar("T")

_WINDOW = 16 * 1024 * 1024
"""Bytes that are read at a time where it is not by row groups: four requests of HTTP's."""

_PIECE = 16 * 1024
"""Bytes per column chunk and read at least."""


def _leaves(footer: Footer, columns: Iterable[str]) -> list[int]:
    """The positions of Parquet's leaf columns that make up the top-level ``columns``.

    Counted rather than looked up by path: a path joins names with dots, which names may hold.
    """
    wanted = set(columns)
    positions: list[int] = []
    next_leaf = 0
    for name, count in footer.columns:
        if name in wanted:
            positions += range(next_leaf, next_leaf + count)
        next_leaf += count
    return positions


def plan_chunks(footer: Footer, columns: Sequence[str], name: str, size: int) -> list[Chunks]:
    """Where the needed column chunks of each row group lie."""
    positions = _leaves(footer, columns)
    plan = []
    for index, group in enumerate(footer.groups):
        chunks = tuple(group.chunks[position] for position in positions)
        if any(chunk.offset + chunk.length > size for chunk in chunks):
            raise SourceError(f"{name} is damaged: row group {index} lies outside of the file.")
        if unknown := {chunk.codec for chunk in chunks} - KNOWN_CODECS:
            raise SourceError(
                f"{name}: row group {index} is compressed in a way that is not known here "
                f"(Parquet's number {min(unknown)})."
            )
        plan.append(Chunks(index, group.rows, chunks))
    return plan


# --- content --------------------------------------------------------------------------------


class ContentDigest:
    """Names the bytes of the needed columns: the same ones are the same content.

    However they were read: each column chunk has a digest of its own, and theirs in the order of
    row groups and columns make up this one.
    """

    def __init__(self) -> None:
        self._hash = _blake()

    def add(self, digests: bytes) -> None:
        """The digests of a row group's column chunks, one after the other."""
        self._hash.update(digests)

    def hexdigest(self) -> str:
        return str(self._hash.hexdigest())


def _blake() -> Any:
    return hashlib.blake2b(digest_size=20)


async def content_digest(reader: RangeReader, plan: Sequence[Chunks]) -> str:
    """The digest of all the needed bytes, without decoding them.

    Some 16 MB are read while those before are hashed.
    """
    digest = ContentDigest()
    windows = ((chunks, window) for chunks in plan for window in _windows(chunks))
    ahead, worker = _Ahead(reader), _Worker()
    hashes: list[Any] = []
    try:
        coming = next(windows, None)
        if coming is not None:
            ahead.start(coming[1])
        while coming is not None:
            (chunks, window), data = coming, await ahead.take()
            coming = next(windows, None)
            if coming is not None:
                ahead.start(coming[1])
            hashes = hashes or [_blake() for _ in chunks.columns]
            await worker.run(_hash_window, chunks, window, data, hashes)
            if coming is None or coming[0] is not chunks:
                digest.add(b"".join(one.digest() for one in hashes))
                hashes = []
    finally:
        await ahead.close()
        worker.close()
    return digest.hexdigest()


def _windows(chunks: Chunks) -> Iterator[list[tuple[int, int]]]:
    """A row group's ranges, cut and put together to reads of ``_WINDOW`` bytes."""
    window: list[tuple[int, int]] = []
    room = _WINDOW
    for start, length in chunks.ranges:
        while length:
            part = min(length, room)
            window.append((start, part))
            start, length, room = start + part, length - part, room - part
            if not room:
                yield window
                window, room = [], _WINDOW
    if window:
        yield window


def _hash_window(
    chunks: Chunks, window: list[tuple[int, int]], data: dict[int, bytes], hashes: list[Any]
) -> None:
    for one, hashed in zip(chunks.columns, hashes, strict=True):
        for start, length in window:
            first, last = max(one.offset, start), min(one.offset + one.length, start + length)
            if first < last:
                hashed.update(memoryview(data[start])[first - start : last - start])


# --- reading --------------------------------------------------------------------------------


async def read_batches(
    reader: RangeReader,
    footer: Footer,
    plan: Sequence[Chunks],
    columns: Sequence[str],
    digest: ContentDigest | None,
    limits: Limits,
    *,
    skip_rows: int = 0,
) -> AsyncGenerator[tuple[pa.RecordBatch, int], None]:
    """The needed columns in batches of at most ``BATCH_ROWS`` rows and ``limits.batch_bytes``,
    each with the compressed bytes that it brought progress by.

    ``digest`` takes in what is read. With ``skip_rows`` it begins at that row; what was skipped
    counts as progress of the first batch. Raises :class:`SourceError` for what cannot be read,
    among that a row group that decodes to more than ``limits.decoded_bytes``. When it ends, by
    ``aclose`` or cancellation too, no thread and no task of it is left.
    """
    ahead, worker = _Ahead(reader), _Worker()
    try:
        decoder = await worker.run(_opened, reader, footer, plan, columns, limits)
        if not decoder.positions:
            return
        todo, owed = _from_row(plan, skip_rows)
        for index, (chunks, skip) in enumerate(todo):
            whole, hashed = _is_whole(chunks, limits), digest is not None
            group = await worker.run(
                partial(RowGroup, decoder, chunks, whole=whole, skip=skip, hashed=hashed)
            )
            source = _Source(ahead, worker, group, limits, whole=whole)
            after = todo[index + 1][0] if index + 1 < len(todo) else None
            await source.begin(after if after and _is_whole(after, limits) else None)
            told = 0
            while not group.done:
                batch = await worker.run(group.next, stop=group)
                if batch is None:
                    await source.more()
                    continue
                reached = chunks.bytes * group.row // max(1, group.rows)
                yield batch, owed + reached - told
                owed, told = 0, reached
            owed += chunks.bytes - told
            await source.rest(hashed=hashed)
            if digest is not None and chunks.bytes:
                digest.add(group.digests())
    finally:
        await ahead.close()
        worker.close()


def _from_row(plan: Sequence[Chunks], row: int) -> tuple[list[tuple[Chunks, int]], int]:
    """The row groups from ``row`` on, each with how many of its rows lie before that; and the
    bytes of those passed over."""
    todo: list[tuple[Chunks, int]] = []
    first = passed = 0
    for chunks in plan:
        if first + chunks.rows > row or (chunks.bytes and not chunks.rows):
            todo.append((chunks, max(0, row - first)))
        else:
            passed += chunks.bytes
        first += chunks.rows
    return todo, passed


def _opened(
    reader: RangeReader,
    footer: Footer,
    plan: Sequence[Chunks],
    columns: Sequence[str],
    limits: Limits,
) -> Decoder:
    """A decoder for the file; refuses at once what says itself that it is too large."""
    decoder = Decoder(reader.name, reader.size, footer, _leaves(footer, columns), limits)
    width = sum(min(leaf.width, 4) if leaf.max_rep else leaf.width for leaf in decoder.leaves)
    for chunks in plan:
        least = max(sum(one.decoded for one in chunks.columns), chunks.rows * width)
        if least > limits.decoded_bytes:
            raise decoder.too_large(chunks.row_group, least)
    return decoder


def _is_whole(chunks: Chunks, limits: Limits) -> bool:
    """Whether a row group is read whole: the next one's bytes must have room beside it."""
    return 2 * chunks.bytes <= limits.compressed


class _Ahead:
    """One read that is under way, or none. Its owner closes it."""

    def __init__(self, reader: RangeReader) -> None:
        self.reader = reader
        self._task: asyncio.Task[dict[int, bytes]] | None = None
        self.ranges: list[tuple[int, int]] = []

    @property
    def under_way(self) -> bool:
        return self._task is not None

    def start(self, ranges: Sequence[tuple[int, int]]) -> None:
        assert self._task is None
        self.ranges = list(ranges)
        self._task = asyncio.create_task(self._read(self.ranges))

    async def _read(self, ranges: list[tuple[int, int]]) -> dict[int, bytes]:
        data = await self.reader.read_ranges(ranges)
        if any(len(data[start]) != length for start, length in ranges):
            raise SourceError(f"{self.reader.name} is damaged: its column chunks overlap.")
        return data

    async def take(self) -> dict[int, bytes]:
        """What was read, once it has come."""
        if self._task is None:
            raise SourceError(f"{self.reader.name} is damaged: its column chunks end too early.")
        data = await self._task
        self._task = None
        return data

    async def close(self) -> None:
        """Cancel the read, and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


class _Source:
    """Feeds one row group: all of its bytes at once, or pieces of each column as they are used."""

    def __init__(
        self,
        ahead: _Ahead,
        worker: _Worker,
        group: RowGroup,
        limits: Limits,
        *,
        whole: bool,
    ) -> None:
        self._ahead = ahead
        self._worker = worker
        self._chunks = chunks = group.chunks
        self._group = group
        self._whole = whole
        self._coming: dict[int, int] = {}
        self._asked = [one.offset for one in chunks.columns]
        # A piece is used, one waits, one is read. Columns get them in proportion to their bytes,
        # so that all come to the same row.
        share = min(_WINDOW, limits.compressed // 3) / max(1, chunks.bytes)
        self._pieces = [max(_PIECE, int(one.length * share)) for one in chunks.columns]

    async def begin(self, after: Chunks | None) -> None:
        """Bring the first bytes, and have ``after`` read next, where that is to be read whole."""
        if not self._whole:
            nothing = [(column, memoryview(b"")) for column in range(len(self._asked))]
            await self._worker.run(self._group.feed, nothing, stop=self._group)
            return
        if not self._ahead.under_way:
            self._ahead.start(self._chunks.ranges)
        data = await self._ahead.take()
        if after is not None:
            self._ahead.start(after.ranges)
        await self._worker.run(self._feed_all, data, stop=self._group)

    def _feed_all(self, data: dict[int, bytes]) -> None:
        starts = sorted(data)
        views = [memoryview(data[start]) for start in starts]
        pieces = []
        for column, one in enumerate(self._chunks.columns):
            index = bisect_right(starts, one.offset) - 1
            first = one.offset - starts[index]
            pieces.append((column, views[index][first : first + one.length]))
        self._group.feed(pieces)

    async def more(self) -> None:
        """Bring the next pieces, and have those after them read meanwhile."""
        if not self._ahead.under_way:
            self._start(await self._worker.run(self._ranges, self._wanted))
        data = await self._ahead.take()
        await self._worker.run(self._feed, data, stop=self._group)
        self._start(await self._worker.run(self._ranges, self._wanted))

    async def rest(self, *, hashed: bool) -> None:
        """Bring what the decoder had no need of: to be hashed, and to see that there is no more
        in it than the footer says."""

        def wanted(column: int, piece: int) -> int:
            return 0 if self._group.scans[column].complete and not hashed else piece

        while not self._whole:
            if not self._ahead.under_way:
                self._start(await self._worker.run(self._ranges, wanted))
            if not self._ahead.under_way:
                break
            await self._worker.run(self._feed, await self._ahead.take(), stop=self._group)

    def _start(self, ranges: list[tuple[int, int]]) -> None:
        if ranges:
            self._ahead.start(ranges)

    def _ranges(self, how_many: Callable[[int, int], int]) -> list[tuple[int, int]]:
        """The next piece of each column that wants one."""
        self._coming = {}
        ranges = []
        for column, piece in enumerate(self._pieces):
            one, start = self._chunks.columns[column], self._asked[column]
            length = min(how_many(column, piece), one.offset + one.length - start)
            if length:
                self._coming[start] = column
                self._asked[column] += length
                ranges.append((start, length))
        return ranges

    def _feed(self, data: dict[int, bytes]) -> None:
        self._group.feed((self._coming[start], memoryview(data[start])) for start in data)

    def _wanted(self, column: int, piece: int) -> int:
        """How many bytes of a column to read next."""
        data, scan = self._group.columns[column], self._group.scans[column]
        if scan.usable <= self._group.row:  # it is what the others wait for
            return max(piece, scan.needed - data.arrived)
        return piece if data.arrived - data.used < piece * 3 // 2 else 0


class _Worker:
    """One thread for all that is done to one file, so that the memory that allocators keep for
    each thread is kept once. Its owner closes it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="featurestore-parquet")

    async def run(self, call: Callable[..., T], *args: Any, stop: RowGroup | None = None) -> T:
        """``call`` in the thread. A cancellation is passed on when it has ended, which ``stop``
        brings near: no thread goes on with what nobody waits for."""
        work = asyncio.get_running_loop().run_in_executor(self._pool, call, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if stop is not None:
                stop.stopped = True
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            if not work.cancelled():
                work.exception()
            raise

    def close(self) -> None:
        self._pool.shutdown(wait=False)  # it has nothing to do, and ends at once
