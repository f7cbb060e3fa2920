"""A point-in-time join by Daft on Ray, as a program of its own: :mod:`.daft_engine` starts it.

Ray and Daft keep to their process, with their threads, signal handlers and what they print; and a
process can be ended at any moment, which a job in a thread cannot. It reads a plan (JSON) from
standard input and writes an answer (JSON) to standard output.

Each join divides the entity rows as the copy's keys are divided, and one task per bucket joins
them with that bucket of history, which never leaves the place where it is read. Daft divides,
brings the answers back to their rows, and writes them in order.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.export.buckets import bucket_of
from featurestore.export.removals import among
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.training.latest import MICROSECOND, latest
from featurestore.training.rule import AT, ROW
from featurestore.types import parse_type

GLOBAL_ROWS = 1_000_000
"""Entity rows per task where a view has no keys to divide them by."""

_BUCKET, _FOUND = "__bucket", "__found"


@dataclass(frozen=True)
class JoinPlan:
    """One view: where its rows are, and which of them count for which entity rows.

    ``keys`` has for each join key its name, the entity column and its type; ``features`` names
    and types. ``files`` are those of each bucket. Of rows that came after arrival ``until``, or
    have arrivals in ``hidden``, nothing was known. ``ttl`` is in microseconds.
    """

    keys: Sequence[Sequence[str]]
    features: Sequence[Sequence[str]]
    files: Mapping[str, Sequence[str]]
    buckets: int
    ttl: int | None
    until: int | None
    hidden: Sequence[Sequence[int]]
    known_by_created: bool


@dataclass(frozen=True)
class Plan:
    """A job. ``outputs`` names for each column of the answer its join and its position there;
    ``address`` is a Ray cluster, None for one of this machine, which keeps its files in
    ``scratch``."""

    entities: str
    target: str
    joins: Sequence[JoinPlan]
    outputs: Sequence[tuple[str, int, int]]
    address: str | None
    scratch: str

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Plan:
        fields = json.loads(text)
        fields["joins"] = [JoinPlan(**join) for join in fields["joins"]]
        return cls(**fields)


def arrival_column(join: int) -> str:
    """The answer's column with the arrival of the row that a join has found."""
    return f"{ARRIVAL}_{join}"


def leak_column(join: int) -> str:
    """The answer's column that says whether the plain rule's row was created after the entity
    row's time."""
    return f"__leaked_{join}"


