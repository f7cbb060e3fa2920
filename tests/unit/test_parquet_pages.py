"""Pages: what they will take is known before they are decoded, and damage is named."""

from __future__ import annotations

import asyncio
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import (
    BYTE_ARRAY,
    DELTA_LENGTHS,
    DELTA_STRINGS,
    DICTIONARY,
    FIXED,
    INT32,
    INT64,
    OPTIONAL,
    SMALL,
    Column,
    Page,
    dictionary,
    first_then_zero,
    levels,
    once_then_same,
    parquet_file,
    read,
    rle,
    strings,
    table_of,
    written,
)

from featurestore.errors import FeatureStoreError, SourceError
from featurestore.ingest import probes, thrift
from featurestore.ingest.parquet import Limits
from featurestore.ingest.thrift import BINARY, I32, I64, LIST, STRUCT, pack


def made(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


async def refused(path: Path, content: bytes, message: str, limits: Limits | None = None) -> None:
    await written(path, content)
    with pytest.raises(SourceError, match=message) as caught:
        await read(path, limits)
    assert str(path) in str(caught.value)
    assert "row group 0" in str(caught.value)


# --- headers that cannot be -----------------------------------------------------------------

TEN = Page(bytes(80), 10)


def of_page(page: Page, rows: int = 10, kind: int = INT64, **more: Any) -> bytes:
    return parquet_file([Column("it", kind, [page], **more)], rows)


def with_dictionary(entries: Page, page: Page, rows: int = 10, **more: Any) -> bytes:
    return parquet_file([Column("it", BYTE_ARRAY, [entries, page], **more)], rows)


PLACES = Page(b"\x01" + rle(0, 10, 1), 10, DICTIONARY)

HEADERS: dict[str, tuple[bytes, str]] = {
    "a size below zero": (of_page(Page(bytes(80), 10, size=-1)), "negative size"),
    "a plain size below zero": (of_page(Page(bytes(80), 10, plain_size=-1)), "negative size"),
    "a size beyond the chunk": (of_page(Page(bytes(80), 10, size=81)), "beyond its column chunk"),
    "values below zero": (of_page(Page(bytes(80), -1), meta={5: 10}), "negative number"),
    "more values than there is room for": (of_page(Page(bytes(80), 11), 11), "row group 0"),
    "an encoding that there is not": (of_page(Page(bytes(80), 10, 99)), "row group 0"),
    "no header at all": (of_page(Page(b"", 10, kind=0, extra=[])), "row group 0"),
    "a type that there is not": (of_page(Page(bytes(80), 10, kind=77)), "holds 0 values"),
    "a dictionary and no data": (
        parquet_file([Column("it", INT64, [dictionary(bytes(8), 1)], meta={5: 10})], 10),
        "holds 0 values",
    ),
    "two dictionaries": (
        parquet_file(
            [Column("it", INT64, [dictionary(bytes(8), 1), dictionary(bytes(8), 1), PLACES])], 10
        ),
        "more than one dictionary",
    ),
    "places in no dictionary": (of_page(PLACES, kind=BYTE_ARRAY), "ictionary"),
    "places beyond the dictionary": (
        with_dictionary(
            dictionary(strings(b"a"), 1), Page(b"\x08" + rle(200, 10, 8), 10, DICTIONARY)
        ),
        "row group 0",
    ),
    "a dictionary with too few values": (
        with_dictionary(dictionary(strings(b"a"), 2), PLACES),
        "dictionary of 5 bytes",
    ),
    "a dictionary string beyond its page": (
        with_dictionary(dictionary(b"\xff\xff\xff\x7fabcd", 1), PLACES),
        "row group 0",
    ),
    "a dictionary string of negative length": (
        with_dictionary(dictionary(b"\xff\xff\xff\xffabcd", 1), PLACES),
        "row group 0",
    ),
    "levels below zero": (
        of_page(Page(bytes(80), 10, v2=(0, 10, -1, 0)), form=OPTIONAL),
        "row group 0",
    ),
    "levels beyond the page": (
        of_page(Page(bytes(80), 10, v2=(0, 10, 2**31 - 1, 0)), form=OPTIONAL),
        "row group 0",
    ),
    "lengths with levels beyond the page": (
        of_page(
            Page(bytes(80), 10, DELTA_LENGTHS, v2=(0, 10, 500, 0)), kind=BYTE_ARRAY, form=OPTIONAL
        ),
        "smaller than its levels",
    ),
    "lengths of more than there are": (
        of_page(Page(once_then_same(3, 200), 10, DELTA_LENGTHS), kind=BYTE_ARRAY),
        "has the lengths of 200",
    ),
    "prefixes of more than there are": (
        of_page(Page(once_then_same(3, 200), 10, DELTA_STRINGS), kind=BYTE_ARRAY),
        "has the lengths of 200",
    ),
    "prefixes that end too early": (
        of_page(Page(once_then_same(3, 10)[:9], 10, DELTA_STRINGS), kind=BYTE_ARRAY),
        "row group 0",
    ),
    "prefixes of nothing": (
        of_page(
            Page(first_then_zero(70_000, 10) + once_then_same(1, 10) + b"x" * 9, 10, DELTA_STRINGS),
            kind=BYTE_ARRAY,
        ),
        "row group 0",
    ),
    "prefixes for values of another width": (
        of_page(
            Page(once_then_same(9, 10) + first_then_zero(9, 10) + b"x" * 9, 10, DELTA_STRINGS),
            kind=FIXED,
            width=4,
        ),
        "row group 0",
    ),
    "a list that begins inside a row": (
        of_page(Page(levels(1, 10) + levels(1, 10) + bytes(40), 10), kind=INT32, is_list=True),
        "row group 0",
    ),
    "more rows of a list than said": (
        of_page(
            Page(levels(0, 10) + levels(1, 10) + bytes(40), 10), rows=9, kind=INT32, is_list=True
        ),
        "holds 10 lists, its row group 9 rows",
    ),
    "fewer rows of a list than said": (
        of_page(
            Page(levels(0, 10) + levels(1, 10) + bytes(40), 10), rows=11, kind=INT32, is_list=True
        ),
        "holds 10 lists, its row group 11 rows",
    ),
    "more rows of a list than said, version 2": (
        of_page(
            Page(rle(0, 10, 1) + rle(1, 10, 1) + bytes(40), 10, v2=(0, 9, 2, 2)),
            rows=9,
            kind=INT32,
            is_list=True,
        ),
        "holds 10 lists, its row group 9 rows",
    ),
    "levels longer than their page": (
        of_page(Page(b"\xff\xff\xff\x7f" + bytes(30), 10), kind=INT32, is_list=True),
        "row group 0",
    ),
}


@pytest.mark.parametrize("limits", [Limits(), SMALL], ids=["roomy", "small"])
@pytest.mark.parametrize("header", HEADERS)
async def test_pages_that_cannot_be(tmp_path: Path, header: str, limits: Limits):
    content, message = HEADERS[header]
    await refused(tmp_path / "page.parquet", content, message, limits)


async def test_pages_of_a_type_to_come_are_passed_over(tmp_path: Path):
    unknown = Page(b"anything", 3, kind=9)
    unknown.count = 0
    column = Column("it", INT64, [unknown, TEN, Page(b"", 0, kind=1)])
    path = await written(tmp_path / "index.parquet", parquet_file([column], 10))
    assert (await table_of(path)).num_rows == 10


async def test_a_header_with_parts_to_come_is_read(tmp_path: Path):
    more = pack([(1, I64, 5), (2, LIST, (I32, [b"\x02"] * 20)), (3, BINARY, b"x" * 3000)])
    later = [(9, STRUCT, more), (12, LIST, (STRUCT, [pack([(1, I32, 1)])] * 3)), (13, 1, b"")]
    thrift._PACKERS.setdefault(1, bytes)
    column = Column("it", INT64, [Page(bytes(80), 10, extra=later)])
    path = await written(tmp_path / "later.parquet", parquet_file([column], 10))
    for limits in (Limits(), SMALL, Limits(100, 50)):
        assert (await table_of(path, limits)).num_rows == 10


# --- limits ---------------------------------------------------------------------------------


async def test_what_a_row_group_decodes_to_is_limited(tmp_path: Path):
    table = pa.table({"n": list(range(10_000)), "text": [f"t{n % 5}" for n in range(10_000)]})
    path = await written(tmp_path / "made.parquet", await asyncio.to_thread(made, table))
    size = table.nbytes
    assert (await table_of(path, Limits(decoded_bytes=2 * size))).num_rows == 10_000
    with pytest.raises(SourceError) as caught:
        await read(path, Limits(decoded_bytes=size // 2))
    said = str(caught.value)
    assert said.startswith(f"{path}: row group 0 decodes to ")
    assert f"up to {size // 2:,} are taken" in said
    assert "max_decoded_bytes=" in said


async def test_the_limit_is_of_each_row_group(tmp_path: Path):
    table = pa.table({"n": list(range(10_000))})
    content = await asyncio.to_thread(made, table, row_group_size=1000, use_dictionary=False)
    path = await written(tmp_path / "made.parquet", content)
    assert (await table_of(path, Limits(decoded_bytes=9_000))).num_rows == 10_000


async def test_limits_as_the_messages_say_are_enough_in_the_end(tmp_path: Path):
    content = await asyncio.to_thread(made, pa.table({"n": list(range(10_000))}))
    path = await written(tmp_path / "made.parquet", content)
    limit = 1_000
    for _ in range(3):
        try:
            assert (await table_of(path, Limits(decoded_bytes=limit))).num_rows == 10_000
            break
        except SourceError as error:
            more = int(str(error).partition("max_decoded_bytes=")[2].partition(")")[0])
            limit = max(more, limit + 1)
    else:
        pytest.fail(f"{limit} bytes are not enough")


async def test_nulls_take_no_part_of_a_long_string(tmp_path: Path):
    """One string of a dictionary and many nulls: that it is long says nothing of the rest."""
    texts = pa.array(["x" * 100_000] + [None] * 99_999)
    content = await asyncio.to_thread(made, pa.table({"text": texts}))
    path = await written(tmp_path / "made.parquet", content)
    assert (await table_of(path, Limits(decoded_bytes=2_000_000))).num_rows == 100_000


# --- damage ---------------------------------------------------------------------------------

KINDS: dict[str, tuple[pa.Table, dict[str, Any]]] = {
    "plain": (pa.table({"n": list(range(500))}), {"use_dictionary": False}),
    "dictionary": (pa.table({"s": [f"v{n % 9}" for n in range(500)]}), {}),
    "version 2": (
        pa.table({"s": [f"v{n % 9}" if n % 4 else None for n in range(500)]}),
        {"data_page_version": "2.0"},
    ),
    "lists": (pa.table({"l": [[n] * (n % 3) for n in range(300)]}), {}),
    "shared beginnings": (
        pa.table({"s": [f"value {n}" for n in range(300)]}),
        {"use_dictionary": False, "column_encoding": {"s": "DELTA_BYTE_ARRAY"}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_a_flipped_bit_under_a_checksum_is_found(tmp_path: Path, kind: str, compression: str):
    table, options = KINDS[kind]
    content = await asyncio.to_thread(
        made, table, write_page_checksum=True, compression=compression, **options
    )
    column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(0)
    places = bodies(content, column)
    assert len(places) == (1 if options.get("use_dictionary") is False else 2)
    for start, length in places:
        for at in {start, start + length // 2, start + length - 1}:
            flipped = bytearray(content)
            flipped[at] ^= 0x10
            for limits in (Limits(), SMALL):
                await refused(tmp_path / "flipped.parquet", bytes(flipped), "damaged", limits)


def bodies(content: bytes, column: Any) -> list[tuple[int, int]]:
    """Where the bodies of a chunk's pages lie."""
    at = min(filter(None, [column.data_page_offset, column.dictionary_page_offset]))
    end = at + column.total_compressed_size
    found = []
    while at < end:
        header, start = thrift.struct(content, at, {3: I64})
        found.append((start, header[3]))
        at = start + header[3]
    return found


FUZZED: list[dict[str, Any]] = [
    {"compression": "none", "use_dictionary": False, "data_page_size": 200},
    {"compression": "zstd", "data_page_version": "2.0"},
    {"compression": "gzip", "write_page_checksum": True, "row_group_size": 40},
    {
        "compression": "none",
        "use_dictionary": False,
        "column_encoding": {"s": "DELTA_BYTE_ARRAY", "t": "DELTA_LENGTH_BYTE_ARRAY"},
    },
]


@pytest.mark.parametrize("options", FUZZED, ids=str)
async def test_bytes_at_random(tmp_path: Path, options: dict[str, Any]):
    """Whatever is changed, it loads or gives one error; what checksums cover loads exactly."""
    some = random.Random(7)
    table = pa.table(
        {
            "n": pa.array([some.randrange(1000) if n % 9 else None for n in range(120)]),
            "s": [f"v{some.randrange(9)}" for _ in range(120)],
            "t": [f"text {n}" for n in range(120)],
            "l": [[n] * (n % 3) for n in range(120)],
            "f": pa.array([bytes([n] * 3) for n in range(120)], pa.binary(3)),
        }
    )
    content = await asyncio.to_thread(made, table, **options)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for number in range(150):
        changed = bytearray(content)
        for _ in range(some.choice([1, 1, 2, 8])):
            # Half of them in the footer, which is the smaller part.
            at = some.randrange(footer, len(content)) if number % 2 else some.randrange(footer)
            changed[at] = some.choice([changed[at] ^ 1 << some.randrange(8), 0, 0x7F, 0xFF])
        path = await written(tmp_path / "fuzzed.parquet", bytes(changed))
        try:
            await read(path, SMALL if number % 3 else Limits(decoded_bytes=50_000_000))
        except FeatureStoreError as error:
            assert isinstance(error, SourceError)  # noqa: PT017 - or it loads
            assert str(path) in str(error)  # noqa: PT017


# --- the parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [1, 2, 4, 6, 7])
def test_pages_are_decompressed_as_pyarrow_compresses_them(codec: int):
    name = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}[codec]
    plain = b"some bytes " * 500
    body = pa.Codec(name).compress(plain, asbytes=True)
    assert probes.decompressed(codec, body, len(plain)).to_pybytes() == plain
    with pytest.raises((pa.ArrowException, OSError, ValueError)):
        assert probes.decompressed(codec, body[:-9], len(plain)).to_pybytes() == plain


def test_the_two_forms_of_hadoops_lz4():
    plain = random.Random(1).randbytes(300) * 3
    raw = pa.Codec("lz4_raw")
    assert probes.decompressed(5, raw.compress(plain), len(plain)).to_pybytes() == plain
    framed = b""
    for part in (plain[:500], plain[500:]):
        block = raw.compress(part, asbytes=True)
        framed += len(part).to_bytes(4, "big") + len(block).to_bytes(4, "big") + block
    assert probes.decompressed(5, framed, len(plain)).to_pybytes() == plain


def test_an_unknown_compression_is_named():
    with pytest.raises(ValueError, match="compression 3"):
        probes.decompressed(3, b"abc", 5)
    assert probes.decompressed(0, b"abc", 3).to_pybytes() == b"abc"


def test_lengths_levels_and_differences():
    assert probes.string_lengths(strings(b"", b"four", b"x"), 3) == (0, 4)
    assert probes.string_lengths(b"", 0) == (0, 0)
    assert probes.zeros(levels(0, 70_000), 70_000) == 70_000
    assert probes.zeros(levels(1, 5), 5) == 0
    assert probes.deltas(once_then_same(7, 300), 300) == (299 * 7, 0, 7)
    assert probes.deltas(first_then_zero(7, 300), 300) == (7, 0, 7)
    with pytest.raises((pa.ArrowException, OSError, ValueError)):
        probes.zeros(levels(1, 5), 6)


@pytest.mark.parametrize("value", [0, 1, -1, 63, -64, 64, 2**31 - 1, -(2**31), 2**62, -(2**62)])
def test_numbers_come_back(value: int):
    packed = thrift.packed_integer(value)
    assert thrift.integer(packed, 0) == (value, len(packed))
    fields, end = thrift.struct(
        pack([(3, I64, value), (40, BINARY, b"x")]), 0, {3: I64, 40: BINARY}
    )
    assert fields == {3: value, 40: b"x"}
    assert end == len(pack([(3, I64, value), (40, BINARY, b"x")]))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x15", b"\x15\x80", b"\x18\x05abc", b"\x19\xf5\xff\xff\xff\x7f", b"\x1c\x15"],
    ids=repr,
)
def test_what_ends_too_early(data: bytes):
    with pytest.raises(IndexError):
        thrift.struct(data, 0, {})


@pytest.mark.parametrize(
    "data",
    [b"\x1c" * 100, b"\x19\x19" * 100, b"\x15" + b"\xff" * 20, b"\x1f\x00", b"\x1e\x00"],
    ids=repr,
)
def test_what_is_no_thrift(data: bytes):
    with pytest.raises(thrift.Malformed):
        thrift.struct(data + bytes(100), 0, {})
