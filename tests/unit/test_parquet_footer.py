"""Footers: none is trusted, and each that is wrong gives one error with the file's name."""

from __future__ import annotations

import asyncio
import base64
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from parquet_files import (
    BYTE_ARRAY,
    INT32,
    INT64,
    Column,
    Page,
    dictionary,
    ending,
    parquet_file,
    read,
    strings,
    table_of,
    written,
)

from featurestore.errors import SourceError
from featurestore.ingest import footer as footers
from featurestore.ingest.footer import read_footer
from featurestore.ingest.ranges import open_file
from featurestore.ingest.thrift import BINARY, I32, LIST, STRUCT, pack


def made(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def ten(**more: Any) -> Column:
    return Column("it", INT64, [Page(bytes(80), 10)], **more)


async def refused(path: Path, content: bytes, message: str) -> None:
    await written(path, content)
    with pytest.raises(SourceError, match=message) as caught:
        await read(path)
    assert str(path) in str(caught.value)


async def test_cut_at_any_byte(tmp_path: Path):
    content = await asyncio.to_thread(made, pa.table({"a": [1, 2], "b": ["x", "y"]}))
    for length in range(len(content)):
        await refused(tmp_path / "cut.parquet", content[:length], "cut.parquet")


async def test_with_bytes_before_and_after(tmp_path: Path):
    content = await asyncio.to_thread(made, pa.table({"a": [1, 2], "b": ["x", "y"]}))
    for cut in range(4, len(content), 7):
        await refused(tmp_path / "gap.parquet", content[:4] + content[cut + 4 :], "damaged|is no ")
    await refused(tmp_path / "more.parquet", content + b"\n", "is cut off")


LONG = [Page(bytes(800), 100)]

LIES: dict[str, tuple[bytes, str]] = {
    "rows of the file": (parquet_file([ten()], 10, file_rows=11), "says 11 rows"),
    "rows of the file beyond all": (parquet_file([ten()], 10, file_rows=10**12), "says 1,000,"),
    "rows below zero": (parquet_file([ten()], -10), "negative number of rows"),
    "fewer values": (parquet_file([ten(meta={5: 4}), ten(meta={5: 0})], 10), "holds 0 values"),
    "more values": (parquet_file([ten(meta={5: 40})], 40), "holds 10 values, its row group 40"),
    "values below zero": (parquet_file([ten(meta={5: -1})], 10), "negative size"),
    "an offset beyond the file": (parquet_file([ten(meta={9: 10**9})], 10), "outside of the file"),
    "an offset below zero": (parquet_file([ten(meta={9: -5})], 10), "outside of the file"),
    "an offset of the greatest": (parquet_file([ten(meta={9: 2**63 - 1})], 10), "outside of the"),
    "a length beyond the file": (parquet_file([ten(meta={7: 10**9})], 10), "outside of the file"),
    "a length below zero": (parquet_file([ten(meta={7: -1})], 10), "outside of the file"),
    "a length cut short": (parquet_file([ten(meta={7: 50})], 10), "beyond its column chunk"),
    "no length": (parquet_file([ten(meta={7: 0})], 10), "holds 0 values"),
    "an offset inside a page": (parquet_file([ten(meta={9: 30})], 10), "damaged"),
    "an unknown compression": (parquet_file([ten(meta={4: 77})], 10), "row group 0"),
    "another compression": (parquet_file([ten(meta={4: 2})], 10), "row group 0"),
    "another type": (parquet_file([ten(meta={1: 6})], 10), ""),
    "two columns in one place": (
        parquet_file([Column("a", INT64, LONG), Column("b", INT64, LONG, meta={9: 4})], 100),
        "overlap",
    ),
    "columns of different lengths": (
        parquet_file([ten(), Column("b", INT64, [Page(bytes(72), 9)])], 10),
        "'b' holds 9 values",
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_footer_that_lies(tmp_path: Path, lie: str):
    content, message = LIES[lie]
    if lie == "another type":  # the schema decides
        found = await table_of(await written(tmp_path / "lie.parquet", content))
        assert found.column("it").to_pylist() == [0] * 10
        return
    await refused(tmp_path / "lie.parquet", content, message)


async def test_no_rows_said_of_the_file_is_what_some_writers_say(tmp_path: Path):
    content = parquet_file([ten()], 10, file_rows=0)
    assert (await table_of(await written(tmp_path / "zero.parquet", content))).num_rows == 10


def of_schema(*elements: bytes) -> bytes:
    return b"PAR1" + ending(list(elements), [], 0)


def group(name: bytes, children: int) -> bytes:
    return pack([(3, I32, 0), (4, BINARY, name), (5, I32, children)])


LEAF = pack([(1, I32, INT32), (3, I32, 0), (4, BINARY, b"leaf")])

SCHEMAS: dict[str, tuple[bytes, str]] = {
    "none": (of_schema(), "schema"),
    "too few children": (of_schema(group(b"root", 2), LEAF), "no tree"),
    "too many children": (of_schema(group(b"root", 1), LEAF, LEAF), "no tree"),
    "children below zero": (of_schema(group(b"root", -1), LEAF), "no tree"),
    "a billion children": (of_schema(group(b"root", 10**9), LEAF), "no tree"),
    "groups in groups in groups": (
        of_schema(*[group(b"g", 1)] * 20_000, LEAF),
        "nests too deep",
    ),
    "a name that is no text": (
        of_schema(group(b"root", 1), pack([(1, I32, 1), (3, I32, 0), (4, BINARY, b"\xff\xfe")])),
        "cannot be read",
    ),
    "a type that there is not": (
        of_schema(group(b"root", 1), pack([(1, I32, 99), (3, I32, 0), (4, BINARY, b"it")])),
        "cannot be read",
    ),
    "a fixed width below zero": (
        of_schema(
            group(b"root", 1),
            pack([(1, I32, 7), (2, I32, -1), (3, I32, 0), (4, BINARY, b"it")]),
        ),
        "cannot be read",
    ),
    "a list of ten million": (
        b"PAR1" + b"\x15\x04\x19\xfc" + b"\x80\xad\xe2\x04" + b"\x09\x00\x00\x00" + b"PAR1",
        "longer than the file",
    ),
    "not thrift": (b"PAR1" + b"\xff" * 40 + (40).to_bytes(4, "little") + b"PAR1", "cannot be"),
    "nothing": (b"PAR1" + bytes(4) + b"PAR1", "cannot be read"),
    "structures without end": (
        b"PAR1" + b"\x1c" * 5000 + (5000).to_bytes(4, "little") + b"PAR1",
        "nest too deep|another type",
    ),
}


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_schema_that_is_none(tmp_path: Path, schema: str):
    content, message = SCHEMAS[schema]
    await refused(tmp_path / "schema.parquet", content, message)


async def test_a_footer_too_large_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = await asyncio.to_thread(made, pa.table({"a": [1]}))
    monkeypatch.setattr(footers, "MAX_FOOTER", 100)
    await refused(tmp_path / "large.parquet", content, "its footer has .* bytes; up to 100")


async def test_a_footer_longer_than_the_first_guess(tmp_path: Path):
    table = pa.table({f"column_{n}": [n] for n in range(1500)})
    content = await asyncio.to_thread(made, table)
    path = await written(tmp_path / "wide.parquet", content)
    async with open_file(str(path)) as reader:
        assert int.from_bytes(content[-8:-4], "little") > 64 * 1024
        assert (await read_footer(reader)).schema.names == table.column_names
    assert (await table_of(path, columns=["column_7"])).to_pylist() == [{"column_7": 7}]


async def test_statistics_that_are_wrong_harm_nobody(tmp_path: Path):
    """pyarrow ends the process where sizes among them do not fit the schema."""
    table = pa.table({"a": pa.array([[1], [2, 3], None])})
    content = await asyncio.to_thread(made, table, compression="none", store_schema=False)
    column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(0)
    end = column.data_page_offset + column.total_compressed_size
    for at in range(end, len(content) - 8):
        flipped = bytearray(content)
        flipped[at] ^= 0x01
        path = await written(tmp_path / "flipped.parquet", bytes(flipped))
        with suppress(SourceError):
            await table_of(path)


# --- encryption -----------------------------------------------------------------------------


class Kms(pe.KmsClient):
    """Keys in memory, wrapped by spelling them out."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def encrypted(**options: Any) -> bytes:
    factory = pe.CryptoFactory(lambda _: Kms())
    properties = factory.file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(footer_key="footer", **options)
    )
    sink = io.BytesIO()
    table = pa.table({"open": [1, 2], "secret": ["a", "b"]})
    with pq.ParquetWriter(sink, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"column_keys": {"key": ["secret"]}},
        {"column_keys": {"key": ["secret"]}, "plaintext_footer": True},
        {"uniform_encryption": True},
    ],
    ids=str,
)
async def test_encrypted_files_are_refused(tmp_path: Path, options: dict[str, Any]):
    content = await asyncio.to_thread(encrypted, **options)
    assert content.endswith(b"PAR1" if "plaintext_footer" in options else b"PARE")
    await refused(tmp_path / "secret.parquet", content, "is encrypted; decrypt it first")


async def test_a_column_that_only_says_it_is_encrypted(tmp_path: Path):
    """pyarrow ends the process when such a column is looked at."""
    crypto = pack([(2, STRUCT, pack([(1, LIST, (BINARY, [b"\x02it"]))]))])
    chunk = pack([(2, 6, 0), (8, STRUCT, crypto)])
    elements = [group(b"root", 1), LEAF]
    content = b"PAR1" + ending(elements, [pack([(1, LIST, (STRUCT, [chunk])), (3, 6, 1)])], 1)
    await refused(tmp_path / "says.parquet", content, "is encrypted")


# --- what Arrow notes beside the schema ------------------------------------------------------


class Loaded(pa.ExtensionType):
    """An extension that must not be run."""

    runs = 0

    def __init__(self) -> None:
        super().__init__(pa.int64(), "featurestore.tests.loaded")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"anything"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Loaded:
        cls.runs += 1
        return cls()


async def test_extensions_are_never_run(tmp_path: Path):
    column = pa.ExtensionArray.from_storage(Loaded(), pa.array([1, 2]))
    elapsed = pa.array([1, 2], pa.duration("us"))
    inside = pa.array([{"it": 1}, {"it": 2}])
    table = pa.table({"loaded": column, "elapsed": elapsed, "inside": inside})
    content = await asyncio.to_thread(made, table)
    path = await written(tmp_path / "extension.parquet", content)
    pa.register_extension_type(Loaded())
    try:
        assert (await asyncio.to_thread(pq.read_schema, path)).field("loaded").type == Loaded()
        Loaded.runs = 0
        async with open_file(str(path)) as reader:
            schema = (await read_footer(reader)).schema
        found = await table_of(path)
    finally:
        pa.unregister_extension_type("featurestore.tests.loaded")
    assert Loaded.runs == 0
    assert found.column("loaded").to_pylist() == [1, 2]
    assert found.schema.field("loaded").type == schema.field("loaded").type == pa.int64()
    # Which is no number, though it is stored as one: that stands nowhere but in Arrow's note.
    assert schema.field("elapsed").type == pa.duration("us")


@pytest.mark.parametrize("note", [b"", b"not base64!", base64.b64encode(b"\xff" * 60)])
async def test_notes_that_cannot_be_read_say_nothing(tmp_path: Path, note: bytes):
    pair = pack([(1, BINARY, b"ARROW:schema"), (2, BINARY, note)])
    content = await asyncio.to_thread(made, pa.table({"it": [1]}), store_schema=False)
    footer_length = int.from_bytes(content[-8:-4], "little")
    body = content[: -8 - footer_length]
    column = Column("it", INT64, [Page(bytes(80), 10)])
    assert body.startswith(b"PAR1")
    with_note = parquet_file([column], 10)
    length = int.from_bytes(with_note[-8:-4], "little")
    start = len(with_note) - 8 - length
    # Keys stand between the row groups (4) and the writer (6).
    writer = pack([(6, BINARY, b"")])
    footer = with_note[start : -8 - 3]
    assert with_note[-8 - 3 : -8] == b"\x28\x00\x00"
    noted = footer + pack([(1, LIST, (STRUCT, [pair]))]) + writer
    content = with_note[:start] + noted + len(noted).to_bytes(4, "little") + b"PAR1"
    found = await table_of(await written(tmp_path / "note.parquet", content))
    assert found.num_rows == 10


# --- old writers ----------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [b"parquet-mr", b"parquet-mr version 1.2.8 (build x)"])
async def test_old_writers_forgot_a_header_in_the_size(tmp_path: Path, writer: bytes):
    entries = dictionary(strings(b"one", b"two"), 2)
    page = Page(b"\x01\x03\xa6", 8, 8)
    first = Column("a", BYTE_ARRAY, [entries, page], text=True)
    whole = len(entries.packed(None) + page.packed(None))
    short = whole - (len(entries.packed(None)) - len(entries.body))
    first.meta = {7: short}
    columns = [first, Column("b", INT32, [Page(bytes(32), 8)])]
    content = parquet_file(columns, 8, created_by=writer)
    found = await table_of(await written(tmp_path / "old.parquet", content))
    assert found.column("a").to_pylist() == [("one", "two")[0xA6 >> n & 1] for n in range(8)]
    newer = parquet_file(columns, 8, created_by=b"parquet-mr version 1.2.9")
    await refused(tmp_path / "new.parquet", newer, "a page's header does not end")
