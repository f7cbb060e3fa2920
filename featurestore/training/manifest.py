"""What a training set was made of, so that it can be made again."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any

import pyarrow as pa

from featurestore.definitions import FeatureView
from featurestore.errors import DefinitionError, SourceError
from featurestore.storage.marks import Mark, as_ranges
from featurestore.training.whole_file import whole_file
from featurestore.types import parse_type

FORMAT = 2
"""What a manifest says and how its digests are made; 1 had them of another function."""
PARQUET_KEY = b"featurestore.manifest"
"""The key under which a training set's Parquet file has its manifest."""

ARROW_KEY = b"ARROW:schema"
"""The key under which Arrow keeps the columns' types in Parquet files."""

_PACKAGES = ("featurestore", "pyarrow", "sqlalchemy", "asyncpg", "duckdb", "daft")


_NO_MANIFEST = (
    "this is no manifest of a training set. A manifest is a file that Manifest.save has written, "
    "or a training set's Parquet file, which has it inside."
)


@dataclass(frozen=True)
class ManifestJoin:
    """One view as it was joined.

    ``columns`` pairs join keys with entity columns, ``types`` names the features' types, ``ttl``
    is the view's as days, seconds and microseconds, and ``version`` names its whole definition.
    ``arrivals`` names the rows that were found, in the order of the entity rows; ``blocks`` are
    ranges of the blocks of arrivals that these are of. ``values`` names what a view that was read
    from its files gave, None where its history was read.
    """

    view: str
    name: str
    features: tuple[str, ...]
    types: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    ttl: tuple[int, int, int] | None
    version: str
    read_from: str
    matched: int
    leaked: int
    arrivals: str
    blocks: tuple[tuple[int, int], ...]
    values: str | None = None


