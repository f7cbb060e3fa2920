"""The columns of a Parquet file as a feature view can have them: read, typed and named.

Only the footer is read.
"""

from __future__ import annotations

import asyncio
import glob
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from featurestore import types
from featurestore.cli.output import printable
from featurestore.definitions import MAX_NAME, check_name
from featurestore.errors import DefinitionError, SourceError
from featurestore.ingest import parquet
from featurestore.ingest.ranges import open_file

if TYPE_CHECKING:
    from featurestore.ingest.footer import Footer
    from featurestore.types import FeatureType


@dataclass(frozen=True)
class Column:
    """One column of the file: its name there, the name and type that it gets."""

    source: str
    name: str
    type: FeatureType


# --- the file -----------------------------------------------------------------------------


def read_footer(source: str) -> tuple[pa.Schema, int | None]:
    """The schema of the file (or a folder's or glob's first) ``source``, and a file's rows."""
    path, single = _first_file(source)

    async def read() -> Footer:
        async with open_file(path) as reader:
            return await parquet.read_footer(reader)

    footer = asyncio.run(read())
    return footer.schema, footer.rows if single else None


def _first_file(source: str) -> tuple[str, bool]:
    """A file to look at, and whether it is all of ``source``."""
    if "://" in source:
        raise SourceError(f"init reads local files alone: download {source} first.")
    path = Path(source)
    if path.is_file():
        return source, True
    pattern = str(Path(glob.escape(source)) / "**" / "*.parquet") if path.is_dir() else source
    files = sorted(
        found
        for found in glob.glob(pattern, recursive=True)
        if Path(found).is_file() and not Path(found).name.startswith(("_", "."))
    )
    if not files:
        raise SourceError(f"There is no Parquet file {source}.")
    return files[0], False


# --- columns ------------------------------------------------------------------------------


def columns_of(schema: pa.Schema) -> tuple[list[Column], dict[str, str]]:
    """The columns that have a type here, under names that can be; and why others have not."""
    columns: list[Column] = []
    skipped: dict[str, str] = {}
    for position, (name, arrow) in enumerate(zip(schema.names, schema.types, strict=True), start=1):
        kind = feature_type(arrow)
        if kind is None:
            # Nested types hold names of the file, and so perhaps line breaks.
            skipped[name] = printable(f"{arrow} is no type of featurestore")
        elif why := _unusable(name, schema.names):
            skipped[name] = why
        else:
            columns.append(Column(name, name_for(name, f"column_{position}"), kind))
    return _apart(columns), skipped


def _unusable(name: str, names: list[str]) -> str | None:
    if names.count(name) > 1:
        return "the file has several columns of this name"
    if name.startswith("__index_level_"):
        return "it is the index of a pandas frame"
    return "it has no name that could be written" if not name or "\0" in name else None


def _apart(columns: list[Column]) -> list[Column]:
    """Give each its own name: those that the file itself has come first."""
    taken = {one.name for one in columns if one.name == one.source}
    apart = []
    for one in columns:
        name = one.name
        if name != one.source:
            number = 2
            while name in taken:
                suffix = f"_{number}"
                name = one.name[: MAX_NAME - len(suffix)].rstrip("_") + suffix
                number += 1
        taken.add(name)
        apart.append(Column(one.source, name, one.type))
    return apart


def name_for(text: str, otherwise: str) -> str:
    """A name that may be, as near to ``text`` as that goes: ``Conv. Rate`` → ``conv_rate``."""
    if may_be(text):
        return text
    # é → e; what has no plain letter becomes an underscore.
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain)
    name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    if name[:1].isdigit():
        name = f"n_{name}"
    name = name[:MAX_NAME].rstrip("_")
    if not name:
        return otherwise
    return name if may_be(name) else f"{name}_value"


def may_be(name: str) -> bool:
    """Whether it can name a view, a key or a feature."""
    try:
        check_name("column", name)
    except DefinitionError:
        return False
    return True


# --- types --------------------------------------------------------------------------------

_TYPES: tuple[tuple[Callable[[pa.DataType], bool], FeatureType], ...] = (
    (pa.types.is_boolean, types.Bool),
    (pa.types.is_int8, types.Int32),
    (pa.types.is_int16, types.Int32),
    (pa.types.is_int32, types.Int32),
    (pa.types.is_uint8, types.Int32),
    (pa.types.is_uint16, types.Int32),
    (pa.types.is_integer, types.Int64),
    (pa.types.is_float16, types.Float32),
    (pa.types.is_float32, types.Float32),
    (pa.types.is_float64, types.Float64),
    (pa.types.is_string, types.String),
    (pa.types.is_large_string, types.String),
    (pa.types.is_string_view, types.String),
    (pa.types.is_binary, types.Bytes),
    (pa.types.is_large_binary, types.Bytes),
    (pa.types.is_binary_view, types.Bytes),
    (pa.types.is_fixed_size_binary, types.Bytes),
    (pa.types.is_timestamp, types.Timestamp),
    (pa.types.is_date, types.Date),
)

_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)


def feature_type(arrow: pa.DataType) -> FeatureType | None:
    """The type that columns of ``arrow`` fit into; None where there is none."""
    if pa.types.is_dictionary(arrow):
        return feature_type(arrow.value_type)
    if pa.types.is_decimal(arrow):
        fits = arrow.precision <= 38 and 0 <= arrow.scale <= arrow.precision
        return types.Decimal(arrow.precision, arrow.scale) if fits else None
    if any(is_list(arrow) for is_list in _LISTS):
        item = feature_type(arrow.value_type)
        if item is None or isinstance(item, types.ArrayType) or item == types.Json:
            return None
        return types.Array(item)
    if isinstance(arrow, pa.BaseExtensionType):
        return types.Json if isinstance(arrow, pa.JsonType) else feature_type(arrow.storage_type)
    return next((kind for fits, kind in _TYPES if fits(arrow)), None)
