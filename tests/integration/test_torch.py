"""Training sets in PyTorch's own DataLoader, with workers of its own making.

PyTorch is in no group of the project, for its size: ``bash .ci/run`` runs these tests in an
environment that has it.
"""

from __future__ import annotations

import datetime as dt
import gc
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs

try:
    import torch
    from torch.utils.data import DataLoader
    from torchdata.stateful_dataloader import StatefulDataLoader
except ModuleNotFoundError as error:
    pytest.skip(
        f"{error.name} is not in this environment, so NOTHING WAS TESTED WITH PYTORCH: "
        f"`pip install torch torchdata` into it, and `pytest -m torch` (bash .ci/run does that in "
        f"an environment of its own)",
        allow_module_level=True,
    )

from featurestore.integrations.torch import TrainingDataset

pytestmark = [
    pytest.mark.torch,
    # torchdata calls what PyTorch has deprecated; from Python 3.12 on, forking beside the threads
    # of PyTorch is warned of.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
ROWS = 100
DRIVERS = 20

driver = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
stats = fs.FeatureView(
    "stats",
    entities=[driver],
    fields=[
        fs.Field("rate", fs.Float64),
        fs.Field("trips", fs.Int32),
        fs.Field("open", fs.Bool),
        fs.Field("name", fs.String),
        fs.Field("vector", fs.Array(fs.Float32)),
    ],
    timestamp_field="known_at",
)
service = fs.FeatureService("eta", features=[stats[["rate", "trips", "open"]]])


def entity_table(rows: int = ROWS) -> pa.Table:
    """Rows whose label is their number."""
    return pa.table(
        {
            "driver_id": [row % DRIVERS for row in range(rows)],
            "event_timestamp": [NOON + dt.timedelta(minutes=row) for row in range(rows)],
            "label": pa.array(range(rows), pa.int64()),
            "late": [row % 3 == 0 for row in range(rows)],
        }
    )


@pytest.fixture
def url(featurestore_url: str) -> str:
    """A store in which driver 0 has never a rate."""
    rows = [
        {
            "driver_id": number,
            "known_at": NOON + dt.timedelta(minutes=later),
            "rate": number + later / 100 if number else None,
            "trips": number + later,
            "open": number % 2 == 0,
            "name": f"driver {number}",
            "vector": [float(number), 0.5],
        }
        for number in range(DRIVERS)
        for later in (-5, 40)
    ]
    with fs.sync.FeatureStore(featurestore_url) as store:
        store.apply([stats, service])
        store.push(stats, rows)
    return featurestore_url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.parquet"
    pq.write_table(entity_table(), path, row_group_size=30)
    return path


def dataset(url: str, entity_df: Any = None, features: Any = service, **options: Any) -> Any:
    table = entity_table() if entity_df is None else entity_df
    return TrainingDataset(
        url, table, features, **{"label_columns": "label", "block_rows": 10, **options}
    )


def labels(items: Any) -> list[int]:
    """The numbers of the rows in items, in order."""
    return [number for item in items for number in item["label"].reshape(-1).tolist()]


def fails(loader: Any, kind: type[Exception], said: str) -> None:
    """Going through the loader ends in this error."""
    with pytest.raises(kind, match=said) as raised:
        list(loader)
    # The error holds the loader's iterator. Freed by the garbage collector in place of at once,
    # PyTorch waits five seconds for each of its workers.
    traceback.clear_frames(raised.tb)
    del raised


def store_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "featurestore-blocks"]


# --- items ------------------------------------------------------------------------------------


@both
def test_a_batch_has_what_the_store_answers(url: str):
    with fs.sync.FeatureStore(url) as store:
        wanted = store.get_historical_features(entity_table(), service).to_arrow()
    batches = list(dataset(url, batch_size=16))
    assert [len(batch["label"]) for batch in batches] == [16] * 6 + [4]
    assert list(batches[0]) == ["rate", "trips", "open", "label"]
    for name in batches[0]:
        values = torch.cat([batch[name] for batch in batches])
        found = [None if value != value else value for value in values.tolist()]
        assert found == wanted.column(name).to_pylist(), name
    types = {name: tensor.dtype for name, tensor in batches[0].items()}
    assert types == {
        "rate": torch.float64, "trips": torch.int32, "open": torch.bool, "label": torch.int64,
    }  # fmt: skip


