"""Training sets for PyTorch: :class:`TrainingDataset`, rows of a store joined as they are needed.

::

    dataset = TrainingDataset(
        "postgresql://…", "labels.parquet", "eta",
        label_columns="late", batch_size=1024, shuffle=True, fill_null={"trips": 0},
    )
    for batch in DataLoader(dataset, batch_size=None, num_workers=4):
        loss = model(batch["conv_rate"], batch["trips"], batch["late"])
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.definitions import FeatureSelection, FeatureService, FeatureView
from featurestore.errors import DefinitionError, InvalidRowsError
from featurestore.integrations._beside import Beside
from featurestore.integrations._blocks import BLOCK_ROWS, Order, check_state
from featurestore.integrations._columns import FillNull, ItemColumns, NonNumeric, is_numeric
from featurestore.integrations._entity_rows import EntityRows, as_source, open_rows
from featurestore.integrations._reading import Reading, in_batches
from featurestore.selection import Features
from featurestore.storage.address import resolve_url

try:
    import torch
    from torch import distributed
    from torch.utils.data import IterableDataset, get_worker_info
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{__name__} needs PyTorch: pip install 'featurestore[torch]'", name=error.name
    ) from error

__all__ = ["TrainingDataset", "WorkerInvalidRowsError"]


class WorkerInvalidRowsError(InvalidRowsError):
    """:class:`InvalidRowsError` in a worker of a DataLoader, which brings no more of an error to
    the main process than its message: that names the rows, ``rows`` is empty."""

    def __init__(self, message: str) -> None:
        super().__init__("the entity table", [])
        self.args = (message,)


@dataclass
class _Cursor:
    """How far an iterator is in its order."""

    order: Order
    given: int

    def state(self) -> dict[str, Any]:
        return self.order.state(self.given)


class TrainingDataset(IterableDataset[Any]):  # type: ignore[misc]
    """Each row of an entity table with its features as they were known at its time, as tensors.

    ``url`` is the store's, by default ``FEATURESTORE_URL``. ``entity_df`` is any table (Arrow,
    pandas, Polars …) with the join keys and ``timestamp_column``, or the path of a Parquet file,
    of which each worker reads the row groups that it needs. ``features`` are asked for as in
    :meth:`featurestore.FeatureStore.stream_historical_features`.

    An item is a dict of the features and then of ``label_columns``, columns of the entity table:
    0-dimensional tensors of one row, to be put together by the DataLoader; or with ``batch_size``
    tensors of shape ``[batch_size]``, the last of a worker shorter, for
    ``DataLoader(…, batch_size=None)``. ``transform`` is called with each item, in the worker.

    Types: bool, whole numbers and floats are what they are; decimals become float64. A null is NaN
    among floats. Among whole numbers and bools it is :class:`SchemaMismatchError`, unless
    ``fill_null`` has a value for the column (or is one, for all) or ``null_masks=True``, which puts
    a bool tensor ``<column>__is_null`` beside each column and 0 into its place. Columns of other
    types, such as text, times and arrays, are left out, or lists (one row: values) of Python values
    with ``non_numeric="list"``.

    The table is cut into blocks of ``block_rows`` rows, which the workers of all ranks of
    ``torch.distributed`` take in turn: together they give each row once in an epoch. ``shuffle``
    permutes the blocks, and the rows within each, by ``seed`` and epoch (:meth:`set_epoch`).

    Each worker opens a store of its own in a thread of its own when its first item is asked for,
    reads one block ahead, and closes it when its iterator ends, is dropped or fails. The store's
    errors are raised where the items are taken. ``store_options`` are further arguments of
    :class:`featurestore.FeatureStore`. ``as_of`` is passed to the store if it is given, so that
    all workers and epochs read one state of it.

    :meth:`state_dict` and :meth:`load_state_dict` go on where a worker stood, by themselves or in
    torchdata's ``StatefulDataLoader``.
    """

    def __init__(
        self,
        url: str | sa.URL | None,
        entity_df: Any,
        features: Features,
        *,
        project: str = "default",
        label_columns: str | Sequence[str] = (),
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        timestamp_column: str = "event_timestamp",
        full_feature_names: bool = False,
        fill_null: FillNull = None,
        null_masks: bool = False,
        non_numeric: NonNumeric = "drop",
        transform: Callable[[dict[str, Any]], Any] | None = None,
        block_rows: int = BLOCK_ROWS,
        as_of: Any = None,
        store_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_whole(1, block_rows=block_rows, batch_size=1 if batch_size is None else batch_size)
        _check_whole(None, seed=seed)
        if non_numeric not in ("drop", "list"):
            raise DefinitionError(f"non_numeric={non_numeric!r}: it is 'drop' or 'list'.")
        if transform is not None and not callable(transform):
            raise DefinitionError(f"transform={transform!r}: it is a function of an item.")
        labels = (label_columns,) if isinstance(label_columns, str) else tuple(label_columns)
        self._reading = Reading(
            _checked_url(url),
            _kept(features),
            ItemColumns(labels, _checked_fill(fill_null), null_masks, non_numeric),
            project,
            timestamp_column,
            full_feature_names,
            as_of,
            _checked_options(store_options),
        )
        self._reading.open_store()  # its mistakes are the caller's, here and now; it does no I/O
        self._source = as_source(entity_df)
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._transform = transform
        self._block_rows = block_rows
        # Shared, so that set_epoch reaches workers that stay for several epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._cursor: _Cursor | None = None
        self._resume: dict[str, Any] | None = None
        self._replica = (0, 1)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that iterators begun from now on are in, in persistent workers too.

        As with PyTorch's ``DistributedSampler``: called before each epoch, it gives each another
        order if ``shuffle`` is set. A state that was loaded, of another epoch, is dropped.
        """
        _check_whole(0, epoch=epoch)
        self._epoch.fill_(epoch)
        self._cursor = None
        if self._resume is not None and self._resume["epoch"] != epoch:
            self._resume = None

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iterator of this process stands: its epoch, and the rows it has given.

        A DataLoader that has workers iterates over copies of the dataset, each with a state of
        its own: ``StatefulDataLoader`` gathers them.
        """
        if self._cursor is not None:
            return self._cursor.state()
        if self._resume is not None:
            return dict(self._resume)
        with closing(open_rows(self._source)) as entities:
            return self._order(entities.rows).state(0)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iterator give exactly the rows that were left at ``state_dict``.

        It must be in a worker of the same number, among as many as then, over the same table:
        otherwise iterating is :class:`DefinitionError`.
        """
        self._resume = check_state(state_dict)
        self._epoch.fill_(self._resume["epoch"])
        self._cursor = None

    def __iter__(self) -> Iterator[Any]:
        # Not a generator: where this iterator stands counts from now on, not from its first item.
        entities = open_rows(self._source)
        try:
            self._reading.columns.check_labels(entities.schema)
            order = self._order(entities.rows)
            given = 0 if self._resume is None else order.resume(self._resume)
        except BaseException:
            entities.close()
            raise
        self._resume = None
        self._cursor = _Cursor(order, given)
        return self._items(entities, self._cursor)

    def _items(self, entities: EntityRows, cursor: _Cursor) -> Generator[Any, None, None]:
        pieces = cursor.order.pieces(cursor.given)
        with (
            closing(entities),
            closing(Beside(lambda: self._reading.blocks(entities, pieces))) as blocks,
        ):
            for item, rows in self._tensors(_as_the_loader_tells(blocks)):
                given = item if self._transform is None else self._transform(item)
                cursor.given += rows
                yield given

    def _tensors(self, blocks: Iterator[pa.Table]) -> Iterator[tuple[dict[str, Any], int]]:
        """Items, and how many rows each has."""
        if self._batch_size is not None:
            for table in in_batches(blocks, self._batch_size):
                yield _batch(table), table.num_rows
            return
        for table in blocks:
            columns = _batch(table)
            rows = zip(
                *(
                    column.unbind() if isinstance(column, torch.Tensor) else column
                    for column in columns.values()
                ),
                strict=True,
            )
            for row in rows:
                yield dict(zip(columns, row, strict=True)), 1

    def _order(self, rows: int) -> Order:
        rank, ranks = self._rank()
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return Order(
            rows,
            rank * workers + index,
            ranks * workers,
            int(self._epoch),
            self._shuffle,
            self._seed,
            self._block_rows,
        )

    def _rank(self) -> tuple[int, int]:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        # A worker that was spawned knows nothing of ranks but what came along.
        return (0, 1) if get_worker_info() is None else self._replica

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None, "_replica": self._rank()}


