"""What an ingest was asked to load, as a list of files in path order."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featurestore.errors import SourceError

_SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = frozenset("*?[")


async def resolve_paths(paths: Sequence[str]) -> list[str]:
    """The files that paths, globs and folders name, those of each in path order.

    Names that begin with ``_`` or ``.`` inside a folder or glob are passed over. Raises
    :class:`SourceError` for a path that is not there and a glob or folder that holds nothing.
    """
    return await asyncio.to_thread(lambda: [file for path in paths for file in _resolve(path)])


def _resolve(path: str) -> Iterable[str]:
    if "://" in path:
        scheme = path.partition("://")[0]
        raise SourceError(
            f"{path}: {scheme}:// cannot be read by this version. Download the file first."
        )
    try:
        if os.path.isdir(path):
            return _folder(path)
        if os.path.exists(path):
            return [path]
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SourceError(f"{path!r} is no path: {error}") from error
    if _MAGIC & set(path):
        return _glob(path)
    raise SourceError(f"{path}: there is no such file or folder (looked from {os.getcwd()}).")


def _folder(path: str) -> list[str]:
    found = [
        file
        for file in Path(path).rglob("*")
        if file.suffix.lower() in _SUFFIXES
        and file.is_file()
        and not _hidden(file.relative_to(path))
    ]
    if not found:
        raise SourceError(f"{path}: the folder holds no Parquet file ({', '.join(_SUFFIXES)}).")
    return sorted(map(str, found))


def _glob(pattern: str) -> list[str]:
    fixed = [part for part in Path(pattern).parts if not _MAGIC & set(part)]
    found = []
    for file in glob.glob(pattern, recursive=True):
        matched = [part for part in Path(file).parts if part not in fixed]
        if os.path.isfile(file) and not any(_is_hidden(part) for part in matched):
            found.append(file)
    if not found:
        raise SourceError(f"{pattern}: the glob matches no file (looked from {os.getcwd()}).")
    return sorted(found)


def _hidden(path: Path) -> bool:
    return any(_is_hidden(part) for part in path.parts)


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", ".")) and name not in (".", "..")