def test_single_rows_are_put_together_by_the_loader(url: str):
    rows = list(dataset(url))
    assert len(rows) == ROWS
    assert rows[7]["label"].shape == ()
    assert rows[7]["label"].item() == 7
    loader = DataLoader(dataset(url), batch_size=32)
    assert [len(batch["rate"]) for batch in loader] == [32, 32, 32, 4]


def test_text_and_arrays_are_lists_on_demand(url: str):
    plain = next(iter(dataset(url, features=stats, batch_size=2)))
    assert list(plain) == ["rate", "trips", "open", "label"]
    (batch,) = dataset(url, entity_table(2), stats, non_numeric="list", batch_size=2)
    assert batch["name"] == ["driver 0", "driver 1"]
    assert batch["vector"] == [[0.0, 0.5], [1.0, 0.5]]
    row = next(iter(dataset(url, features=stats, non_numeric="list")))
    assert (row["name"], row["vector"]) == ("driver 0", [0.0, 0.5])


@both
def test_nulls_are_refused_filled_or_masked(url: str):
    unknown = entity_table(3).set_column(0, "driver_id", pa.array([1, 99, 2]))
    with pytest.raises(fs.SchemaMismatchError, match=r"'trips' \(int32\) is null for rows 1 of"):
        list(dataset(url, unknown))
    (filled,) = dataset(url, unknown, batch_size=3, fill_null={"trips": -1, "open": False})
    assert filled["trips"].tolist() == [-4, -1, -3]
    assert filled["rate"].isnan().tolist() == [False, True, False]
    (masked,) = dataset(url, unknown, batch_size=3, null_masks=True)
    assert masked["trips"].tolist() == [-4, 0, -3]
    assert masked["trips__is_null"].tolist() == [False, True, False]


def test_transform_makes_the_items(url: str):
    def pair(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([batch["rate"], batch["trips"]], dim=1).float(), batch["late"].float()

    made = dataset(url, batch_size=50, label_columns=["late"], transform=pair)
    shapes = [(inputs.shape, late.shape) for inputs, late in DataLoader(made, batch_size=None)]
    assert shapes == [((50, 2), (50,))] * 2


def test_tensors_can_be_written_to_without_touching_the_entity_table(url: str):
    table = entity_table()
    for batch in dataset(url, table, batch_size=10):
        batch["label"] += 1_000
    assert table.equals(entity_table())


def test_entity_rows_come_from_pandas_and_polars(url: str):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pandas.DataFrame(entity_table().to_pandas())
    assert labels(dataset(url, frame)) == [*range(ROWS)]
    assert labels(dataset(url, polars.DataFrame(entity_table()))) == [*range(ROWS)]


def test_no_rows_are_no_items(url: str):
    assert list(dataset(url, entity_table(0))) == []
    assert list(DataLoader(dataset(url, entity_table(0)), num_workers=2)) == []


# --- workers ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("shuffle", [False, True])
def test_forked_workers_give_every_row_once(url: str, file: Path, shuffle: bool):
    for source in (entity_table(), file):
        for options in ({"batch_size": 7}, {}):
            rows = dataset(url, source, shuffle=shuffle, **options)
            outer = None if options else 7
            loader = DataLoader(
                rows, batch_size=outer, num_workers=2, multiprocessing_context="fork"
            )
            found = labels(loader)
            assert sorted(found) == [*range(ROWS)]
            assert found != [*range(ROWS)], "the workers take turns"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("featurestore_url", "workers"),
    [("sqlite", 1), ("postgresql", 2)],
    indirect=["featurestore_url"],
)
def test_spawned_workers_give_every_row_once(url: str, file: Path, workers: int):
    rows = dataset(url, file, [stats[["rate"]]], batch_size=7)
    loader = DataLoader(rows, batch_size=None, num_workers=workers, multiprocessing_context="spawn")
    assert sorted(labels(loader)) == [*range(ROWS)]


@both
def test_workers_leave_a_store_that_the_parent_uses_alone(url: str):
    rows = dataset(url, batch_size=5)
    mine = iter(rows)
    first = [next(mine)]
    with fs.sync.FeatureStore(url) as store:
        assert len(store.list_views()) == 1
        loader = DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context="fork")
        if url.startswith("sqlite"):  # what a child writes to a file open in its parent may be lost
            fails(loader, fs.FeatureStoreError, "was open in the process that this one was forked")
            loader = DataLoader(
                rows, batch_size=None, num_workers=2, multiprocessing_context="spawn"
            )
        assert sorted(labels(loader)) == [*range(ROWS)]
        assert len(store.get_historical_features(entity_table(), service)) == ROWS
    assert labels([*first, *mine]) == [*range(ROWS)]


