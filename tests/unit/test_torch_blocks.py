"""What :mod:`featurestore.integrations.torch` is made of, without PyTorch and without a store."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore as fs
from featurestore.integrations._beside import Beside
from featurestore.integrations._blocks import Order, Piece, check_state
from featurestore.integrations._columns import ItemColumns
from featurestore.integrations._entity_rows import ParquetRows, as_source, open_rows
from featurestore.integrations._reading import in_batches


def rows_of(order: Order, given: int = 0) -> list[int]:
    """The rows of the table that a worker gives, in order."""
    return [piece.row(at) for piece in order.pieces(given) for at in range(len(piece.order))]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    shards = draw(st.integers(1, 6))
    return Order(
        rows=draw(st.integers(0, 200)),
        shard=draw(st.integers(0, shards - 1)),
        shards=shards,
        epoch=draw(st.integers(0, 3)),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(-5, 5)),
        block_rows=draw(st.integers(1, 40)),
    )


# --- order ------------------------------------------------------------------------------------


@given(orders())
def test_all_workers_together_give_every_row_once(order: Order):
    workers = [replace(order, shard=shard) for shard in range(order.shards)]
    found = [row for worker in workers for row in rows_of(worker)]
    assert sorted(found) == list(range(order.rows))


@given(orders(), st.data())
def test_resuming_at_any_point_gives_the_rest(order: Order, data: st.DataObject):
    every = rows_of(order)
    consumed = data.draw(st.integers(0, len(every)))
    state = json.loads(json.dumps(order.state(consumed)))
    again = replace(order)
    assert rows_of(again, again.resume(check_state(state))) == every[consumed:]


@given(orders())
def test_without_shuffle_rows_and_blocks_come_as_they_stand(order: Order):
    plain = replace(order, shuffle=False)
    assert rows_of(plain) == sorted(rows_of(plain))
    assert all(piece.in_sequence for piece in plain.pieces())


def test_a_worker_takes_every_so_manieth_block():
    order = Order(rows=50, shard=1, shards=2, block_rows=10)
    assert order.blocks() == [1, 3]
    assert rows_of(order) == [*range(10, 20), *range(30, 40)]


def test_shuffle_permutes_blocks_and_the_rows_within_them():
    order = Order(rows=1000, shuffle=True, seed=1, block_rows=10)
    found = rows_of(order)
    assert order.blocks() != sorted(order.blocks())
    assert found != sorted(found)
    for first in range(0, 1000, 10):
        block = found[first : first + 10]
        assert sorted(block) == list(range(min(block), min(block) + 10))


def test_each_epoch_and_each_seed_has_an_order_of_its_own_and_always_the_same():
    order = Order(rows=500, shuffle=True, block_rows=50)
    same, later, other = replace(order), replace(order, epoch=1), replace(order, seed=1)
    assert rows_of(order) == rows_of(same)
    assert len({tuple(rows_of(one)) for one in (order, later, other)}) == 3


def test_of_a_small_table_each_worker_has_its_part():
    parts = [len(rows_of(Order(rows=10, shard=shard, shards=4))) for shard in range(4)]
    assert parts == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shards": 3}, "one of 2 workers, and now there are 3"),
        ({"shards": 1, "shard": 0}, "now there is 1"),
        ({"shard": 1}, "that of worker 0 of 2, and this is worker 1"),
        ({"rows": 99}, "the entity table has changed since"),
        ({"block_rows": 7}, "block_rows=10"),
        ({"shuffle": True}, "shuffle=False"),
        ({"seed": 5}, "seed=0"),
    ],
)
def test_a_state_of_another_order_is_refused(change: dict[str, Any], said: str):
    order = Order(rows=100, shards=2, block_rows=10)
    with pytest.raises(fs.DefinitionError, match=said):
        replace(order, **change).resume(order.state(20))


@pytest.mark.parametrize("state", [None, {}, {"epoch": 1}, {"_snapshot": {}}])
def test_what_is_no_state_is_refused(state: Any):
    with pytest.raises(fs.DefinitionError, match="no state of a TrainingDataset"):
        check_state(state)


def test_a_state_of_another_version_is_refused():
    with pytest.raises(fs.DefinitionError, match="of version 99"):
        check_state({**Order(1).state(0), "version": 99})


# --- batches ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 15))
def test_batches_cross_blocks_and_only_the_last_is_shorter(blocks: list[int], rows: int):
    values = iter(range(sum(blocks)))
    tables = [
        pa.table({"x": pa.array([next(values) for _ in range(n)], pa.int64())}) for n in blocks
    ]
    found = list(in_batches(tables, rows))
    assert [value for table in found for value in table["x"].to_pylist()] == [*range(sum(blocks))]
    assert all(table.num_rows == rows for table in found[:-1])
    assert all(0 < table.num_rows <= rows for table in found)


# --- entity rows ------------------------------------------------------------------------------


def numbers(rows: int) -> pa.Table:
    return pa.table({"x": pa.array(range(rows), pa.int64())})


@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 59), st.integers(1, 30)), max_size=8),
)
def test_rows_of_a_file_are_read_from_anywhere_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, reads: list[tuple[int, int]]
):
    path = tmp_path_factory.mktemp("rows") / "x.parquet"
    pq.write_table(numbers(rows), path, row_group_size=group)
    found = ParquetRows(str(path))
    assert found.rows == rows
    for start, wanted in reads:
        first = start % rows
        count = min(wanted, rows - first)
        assert found.read(first, count)["x"].to_pylist() == [*range(first, first + count)]
    found.close()


def test_only_the_row_groups_of_the_asked_rows_are_read(tmp_path: Path):
    path = tmp_path / "x.parquet"
    pq.write_table(numbers(40), path, row_group_size=10, use_dictionary=False, compression="zstd")
    footer = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in (1, 3):
        chunk = footer.row_group(group).column(0)
        first, size = chunk.data_page_offset, chunk.total_compressed_size
        content[first : first + size] = b"\xff" * size
    path.write_bytes(content)
    rows = ParquetRows(str(path))
    order = Order(rows=40, shard=0, shards=2, block_rows=10)
    found = [rows.read(piece.start, piece.rows)["x"].to_pylist() for piece in order.pieces()]
    assert found == [[*range(10)], [*range(20, 30)]]
    with pytest.raises(fs.SourceError, match=r"x\.parquet: it cannot be read as Parquet"):
        rows.read(10, 10)
    rows.close()


def test_what_is_no_parquet_file_is_said_by_name(tmp_path: Path):
    with pytest.raises(fs.SourceError, match=r"none\.parquet: there is no such file"):
        open_rows(as_source(tmp_path / "none.parquet"))
    with pytest.raises(fs.SourceError, match="one Parquet file, no folder"):
        open_rows(as_source(str(tmp_path)))
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(fs.SourceError, match=r"text\.parquet: it cannot be read as Parquet"):
        open_rows(as_source(tmp_path / "text.parquet"))
    with pytest.raises(fs.SourceError, match="no URL"):
        as_source("s3://bucket/x.parquet")


# --- columns ----------------------------------------------------------------------------------

ENTITIES = pa.schema([("driver_id", pa.int64()), ("late", pa.bool_()), ("day", pa.date32())])
JOINED = pa.table(
    {
        "driver_id": pa.array([1, 2, 3]),
        "late": pa.array([True, False, True]),
        "day": pa.array([0, 1, 2], pa.date32()),
        "rate": pa.array([0.5, None, 1.5]),
        "trips": pa.array([7, None, 9], pa.int32()),
        "open": pa.array([None, True, False]),
        "price": pa.array(["1.25", None, "3"]).cast(pa.decimal128(9, 2)),
        "name": pa.array(["a", None, "c"]),
    }
)
PIECE = Piece(100, 3, [2, 0, 1])


def chosen(**options: Any) -> dict[str, list[Any]]:
    columns = ItemColumns(**options)
    columns.check_labels(ENTITIES)
    table = columns.choose(JOINED, ENTITIES, PIECE)
    return {name: table[name].to_pylist() for name in table.column_names}


def test_features_come_first_then_labels_and_no_other_column():
    found = chosen(labels=("late",), fill_null=0)
    assert list(found) == ["rate", "trips", "open", "price", "late"]
    assert found["late"] == [True, False, True]


def test_nulls_of_floats_and_decimals_are_nan():
    found = chosen(fill_null={"trips": -1, "open": False})
    assert found["trips"] == [7, -1, 9]
    assert found["open"] == [False, True, False]
    assert [str(value) for value in found["rate"]] == ["0.5", "nan", "1.5"]
    assert [str(value) for value in found["price"]] == ["1.25", "nan", "3.0"]


def test_nulls_of_whole_numbers_are_refused_with_their_rows_and_the_way_out():
    with pytest.raises(fs.SchemaMismatchError, match=r"'trips' \(int32\) is null for rows 100 of"):
        chosen()
    with pytest.raises(fs.SchemaMismatchError, match=r"fill_null=\{'open': 0\}, or .*null_masks"):
        chosen(fill_null={"trips": 0})


def test_one_value_fills_all_numbers():
    found = chosen(fill_null=1)
    assert (found["rate"][1], found["trips"][1], found["open"][0]) == (1.0, 1, True)


def test_masks_say_where_nulls_were():
    found = chosen(labels=("late",), null_masks=True)
    assert list(found)[:4] == ["rate", "rate__is_null", "trips", "trips__is_null"]
    assert found["trips"] == [7, 0, 9]
    assert found["trips__is_null"] == [False, True, False]
    assert found["open__is_null"] == [True, False, False]
    assert found["late__is_null"] == [False, False, False]


def test_other_columns_are_left_out_or_kept_as_they_are():
    assert "name" not in chosen(fill_null=0)
    found = chosen(labels=("day",), fill_null=0, non_numeric="list")
    assert found["name"] == ["a", None, "c"]
    assert [day.isoformat() for day in found["day"]] == ["1970-01-01", "1970-01-02", "1970-01-03"]


def test_mistakes_about_columns_are_named():
    with pytest.raises(fs.SchemaMismatchError, match=r"no column 'lat' to give as a label.*'late'"):
        chosen(labels=("lat",))
    with pytest.raises(fs.NotFoundError, match=r"no number 'trip' to fill nulls of.*'trips'"):
        chosen(fill_null={"trip": 0})
    with pytest.raises(fs.DefinitionError, match=r"fill_null=0\.5 is no value for 'trips'"):
        chosen(fill_null=0.5)
    with pytest.raises(fs.DefinitionError, match="None of name is a number"):
        ItemColumns().choose(JOINED.select(["driver_id", "name"]), ENTITIES, PIECE)


def test_unsigned_labels_become_types_that_torch_computes_with():
    entities = pa.schema([("label", pa.uint64())])
    columns = ItemColumns(("label",))
    fits = pa.table({"label": pa.array([2**40], pa.uint64())})
    assert columns.choose(fits, entities, PIECE).schema.field("label").type == pa.int64()
    with pytest.raises(fs.SchemaMismatchError, match=r"'label' \(uint64\) cannot become a tensor"):
        columns.choose(pa.table({"label": pa.array([2**63], pa.uint64())}), entities, PIECE)


# --- beside -----------------------------------------------------------------------------------


class Source:
    """Numbers, and what has become of the generator that gives them."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.made = 0
        self.closed = False
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def give(self) -> AsyncGenerator[int, None]:
        try:
            self.loops.add(asyncio.get_running_loop())
            while self.made < self.count:
                await asyncio.sleep(0)
                self.made += 1
                yield self.made
            if self.error is not None:
                raise self.error
        finally:
            await asyncio.sleep(0)  # closing takes the loop as well
            self.closed = True


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "featurestore-blocks"]