def main() -> None:
    """Carry out the plan on standard input."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray and Daft print is no answer
    plan = Plan.parse(sys.stdin.read())
    try:
        result: dict[str, Any] = {"files": _run(plan)}
    except Exception as error:  # noqa: BLE001 - told to who started this, as text
        result = {"error": f"{type(error).__name__}: {error}"}
    json.dump(result, answer)
    answer.close()


def _run(plan: Plan) -> list[str]:
    import daft
    import ray

    local = {} if plan.address else {"include_dashboard": False, "_temp_dir": plan.scratch}
    ray.init(plan.address, log_to_driver=False, logging_level="ERROR", **local)
    try:
        daft.set_runner_ray(noop_if_initialized=True)
        joined = joined_rows(plan)
        written = joined.write_parquet(plan.target)
        return [str(path) for path in written.to_pydict()["path"]]
    finally:
        ray.shutdown()


def joined_rows(plan: Plan) -> Any:
    """The Daft frame of the answer, in the order of the rows."""
    import daft
    from daft import col

    entities = daft.read_parquet(plan.entities)
    names = list(entities.column_names)
    joined = entities
    for number, join in enumerate(plan.joins):
        joined = joined.join(_found(entities, join, number), on=ROW, how="left")
    outputs = [col(_feature(join, position)).alias(name) for name, join, position in plan.outputs]
    told = [col(name(n)) for name in (arrival_column, leak_column) for n in range(len(plan.joins))]
    return joined.select(*(col(name) for name in names), *outputs, *told).sort(ROW)


def _feature(join: int, position: int) -> str:
    return f"__feature_{join}_{position}"


def _found(entities: Any, join: JoinPlan, number: int) -> Any:
    """For each entity row what one view has for it."""
    import daft
    from daft import DataType, Series, col

    columns = [column for _, column, _ in join.keys]
    kinds = [parse_type(kind) for _, _, kind in join.keys]
    buckets = join.buckets
    fields = {ROW: pa.int64(), arrival_column(number): pa.int64(), leak_column(number): pa.bool_()}
    for position, (_, kind) in enumerate(join.features):
        fields[_feature(number, position)] = parse_type(kind).arrow
    struct = DataType.struct(
        {name: DataType.from_arrow_type(kind) for name, kind in fields.items()}
    )

    def divide(*keys: Series) -> Series:
        arrays = [key.to_arrow() for key in keys]
        return Series.from_arrow(bucket_of(arrays, kinds, buckets))

    def find_group(buckets: Series, rows: Series, at: Series, *keys: Series) -> Series:
        of_bucket = buckets.to_arrow()[0].as_py() if join.keys else 0
        keys_there = [key.to_arrow() for key in keys]
        found = find_in_bucket(join, of_bucket, keys_there, at.to_arrow())
        arrays = [rows.to_arrow().cast(pa.int64()), *found]
        return Series.from_arrow(pa.StructArray.from_arrays(arrays, names=list(fields)))

    bucket = daft.func.batch(return_dtype=DataType.int32())(divide)
    find = daft.func.batch(return_dtype=struct)(find_group)
    if join.keys:
        divided = entities.with_column(_BUCKET, bucket(*(col(column) for column in columns)))
    else:
        divided = entities.with_column(_BUCKET, (col(ROW) // GLOBAL_ROWS).cast(DataType.int32()))
    groups = divided.select(_BUCKET, ROW, AT, *dict.fromkeys(columns)).groupby(_BUCKET)
    asked = (col(name) for name in (_BUCKET, ROW, AT, *columns))
    answers = groups.map_groups(find(*asked).alias(_FOUND))
    return answers.select(*(col(_FOUND).get(name).alias(name) for name in fields))


def find_in_bucket(
    join: JoinPlan, bucket: int, keys: Sequence[pa.Array], at: pa.Array
) -> list[pa.Array]:
    """The arrival of the row that each entity row of a bucket finds, whether the plain rule's was
    created too late, and the features."""
    history = _read(join, bucket)
    kinds = [parse_type(kind) for _, _, kind in join.keys]
    wanted = [key.cast(kind.arrow) for key, kind in zip(keys, kinds, strict=True)]
    find = partial(
        latest,
        history,
        [name for name, _, _ in join.keys],
        wanted,
        at,
        ttl=None if join.ttl is None else join.ttl * MICROSECOND,
    )
    index = plain = find()
    if join.known_by_created:
        index = find(known_by_created=True)
    created = history.column(CREATED).take(plain)
    leaked = pc.fill_null(pc.greater(created, at), False)
    names = [ARRIVAL, *(name for name, _ in join.features)]
    arrivals, *features = history.select(names).take(index).combine_chunks().columns
    return [_array(arrivals), _array(leaked), *map(_array, features)]


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)


def _read(join: JoinPlan, bucket: int) -> pa.Table:
    """What a bucket of the copy has that counts: only the columns that are needed."""
    import pyarrow.parquet as pq

    keys = {name: parse_type(kind).arrow for name, _, kind in join.keys}
    system = {EVENT: pa.timestamp("us", "UTC"), CREATED: pa.timestamp("us", "UTC")}
    features = {name: parse_type(kind).arrow for name, kind in join.features}
    schema = pa.schema({**keys, **system, ARRIVAL: pa.int64(), **features})
    tables = [schema.empty_table()]
    for path in join.files.get(str(bucket), ()):
        rows = pq.read_table(path, columns=schema.names, partitioning=None)
        if join.until is not None:
            rows = rows.filter(pc.less_equal(rows.column(ARRIVAL), join.until))
        if join.hidden:
            hidden = [(first, last) for first, last in join.hidden]
            rows = rows.filter(pc.invert(among(rows.column(ARRIVAL), hidden)))
        tables.append(rows.select(schema.names))
    return pa.concat_tables(tables).combine_chunks()


if __name__ == "__main__":
    main()