def test_each_epoch_has_an_order_of_its_own_in_persistent_workers_too(url: str):
    rows = dataset(url, batch_size=10, shuffle=True)
    loader = DataLoader(rows, batch_size=None, num_workers=2, persistent_workers=True)
    found = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        found.append(labels(loader))
    assert [sorted(epoch) for epoch in found] == [[*range(ROWS)]] * 3
    assert found[0] == found[2] != found[1]


async def iterate_here(url: str) -> list[int]:
    return labels(DataLoader(dataset(url, batch_size=16), batch_size=None))


@both
@pytest.mark.allow_blocking  # as a cell of a notebook does
async def test_it_works_inside_a_running_loop(url: str):
    assert await iterate_here(url) == [*range(ROWS)]


# --- an end -----------------------------------------------------------------------------------


@both
def test_an_iterator_that_is_dropped_closes_its_store(url: str):
    for batch in DataLoader(dataset(url, batch_size=5), batch_size=None):
        assert len(batch["label"]) == 5
        break
    gc.collect()
    assert store_threads() == []
    # That no connection is left open is looked at when the database goes.
    for batch in DataLoader(dataset(url, batch_size=5), batch_size=None, num_workers=2):
        assert len(batch["label"]) == 5
        break


def test_an_error_of_the_transform_closes_the_store(url: str):
    def fail(batch: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        list(dataset(url, transform=fail))
    assert store_threads() == []


@pytest.mark.slow
def test_an_iterator_that_is_held_does_not_keep_a_program_up(url: str, file: Path):
    code = (
        "import sys, featurestore.integrations.torch as t\n"
        "rows = t.TrainingDataset(sys.argv[1], sys.argv[2], 'eta', block_rows=10)\n"
        "items = iter(rows); print(next(items)['trips'].item())"
    )
    arguments = [sys.executable, "-c", code, url, str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-5\n", "")


# --- errors -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_store_reach_the_consumer(url: str, workers: int):
    def loader(*args: Any, **options: Any) -> Any:
        return DataLoader(dataset(*args, **options), num_workers=workers)

    fails(loader(url, features="stats:rat"), fs.NotFoundError, "Did you mean 'rate'")
    fails(loader(url, label_columns="lable"), fs.SchemaMismatchError, "no column 'lable'")
    fails(loader("postgresql://x@127.0.0.1:1/x"), fs.StoreUnavailableError, "cannot be reached")
    missing = r"none\.parquet: there is no such file"
    fails(loader(url, "none.parquet"), fs.SourceError, missing)
    times = [None if row == 57 else NOON for row in range(ROWS)]
    without = entity_table().set_column(1, "event_timestamp", pa.array(times))
    said = "row 57: event_timestamp is null"
    fails(loader(url, without, shuffle=True), fs.InvalidRowsError, said)


@both
def test_items_before_an_error_are_given(url: str):
    times = [None if row == 57 else NOON for row in range(ROWS)]
    items = iter(dataset(url, entity_table().set_column(1, "event_timestamp", pa.array(times))))
    assert labels(next(items) for _ in range(50)) == [*range(50)]
    with pytest.raises(fs.InvalidRowsError) as raised:
        next(items)
    assert [bad.row for bad in raised.value.rows] == [57]
    assert store_threads() == []


def test_mistakes_are_errors_where_they_are_made(url: str):
    for options, said in [
        ({"batch_size": 0}, "batch_size=0"),
        ({"block_rows": True}, "block_rows=True"),
        ({"seed": "x"}, "seed='x'"),
        ({"non_numeric": "text"}, "non_numeric='text'"),
        ({"store_options": {"engine": None}}, "store_options has 'engine'"),
        ({"project": "No"}, "project"),
        ({"fill_null": {"trips": "none"}}, "fill_null has 'none'"),
        ({"transform": "float"}, "transform='float'"),
    ]:
        with pytest.raises(fs.DefinitionError, match=said):
            dataset(url, **options)
    with pytest.raises(fs.DefinitionError, match="database in memory"):
        dataset("sqlite://")
    with pytest.raises(fs.DefinitionError, match="epoch=-1"):
        dataset(url).set_epoch(-1)


# --- going on ---------------------------------------------------------------------------------


@both
def test_a_dataset_goes_on_at_any_item(url: str):
    options: dict[str, Any] = {"batch_size": 16, "shuffle": True}
    first = dataset(url, **options)
    states, batches = [first.state_dict()], []
    for batch in DataLoader(first, batch_size=None):
        batches.append(batch)
        states.append(first.state_dict())
    whole = labels(batches)
    for number, state in enumerate(states):
        again = dataset(url, **options)
        again.load_state_dict(state)
        assert again.state_dict() == state
        rest = labels(DataLoader(again, batch_size=None))
        assert rest == whole[number * 16 :]
        assert labels(again) == whole, "the next iterator begins anew"


def test_a_state_of_a_later_epoch_goes_on_in_that(url: str):
    first = dataset(url, shuffle=True)
    first.set_epoch(3)
    whole = labels(first)
    items = iter(first)
    for _ in range(33):
        next(items)
    again = dataset(url, shuffle=True)
    again.load_state_dict(first.state_dict())
    again.set_epoch(3)
    assert labels(again) == whole[33:]
    again.load_state_dict(first.state_dict())
    again.set_epoch(4)
    assert sorted(labels(again)) == [*range(ROWS)]


@both
@pytest.mark.parametrize(("workers", "options"), [(0, {}), (2, {}), (2, {"batch_size": 16})])
def test_a_stateful_loader_goes_on_at_any_batch(url: str, workers: int, options: Any):
    def loader() -> Any:
        rows = dataset(url, shuffle=True, **options)
        outer = None if options else 16
        return StatefulDataLoader(rows, batch_size=outer, num_workers=workers)

    first = loader()
    states, batches = [], []
    for batch in first:
        batches.append(batch)
        states.append(first.state_dict())
    whole = [batch["label"].tolist() for batch in batches]
    assert sorted(labels(batches)) == [*range(ROWS)]
    for number, state in enumerate(states, 1):
        again = loader()
        again.load_state_dict(state)
        assert [batch["label"].tolist() for batch in again] == whole[number:]
    again = loader()
    again.load_state_dict(first.state_dict())  # the epoch has ended
    assert [batch["label"].tolist() for batch in again] == whole


def test_another_number_of_workers_is_refused(url: str):
    first = StatefulDataLoader(dataset(url, batch_size=16), batch_size=None, num_workers=2)
    next(iter(first))
    fewer = StatefulDataLoader(dataset(url, batch_size=16), batch_size=None, num_workers=1)
    fewer.load_state_dict(first.state_dict())
    fails(fewer, fs.DefinitionError, "one of 2 workers, and now there is 1")
    alone = dataset(url)
    next(iter(alone))
    more = dataset(url)
    more.load_state_dict(alone.state_dict())
    fails(
        DataLoader(more, num_workers=2), fs.DefinitionError, "one of 1 worker, and now there are 2"
    )


# --- ranks ------------------------------------------------------------------------------------

RANK = """\
import sys
from torch import distributed
from torch.utils.data import DataLoader
from featurestore.integrations.torch import TrainingDataset

if __name__ == "__main__":
    url, file, meeting, rank, method = sys.argv[1:]
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2
    )
    rows = TrainingDataset(url, file, "eta", label_columns="label", block_rows=10, batch_size=5)
    loader = DataLoader(rows, batch_size=None, num_workers=1, multiprocessing_context=method)
    print([number for batch in loader for number in batch["label"].tolist()])
    distributed.destroy_process_group()
"""


@pytest.fixture
def ranks(tmp_path: Path, url: str, file: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of one group; one forks its worker, the other spawns it."""
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    started = [
        subprocess.Popen(
            [sys.executable, program, url, file, tmp_path / "meeting", str(rank), method],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, method in enumerate(["fork", "spawn"])
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
def test_ranks_share_the_rows(ranks: list[subprocess.Popen[str]]):
    found = []
    for process in ranks:
        output, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
        found.append([int(number) for number in output.strip("[]\n").split(",")])
    assert found[0] == [row for row in range(ROWS) if row // 10 % 2 == 0]
    assert found[1] == [row for row in range(ROWS) if row // 10 % 2 == 1]
