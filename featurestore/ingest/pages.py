"""What a column chunk decodes to, found out before it is decoded.

A decoder obeys the headers of pages, whatever the footer says, and may take all memory for a few
bytes. So each chunk's bytes pass through a :class:`PageScan` first. It reads the headers and, of
pages where they do not tell, what does: the lengths of a dictionary's strings, the prefixes that
strings share, where the rows of lists begin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from featurestore.ingest import probes, thrift
from featurestore.ingest.footer import Chunk
from featurestore.ingest.thrift import BOOL, I64

_HEADER = 256
"""Bytes that a page's header fits in, mostly; statistics can make it longer."""

_MAX_HEADER = 16 * 1024 * 1024  # pyarrow's

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # types of pages
_PLAIN, _PLAIN_DICTIONARY, _RLE, _DELTA_LENGTHS, _DELTA_STRINGS, _RLE_DICTIONARY = 0, 2, 3, 6, 7, 8
_DICTIONARY_CODED = (_PLAIN_DICTIONARY, _RLE_DICTIONARY)

_EVEN = 4 * 1024 * 1024
"""Bytes of shared prefixes up to which it doesn't matter how unevenly a page's rows share them."""

_PAGE = {
    1: I64,
    2: I64,
    3: I64,
    5: {1: I64, 2: I64, 3: I64, 4: I64},
    7: {1: I64, 2: I64},
    8: {1: I64, 2: I64, 3: I64, 4: I64, 5: I64, 6: I64, 7: BOOL},
}

_REQUIRED = {0: {1, 2, 3}, 5: {1, 2, 3, 4}, 7: {1, 2}, 8: {1, 2, 3, 4, 5, 6}}

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


@dataclass(frozen=True)
class Leaf:
    """A leaf column of the schema: bytes per value (0 where they differ), and its levels."""

    position: int
    path: str
    kind: str
    width: int
    max_def: int
    max_rep: int

    @classmethod
    def of(cls, metadata: Any, position: int) -> Leaf:
        column = metadata.schema.column(position)
        kind = column.physical_type
        width = column.length if kind == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS.get(kind, 0)
        levels = column.max_definition_level, column.max_repetition_level
        return cls(position, column.path, kind, width, *levels)

    @property
    def is_flat(self) -> bool:
        return self.max_rep == 0


class ColumnBytes:
    """The bytes of one column chunk, as far as they have come and are still needed."""

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.end = start + length
        self.arrived = start
        self.used = start
        self._pieces: list[tuple[int, memoryview]] = []

    def add(self, data: memoryview) -> None:
        self._pieces.append((self.arrived, data))
        self.arrived += len(data)

    def cut(self, at: int, length: int) -> Any:
        """Up to ``length`` bytes from ``at``: fewer where no more have come."""
        stop = min(at + length, self.arrived)
        parts = [
            piece[max(at - first, 0) : stop - first]
            for first, piece in self._pieces
            if first < stop and at < first + len(piece)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self, to: int) -> None:
        """Let go of pieces that lie before ``to``."""
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= to:
            del self._pieces[0]