def test_items_come_in_order_from_a_loop_that_ends_with_them():
    source = Source(5)
    assert list(Beside(source.give)) == [1, 2, 3, 4, 5]
    assert source.closed
    assert threads() == []
    assert [loop.is_closed() for loop in source.loops] == [True]


def test_one_item_is_made_ahead_and_no_more():
    source = Source(100)
    items = Beside(source.give)
    assert source.made == 0
    assert next(items) == 1
    deadline = time.monotonic() + 10
    while source.made < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # in which a third one would be made
    assert source.made == 2
    items.close()


def test_closing_early_closes_the_source_and_ends_the_thread():
    source = Source(100)
    items = Beside(source.give)
    assert next(items) == 1
    items.close()
    assert source.closed
    assert threads() == []
    assert list(items) == []
    items.close()


def test_closing_before_the_first_item_starts_nothing():
    source = Source(3)
    Beside(source.give).close()
    assert source.loops == set()


def test_an_error_comes_as_it_is_after_the_items_before_it():
    error = fs.StoreUnavailableError("gone")
    items = Beside(Source(2, error).give)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(fs.StoreUnavailableError) as raised:
        next(items)
    assert raised.value is error
    assert threads() == []


def test_a_source_that_is_cancelled_by_others_is_no_end():
    async def cancelled() -> AsyncGenerator[int, None]:
        yield 1
        raise asyncio.CancelledError

    items = Beside(cancelled)
    assert next(items) == 1
    with pytest.raises(asyncio.CancelledError):
        next(items)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_no_part_in_it():
    source = Source(100)
    items = Beside(source.give)
    next(items)
    if (child := os.fork()) == 0:
        status = 1
        try:
            items.close()
            next(items)
        except fs.DefinitionError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert next(items) == 2
    items.close()
    assert source.closed


# --- importing --------------------------------------------------------------------------------


def test_without_torch_importing_it_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import featurestore.integrations\n"
        "try:\n    import featurestore.integrations.torch\n"
        "except ModuleNotFoundError as error:\n    print(error.name, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "torch featurestore.integrations.torch needs PyTorch" in done.stdout, done.stderr
    assert "pip install 'featurestore[torch]'" in done.stdout
