"""Parquet that means harm: it ends in one error that says what is wrong, and never takes the
machine's memory."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
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
    Column,
    Page,
    dictionary,
    endless_lengths,
    first_then_zero,
    levels,
    once_then_same,
    parquet_file,
    rle,
    strings,
)

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent.parent
MB = 1 << 20
BILLION = 1_000_000_000
SAME = bytes([0]) + rle(0, BILLION, 0)
"""A billion times the first entry of a dictionary."""


def made(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def repeated_text(length: int, rows: int, *, required: bool = False) -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * length])
    schema = pa.schema([pa.field("text", column.type, nullable=not required)])
    return made(pa.table([column], schema=schema), compression="zstd")


def of_pages(kind: int, *pages: Page, rows: int, **more: Any) -> bytes:
    return parquet_file([Column("it", kind, list(pages), **more)], rows)


def ints(rows: int, said: int | None = None) -> bytes:
    """So many rows of one integer, in a few bytes."""
    pages = [dictionary(bytes(4), 1), Page(SAME, rows, DICTIONARY)]
    return parquet_file([Column("it", INT32, pages)], rows if said is None else said)


def shared_prefixes(count: int) -> bytes:
    body = once_then_same(MB, count) + first_then_zero(MB, count) + b"x" * MB
    return of_pages(BYTE_ARRAY, Page(body, count, DELTA_STRINGS), rows=count, codec="zstd")


def long_row() -> bytes:
    one_row = levels(0, 1)[4:] + levels(1, BILLION - 1)[4:]
    body = len(one_row).to_bytes(4, "little") + one_row + levels(1, BILLION) + SAME
    pages = [dictionary(bytes(4), 1), Page(body, BILLION, DICTIONARY)]
    return parquet_file([Column("it", INT32, pages, is_list=True)], 1)


def bomb(pages: int) -> bytes:
    """Pages of 160 MB of zeros, compressed."""
    page = _Packed(Page(bytes(160 * MB), 20 * MB).packed("zstd"), 20 * MB)
    return parquet_file([Column("it", INT64, [page] * pages, codec="zstd")], pages * 20 * MB)


class _Packed(Page):
    """A page that was compressed once already."""

    def __init__(self, packed: bytes, count: int) -> None:
        super().__init__(b"", count)
        self._packed = packed

    def packed(self, codec: str | None) -> bytes:
        return self._packed


TOO_MUCH = r"row group 0 decodes to [\d,]+ bytes at least.*max_decoded_bytes=\d+"

ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a long string many times": (lambda: repeated_text(MB, 10_000), TOO_MUCH),
    "a long string many times, no nulls": (
        lambda: repeated_text(MB, 10_000, required=True),
        TOO_MUCH,
    ),
    "a billion rows": (lambda: ints(BILLION), TOO_MUCH),
    "a billion rows, the footer says ten": (
        lambda: ints(BILLION, said=10),
        TOO_MUCH,
    ),
    "a row of a billion items": (long_row, TOO_MUCH),
    "strings of shared beginnings": (lambda: shared_prefixes(10_000), TOO_MUCH),
    "wide values of fixed width": (
        lambda: of_pages(
            FIXED,
            dictionary(b"x" * MB, 1),
            Page(SAME, 10_000, DICTIONARY),
            rows=10_000,
            width=MB,
            codec="zstd",
        ),
        TOO_MUCH,
    ),
    "pages of zeros": (lambda: bomb(20), TOO_MUCH),
    "one page of zeros": (lambda: bomb(1), r"'it' has a page of [\d,]+ bytes.*max_bytes_in_flight"),
    "a page that claims 2 GB": (
        lambda: of_pages(
            INT64, Page(bytes(800), 100, plain_size=2**31 - 1), rows=100, codec="zstd"
        ),
        r"'it' has a page of [\d,]+ bytes.*max_bytes_in_flight",
    ),
    "a dictionary that claims two billion entries": (
        lambda: of_pages(
            BYTE_ARRAY,
            dictionary(strings(b"a"), 2**31 - 1),
            Page(SAME, 100, DICTIONARY),
            rows=100,
        ),
        r"damaged.*dictionary",
    ),
    "two billion lengths for ten strings": (
        lambda: of_pages(BYTE_ARRAY, Page(endless_lengths(2**31 - 1), 10, DELTA_LENGTHS), rows=10),
        r"damaged.*lengths of 2,147,483,647",
    ),
    "two billion prefixes for ten strings": (
        lambda: of_pages(BYTE_ARRAY, Page(endless_lengths(2**31 - 1), 10, DELTA_STRINGS), rows=10),
        r"damaged.*lengths of 2,147,483,647",
    ),
    "a trillion rows, says the footer": (
        lambda: parquet_file([Column("it", INT64, [Page(bytes(80), 10)])], 10**12),
        TOO_MUCH,
    ),
    "no rows, says the footer": (
        lambda: parquet_file([Column("it", INT64, [Page(bytes(80), 10)])], 0),
        r"damaged.*'it' holds 10 values, its row group 0 rows",
    ),
    "fewer rows, says the footer": (
        lambda: parquet_file([Column("it", INT64, [Page(bytes(80), 10)])], 4),
        r"damaged.*'it' holds 10 values, its row group 4 rows",
    ),
}


HONEST: dict[str, Callable[[], bytes]] = {
    "wide strings of a dictionary": lambda: repeated_text(24_000, 65_536),
    "some rows much wider than others": lambda: made(
        pa.table(
            {
                "text": pa.DictionaryArray.from_arrays(
                    pa.array([row % 1000 == 0 for row in range(200_000)]).cast(pa.int32()),
                    ["x", "y" * MB],
                ),
                "n": range(200_000),
            }
        )
    ),
    "strings of shared beginnings, fewer": lambda: shared_prefixes(1_500),
    "many rows of a few bytes": lambda: ints(50_000_000),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each file, each in a process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    warm = folder / "warm.parquet"
    warm.write_bytes(made(pa.table({"text": ["a", "b"], "list": [[1], [2]]})))
    files = {name: make for name, (make, _) in ATTACKS.items()} | HONEST
    paths = []
    for index, make in enumerate(files.values()):
        paths.append(folder / f"hostile{index}.parquet")
        paths[-1].write_bytes(make())
    search = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reading.py")), warm, *paths],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    sizes = [path.stat().st_size for path in paths]
    for one, size in zip(said, sizes, strict=True):
        one["size"] = size
    return dict(zip(files, said, strict=True))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_small_file_does_not_take_the_memory(outcomes: dict[str, dict[str, Any]], attack: str):
    said = outcomes[attack]
    assert said["size"] < 4 * MB
    assert "error" in said, said
    assert re.match(r"SourceError: \S+hostile\d+\.parquet\b", said["error"]), said
    assert re.search(ATTACKS[attack][1], said["error"]), said
    assert said["megabytes"] < 150


@pytest.mark.parametrize("file", HONEST)
def test_what_decodes_to_much_takes_memory_by_the_batch(
    outcomes: dict[str, dict[str, Any]], file: str
):
    said = outcomes[file]
    assert "rows" in said, said
    assert said["largest"] < 21 * MB
    assert said["megabytes"] < 150