@dataclass(frozen=True)
class Manifest:
    """How to make a training set again: features, views, the state of the store, entity rows.

    ``mark`` is the state that was read; None for a set that was read inside a transaction, which
    cannot be made again. ``entity_rows`` and ``entity_digest`` name the entity table,
    ``entity_source`` the path or query that it came from, if it did. :meth:`save` and
    :meth:`load` keep it as JSON; a training set's :meth:`~TrainingSet.to_parquet` writes it into
    the file.
    """

    project: str
    mark: Mark | None
    joins: tuple[ManifestJoin, ...]
    outputs: tuple[tuple[str, int, int], ...]
    timestamp_column: str
    known_by: str | None
    engine: str
    entity_rows: int
    entity_columns: tuple[str, ...]
    entity_digest: str
    entity_source: str | None
    created_at: dt.datetime
    versions: Mapping[str, str]
    entity_table: pa.Table | None = field(default=None, repr=False, compare=False)

    @property
    def features(self) -> list[str]:
        """The features as ``view:feature``, in the order of their columns."""
        return [
            f"{self.joins[join].name}:{self.joins[join].features[position]}"
            for _, join, position in self.outputs
        ]

    def to_json(self) -> str:
        """The manifest as JSON text, without the entity table itself."""
        document = asdict(replace(self, entity_table=None))
        del document["entity_table"]
        document["mark"] = None if self.mark is None else str(self.mark)
        document["created_at"] = self.created_at.isoformat()
        return json.dumps({"format": FORMAT, **document}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """What :meth:`to_json` gave; :class:`DefinitionError` where it is something else."""
        try:
            document = json.loads(text)
            if (found := document.pop("format")) != FORMAT:
                made_with = document.get("versions", {}).get("featurestore", "unknown")
                raise DefinitionError(
                    f"The manifest is of another version of featurestore ({made_with}): it has "
                    f"format {found!r}, and this version reads format {FORMAT}. Make the training "
                    f"set anew."
                )
            made = cls(
                **{
                    **document,
                    "mark": None if document["mark"] is None else Mark.parse(document["mark"]),
                    "created_at": dt.datetime.fromisoformat(document["created_at"]),
                    "joins": tuple(_join(one) for one in document["joins"]),
                    "outputs": tuple((name, j, p) for name, j, p in document["outputs"]),
                    "entity_columns": tuple(document["entity_columns"]),
                }
            )
            made._check()
            return made
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise DefinitionError(_NO_MANIFEST) from error

    def _check(self) -> None:
        """Raise where what was read cannot have been written: a damaged file, say."""
        texts = [self.project, self.timestamp_column, self.entity_digest, *self.entity_columns]
        for join in self.joins:
            texts += [join.view, join.name, join.arrivals, *join.features]
            texts += [name for pair in join.columns for name in pair]
            if len([parse_type(kind) for kind in join.types]) != len(join.features):
                raise ValueError("a view has other types than features")
            if join.ttl is not None:
                dt.timedelta(*join.ttl)
            if any(first > last for first, last in join.blocks):
                raise ValueError("blocks end before they begin")
        for name, number, position in self.outputs:
            texts += [name, self.joins[number].features[position]]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name is no text")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, whole or not at all. It blocks while it writes."""
        with whole_file(path) as new, open(new, "w", encoding="utf-8") as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read it from a JSON file, or from a training set's Parquet file, which has the entity
        table as well. It blocks while it reads."""
        source = os.fspath(path)
        try:
            with open(source, "rb") as file:
                start = file.read(4)
            if start == b"PAR1":
                return _of_parquet(source)
            with open(source, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise DefinitionError(f"{source}: {_NO_MANIFEST}") from error
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{source} cannot be read: {error}") from error
        try:
            return cls.from_json(text)
        except DefinitionError as error:
            raise DefinitionError(f"{source}: {error}") from error


def _of_parquet(path: str) -> Manifest:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        kept = file.metadata.metadata or {}
        text = kept.get(PARQUET_KEY)
        if text is None:
            raise DefinitionError(
                f"{path} has no manifest in it: it is no training set of a store."
            )
        manifest = Manifest.from_json(text.decode())
        schema = file.schema_arrow
        columns = list(manifest.entity_columns)
        table = file.read(columns).select(columns)
    table = table.cast(_schema_as_given(kept, table.schema))
    given = {key: value for key, value in (schema.metadata or {}).items() if key != PARQUET_KEY}
    return replace(manifest, entity_table=table.replace_schema_metadata(given or None))


def _schema_as_given(kept: Mapping[bytes, bytes], read: pa.Schema) -> pa.Schema:
    """The columns as they went into a Parquet file, which has no seconds, say, and gives
    milliseconds instead."""
    if ARROW_KEY not in kept:
        return read
    written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(kept[ARROW_KEY])))
    return pa.schema([written.field(name) for name in read.names])


def _join(document: Mapping[str, Any]) -> ManifestJoin:
    ttl = document["ttl"]
    return ManifestJoin(
        **{
            **document,
            "features": tuple(document["features"]),
            "types": tuple(document["types"]),
            "columns": tuple((key, column) for key, column in document["columns"]),
            "ttl": None if ttl is None else (ttl[0], ttl[1], ttl[2]),
            "blocks": tuple((first, last) for first, last in document["blocks"]),
        }
    )


def view_version(view: FeatureView) -> str:
    """A name for all of a view's definition that a training set depends on."""
    parts: Sequence[object] = (
        view.name,
        [(key, kind.name) for key, kind in view.join_keys.items()],
        view.timestamp_field,
        view.created_timestamp_field,
        None if view.ttl is None else (view.ttl.days, view.ttl.seconds, view.ttl.microseconds),
        [(name, kind.name) for name, kind in view.types.items()],
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=10).hexdigest()


def block_ranges(blocks: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Numbers of blocks as ranges of them."""
    return tuple((first, last) for first, last in as_ranges(blocks))


async def versions() -> Mapping[str, str]:
    """The versions of what a training set is made with."""
    if not _versions.cache_info().currsize:
        return await asyncio.to_thread(_versions)
    return _versions()


@cache
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)  # which reads files
        except metadata.PackageNotFoundError:
            continue
    return found
