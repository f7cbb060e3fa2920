"""A copy's folder: its data files, and the one file that says which of them count.

::

    _export.json                             the state: written anew, and put in place at once
    _export.lock                             held by the export that is under way
    key__bucket=007/part-000003-00.parquet   rows of one bucket, brought by export 3

Readers go by the state alone. A data file that it does not name is of an export that broke off, and
the next one removes it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.errors import DefinitionError, SourceError
from featurestore.storage.marks import Mark
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.types import FeatureType, Int64, Timestamp, parse_type

STATE = "_export.json"
LOCK = "_export.lock"
_PARTIAL = f"{STATE}.partial"
_FORMAT = 1

# No column of a view can have this name, which readers of Hive's folders make a column of.
_BUCKET = "key__bucket"
_FOLDER = re.compile(rf"{_BUCKET}=\d{{3}}")
_FILE = re.compile(r"part-\d{6,}-\d{2,}\.parquet")


@dataclass(frozen=True)
class DataFile:
    """A data file that counts: where it is within the folder, and which arrivals it has."""

    path: str
    bucket: int
    rows: int
    first_arrival: int
    last_arrival: int


@dataclass(frozen=True)
class Copy:
    """The state of a copy: what it is of, and which files it has come to.

    ``mark`` is what the store knew when its rows were read; None until the first export is done.
    ``shape`` changes with the view's table, and ``newest`` is the view's newest load at the mark,
    by its number and its start: another database, or one put back, has another one.
    """

    folder: Path
    project: str
    view: str
    keys: Mapping[str, FeatureType]
    features: Mapping[str, FeatureType]
    buckets: int
    shape: str = ""
    mark: Mark | None = None
    newest: tuple[int, str] | None = None
    exports: int = 0
    exported_at: str = ""
    files: tuple[DataFile, ...] = ()

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def schema(self) -> pa.Schema:
        """Of every data file: join keys, the three system columns, features."""
        return schema_of(self.keys, self.features)

    def of_bucket(self, bucket: int) -> list[str]:
        """The paths of a bucket's files."""
        return [str(self.folder / file.path) for file in self.files if file.bucket == bucket]

    def has_columns(
        self, keys: Mapping[str, FeatureType], features: Mapping[str, FeatureType]
    ) -> bool:
        """Whether its files have just these, in this order."""
        mine = [*self.keys.items(), None, *self.features.items()]
        return mine == [*keys.items(), None, *features.items()]


def schema_of(keys: Mapping[str, FeatureType], features: Mapping[str, FeatureType]) -> pa.Schema:
    """The columns of a copy's files."""
    system = {EVENT: Timestamp, CREATED: Timestamp, ARRIVAL: Int64}
    columns = {**keys, **system, **features}
    return pa.schema([(name, kind.arrow) for name, kind in columns.items()])


def data_path(bucket: int, export: int, number: int) -> str:
    """Where a data file goes. No name is used twice: a reader that has an older state finds what
    it expects, or nothing."""
    return f"{_BUCKET}={bucket:03d}/part-{export:06d}-{number:02d}.parquet"