class PageScan:
    """Follows the pages of one column chunk as its bytes come.

    ``least`` is what the pages so far decode to at least, in bytes; ``cost`` what it may be at
    most, by row; ``needed`` is how far bytes must have come for the next page. ``check`` is called
    with what ``least`` grows by and the plain size of the page, before the page is looked into.
    """

    def __init__(
        self,
        leaf: Leaf,
        chunk: Chunk,
        data: ColumnBytes,
        rows: int,
        check: Callable[[Leaf, int, int], None],
    ) -> None:
        self.leaf = leaf
        self.data = data
        self.rows = rows
        self.least = 0
        self.needed = chunk.offset
        self.complete = False
        self._check = check
        self._chunk = chunk
        self._at = chunk.offset
        self._values = 0
        self._counted = leaf.max_rep <= 1
        self._longest = 0  # of the dictionary's strings
        self._shortest = 0
        self._ends = [0]
        self._costs = [0.0]
        # With each value pyarrow holds its levels and its place among the strings.
        self._overhead = 2 * (leaf.max_def > 0) + 2 * (leaf.max_rep > 0) + 4 * (not leaf.width)
        self._headed: tuple[dict[int, Any], int] | None = None

    @property
    def position(self) -> int:
        return self._at

    @property
    def usable(self) -> int:
        """Rows that can be decoded from the pages that have come whole."""
        if self.complete:
            return self.rows
        if self.leaf.is_flat:
            return self._ends[-1]
        # The last row may go on in the next page.
        return max(0, self._ends[-1] - 1) if self._counted else 0

    def cost(self, row: int) -> float:
        """Bytes that the rows before ``row`` may decode to at most."""
        index = bisect_right(self._ends, row)
        if index == len(self._ends):
            return self._costs[-1]
        first, last = self._ends[index - 1], self._ends[index]
        low, high = self._costs[index - 1], self._costs[index]
        return low + (high - low) * (row - first) / (last - first)

    def advance(self) -> None:
        """Take note of all pages that have come; raises ``ValueError`` for what cannot be."""
        while not self.complete:
            if self._values >= self._chunk.values or self._at >= self.data.end:
                self._finish()
                return
            if self._headed is None:
                self._headed = self._header()
                if self._headed is None:
                    return
            header, body = self._headed
            end = body + header[3]
            if end > self.data.arrived:
                self.needed = end
                return
            self._look_into(header, body, end)
            self._headed = None
            self._at = self.needed = end

    def _header(self) -> tuple[dict[int, Any], int] | None:
        """The next page's header and where its body begins; None while it hasn't come whole."""
        length = _HEADER
        while True:
            head = bytes(self.data.cut(self._at, length))
            try:
                header, size = thrift.struct(head, 0, _PAGE)
                break
            except IndexError:
                here = self._at + len(head)
                if here == self.data.end or len(head) >= _MAX_HEADER:
                    raise ValueError("a page's header does not end") from None
                if here == self.data.arrived:
                    self.needed = here + 1
                    return None
                length *= 16
        self._grow(self._least_of(header, self._at + size), header[2])
        return header, self._at + size

    def _least_of(self, header: dict[int, Any], body: int) -> int:
        """What a page decodes to at least; raises for a header that cannot be."""
        if not _REQUIRED[0] <= header.keys():
            raise ValueError("a page's header lacks what each must have")
        whole, length = header[2], header[3]
        if whole < 0 or length < 0 or body + length > self.data.end:
            raise ValueError("a page reaches beyond its column chunk, or has a negative size")
        whole = max(whole, length) if self._chunk.codec == 0 else whole
        header[2] = whole
        part = self._part(header)
        if part is None:
            return 0
        count = int(part[1])
        if count < 0:
            raise ValueError("a page has a negative number of values")
        if header[1] == _DICTIONARY:
            if count * (self.leaf.width or 4) > whole:
                raise ValueError(
                    f"a dictionary of {whole:,} bytes is said to have {count:,} values"
                )
            return int(whole)
        # An item of a list may be no value but an empty list, which takes an offset.
        value = min(self.leaf.width, 4) if self.leaf.max_rep else self.leaf.width
        least = count // 8 if self.leaf.kind == "BOOLEAN" else count * (value or 4)
        if self._encoding(header) in _DICTIONARY_CODED:
            return least + self._shortest * (self._present(header) or 0)
        return max(least, int(whole))

    def _grow(self, size: int, page: int) -> None:
        self.least += size
        self._check(self.leaf, size, page)

    @staticmethod
    def _part(header: dict[int, Any]) -> dict[int, Any] | None:
        """The part of a header that is of its type; None for pages that are passed over."""
        number = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(header[1])
        if number is None:
            return None
        part: dict[int, Any] = header.get(number, {})
        if not _REQUIRED[number] <= part.keys():
            raise ValueError("a page's header lacks what its type must have")
        return part

    @staticmethod
    def _encoding(header: dict[int, Any]) -> int:
        return int(header[8][4] if header[1] == _DATA_V2 else header[5][2])

    def _present(self, header: dict[int, Any]) -> int | None:
        """How many values of a page are not null, where the header tells."""
        if self.leaf.max_def == 0:
            return int(self._part(header)[1])  # type: ignore[index]
        return max(0, header[8][1] - header[8][2]) if header[1] == _DATA_V2 else None

    def _look_into(self, header: dict[int, Any], body: int, end: int) -> None:
        part = self._part(header)
        if part is None:
            return
        strings = self.leaf.kind == "BYTE_ARRAY"
        if header[1] == _DICTIONARY:
            if strings:
                data = self.data.cut(body, end - body)
                plain = probes.decompressed(self._chunk.codec, data, header[2])
                self._shortest, self._longest = probes.string_lengths(plain, part[1])
            return
        count, encoding = part[1], self._encoding(header)
        self._values += count
        page = _Page(self, header, body, end)
        width = float(self.leaf.width + self._overhead)
        if encoding in (_DELTA_LENGTHS, _DELTA_STRINGS):
            shared, longest = page.shared_prefixes(encoding)
            self._grow(shared, header[2])
            even = longest if shared > _EVEN else shared / max(count, 1)
            width = max(width, self._overhead + even + header[2] / max(count, 1))
        elif strings and encoding in _DICTIONARY_CODED:
            width += self._longest
        elif strings:
            width += header[2] / max(count, 1)
        self._add(count if self.leaf.is_flat else page.rows(), count * width)

    def _add(self, rows: int, cost: float) -> None:
        if rows and self._counted:
            self._ends.append(self._ends[-1] + rows)
            self._costs.append(self._costs[-1] + cost)
        else:
            self._costs[-1] += cost

    def _finish(self) -> None:
        self.complete = True
        self.needed = self._at
        if self.leaf.is_flat and self._values != self.rows:
            raise ValueError(
                f"column {self.leaf.path!r} holds {self._values:,} values, its row group "
                f"{self.rows:,} rows"
            )
        if self._counted and self._ends[-1] != self.rows:
            raise ValueError(
                f"column {self.leaf.path!r} holds {self._ends[-1]:,} lists, its row group "
                f"{self.rows:,} rows"
            )
        if not self._counted and self.rows:  # as if all rows had the same share
            self._ends, self._costs = [0, self.rows], [0.0, self._costs[-1]]

    def uncounted(self) -> None:
        """Where rows begin cannot be told from the pages."""
        self._counted = False