def _batch(table: pa.Table) -> dict[str, Any]:
    """Column → tensor of shape [rows], or list of Python values."""
    return {
        name: _tensor(column) if is_numeric(column.type) else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    array = pa.concat_arrays(column.chunks)
    if pa.types.is_boolean(array.type):
        return torch.from_dlpack(array.cast(pa.uint8())).bool()
    # A copy: Arrow's memory may be that of the caller's own table, and a tensor can be written to.
    return torch.from_dlpack(array).clone()


def _as_the_loader_tells(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The blocks; their errors such that a DataLoader can make them anew in the main process,
    of which it knows the class and one message."""
    try:
        yield from blocks
    except InvalidRowsError as error:
        if get_worker_info() is None:
            raise
        raise WorkerInvalidRowsError(str(error)) from error


def _kept(features: Features) -> Features:
    if isinstance(features, str | FeatureView | FeatureSelection | FeatureService):
        return features
    return list(features)


def _checked_url(url: str | sa.URL | None) -> sa.URL:
    found = resolve_url(url)
    if found.get_backend_name() == "sqlite" and found.database in (None, "", ":memory:"):
        raise DefinitionError(
            "A database in memory is seen by the store that made it alone, and a dataset opens "
            "stores of its own: give the URL of a file or of PostgreSQL."
        )
    return found


def _checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(options or {})
    for name in ("url", "engine", "project"):
        if name in given:
            raise DefinitionError(
                f"store_options has {name!r}: each worker makes a store of its own, by url and "
                f"project."
            )
    return given


def _checked_fill(fill_null: FillNull) -> FillNull:
    values = fill_null.values() if isinstance(fill_null, Mapping) else [fill_null]
    for value in values:
        if value is not None and not isinstance(value, int | float):
            raise DefinitionError(
                f"fill_null has {value!r}: it is a number, or a dict of numbers by column."
            )
    return dict(fill_null) if isinstance(fill_null, Mapping) else fill_null


def _check_whole(least: int | None, **given: object) -> None:
    for name, value in given.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (least is not None and value < least):  # type: ignore[operator]
            bound = "" if least is None else f" of {least} or more"
            raise DefinitionError(f"{name}={value!r}: it is a whole number{bound}.")