@contextlib.contextmanager
def failures(folder: Path, doing: str = "written") -> Iterator[None]:
    """What goes wrong with a copy's files, as an error of ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(f"The copy in {folder} cannot be {doing}: {reason}.") from error
    except pa.ArrowException as error:
        raise SourceError(
            f"The copy in {folder} is damaged: {error}. Remove the folder, and export anew."
        ) from error


# --- reading ------------------------------------------------------------------------------


def read_copy(folder: str | os.PathLike[str]) -> Copy | None:
    """The state of the copy in a folder; None where there is no state. For a thread.

    :class:`SourceError` where it cannot be read.
    """
    folder = Path(folder)
    try:
        text = (folder / STATE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{folder / STATE} cannot be read: {error.strerror}.") from error
    try:
        return _parsed(folder, json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, DefinitionError) as error:
        raise SourceError(
            f"{folder / STATE} is not the state of a copy that this version of featurestore "
            f"knows: {type(error).__name__}: {error}."
        ) from error


def _parsed(folder: Path, state: Any) -> Copy:
    if state["format"] != _FORMAT:
        raise ValueError(f"format {state['format']}")
    mark, newest = state["mark"], state["newest_load"]
    return Copy(
        folder,
        state["project"],
        state["view"],
        {name: parse_type(kind) for name, kind in state["keys"].items()},
        {name: parse_type(kind) for name, kind in state["features"].items()},
        int(state["buckets"]),
        state["shape"],
        None if mark is None else Mark.parse(mark),
        None if newest is None else (int(newest[0]), str(newest[1])),
        int(state["exports"]),
        state["exported_at"],
        tuple(DataFile(**file) for file in state["files"]),
    )


def check_folder(folder: Path) -> Copy | None:
    """What is in a folder that an export goes to: a copy, or nothing yet. For a thread.

    Whatever an export that broke off has left is removed. :class:`SourceError` where the folder
    has anything that is not of a copy, or lacks a file of its own.
    """
    copy = check_names(folder)
    if copy is not None:
        names = os.listdir(folder)
        _remove_leftovers(copy, [name for name in sorted(names) if _FOLDER.fullmatch(name)])
    return copy


def check_names(folder: Path) -> Copy | None:
    """The copy in a folder, if there is one; :class:`SourceError` where there is anything else."""
    names = sorted(os.listdir(folder))
    copy = read_copy(folder)  # after the names, which may be those of a copy begun just now
    for name in names:
        hidden = name.startswith((".", "_")) and (copy is not None or name in (LOCK, _PARTIAL))
        if not hidden and not (copy is not None and _FOLDER.fullmatch(name)):
            raise SourceError(
                f"{folder} is no folder for a copy of history: it has {name!r}, which no export "
                f"has made. Name a folder that is empty, or one that export_history has filled."
            )
    return copy


def _remove_leftovers(copy: Copy, folders: list[str]) -> None:
    wanted = {file.path for file in copy.files}
    found = set()
    for folder in folders:
        for name in os.listdir(copy.folder / folder):
            path = f"{folder}/{name}"
            if path in wanted:
                found.add(path)
            elif _FILE.fullmatch(name):
                (copy.folder / path).unlink()
            elif not name.startswith((".", "_")):
                raise SourceError(
                    f"{copy.folder} has {path!r}, which no export has made: readers of the folder "
                    f"would take it for history. Remove it."
                )
    if missing := sorted(wanted - found):
        raise SourceError(
            f"The copy in {copy.folder} has lost files: {missing[0]!r} is missing. Remove the "
            f"folder, and export anew."
        )


# --- writing ------------------------------------------------------------------------------


def write_copy(copy: Copy) -> None:
    """Put a state in place: from here on it is what readers find. For a thread."""
    state = {
        "format": _FORMAT,
        "project": copy.project,
        "view": copy.view,
        "keys": {name: str(kind) for name, kind in copy.keys.items()},
        "features": {name: str(kind) for name, kind in copy.features.items()},
        "buckets": copy.buckets,
        "shape": copy.shape,
        "mark": None if copy.mark is None else str(copy.mark),
        "newest_load": copy.newest,
        "exports": copy.exports,
        "exported_at": copy.exported_at,
        "files": [asdict(file) for file in copy.files],
    }
    partial = copy.folder / _PARTIAL
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(copy.folder / STATE)
    sync_folder(copy.folder)


def replace_copy(before: Copy, after: Copy) -> None:
    """Put a new state in place and remove the files that only the former one had: rows that were
    erased must not stay on the disk. For a thread."""
    after = replace(after, exported_at=dt.datetime.now(dt.UTC).isoformat())
    write_copy(after)
    kept = {file.path for file in after.files}
    for file in before.files:
        if file.path not in kept:
            (before.folder / file.path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Names within a folder, on the disk for good; where the system knows of such a thing."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