class _Page:
    """One data page that must be looked into."""

    def __init__(self, scan: PageScan, header: dict[int, Any], body: int, end: int) -> None:
        self._scan = scan
        self._header = header
        self._span = body, end - body
        self._v2 = header[1] == _DATA_V2
        self._count = header[8][1] if self._v2 else header[5][1]

    def rows(self) -> int:
        """How many rows begin in the page: counted, as headers may say anything."""
        scan = self._scan
        if not scan._counted:
            return 0
        if self._v2:
            length = self._header[8][6]
            runs = bytes(scan.data.cut(self._span[0], min(length, self._span[1])))
            return probes.zeros(length.to_bytes(4, "little") + runs, self._count)
        if self._header[5][4] != _RLE:  # a form of levels that nothing writes any more
            scan.uncounted()
            return 0
        plain = memoryview(self._plain)
        length = 4 + int.from_bytes(plain[:4], "little")
        return probes.zeros(plain[:length], self._count)

    def shared_prefixes(self, encoding: int) -> tuple[int, int]:
        """Bytes that strings take over from those before them: in all, and one at most."""
        values = memoryview(self._plain)[self._levels() :]
        if not len(values):
            return 0, 0
        head, at = bytes(values[:32]), 0
        for _ in range(3):
            count, at = thrift.varint(head, at)
        if count > self._count:
            raise ValueError(f"a page of {self._count:,} values has the lengths of {count:,}")
        if encoding == _DELTA_LENGTHS:
            return 0, 0
        shared, least, longest = probes.deltas(values, count)
        if least < 0:
            raise ValueError("a string takes over a negative number of bytes")
        return shared, longest

    @cached_property
    def _plain(self) -> Any:
        """The body without compression, levels included where they are compressed with it."""
        scan, body = self._scan, self._scan.data.cut(*self._span)
        if not self._v2:
            return probes.decompressed(scan._chunk.codec, body, self._header[2])
        before = self._levels_v2()
        size = self._header[2] - before
        if before > len(body) or size < 0:
            raise ValueError("a page is smaller than its levels")
        if not self._header[8].get(7, True):
            return body[before:]
        return probes.decompressed(scan._chunk.codec, body[before:], size)

    def _levels_v2(self) -> int:
        lengths = self._header[8][5], self._header[8][6]
        if min(lengths) < 0:
            raise ValueError("a page's levels have a negative size")
        return sum(lengths)

    def _levels(self) -> int:
        """Bytes of levels at the beginning of the plain body."""
        if self._v2:
            return 0
        leaf, plain, at = self._scan.leaf, memoryview(self._plain), 0
        for highest, form in ((leaf.max_rep, 4), (leaf.max_def, 3)):
            if highest and self._header[5][form] == _RLE:
                at += 4 + int.from_bytes(plain[at : at + 4], "little")
            elif highest:
                at += -(-self._count * highest.bit_length() // 8)
        return at
