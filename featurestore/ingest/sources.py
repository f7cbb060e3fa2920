"""What an ingest was asked to load, as a list of files and URLs in the order they are loaded.

A file's folders ``column=value`` (Hive's way to partition) are values of columns that the file
itself lacks: they come along as text, and are parsed for a view in ``partitions.py``.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from featurestore.errors import SourceError
from featurestore.ingest.names import SUFFIXES, in_folder, is_glob, matches
from featurestore.ingest.objects import find_objects
from featurestore.urls import is_object, is_url, without_secrets

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class SourceFile:
    """One file to load: ``path`` as it is opened, a path or a URL.

    ``partitions`` are its folders ``column=text``, outermost first, percent-decoded; the text of
    a null is None.
    """

    path: str
    partitions: tuple[tuple[str, str | None], ...] = ()


async def resolve_sources(paths: Sequence[str]) -> list[SourceFile]:
    """The files that paths, globs, folders and URLs name, those of each in path order.

    Names that begin with ``_`` or ``.`` inside a folder or glob are passed over. Object stores
    are asked what there is; ``http://`` and ``https://`` URLs are taken as they are. Raises
    :class:`SourceError` for what is not there and for a glob or folder that holds nothing.
    """
    objects = [path for path in paths if is_object(path)]
    others = [path for path in paths if not is_object(path)]
    here = iter(await asyncio.to_thread(lambda: [_resolve(path) for path in others]))
    there = iter(await find_objects(objects) if objects else [])
    found = [next(there if is_object(path) else here) for path in paths]
    return await asyncio.to_thread(
        lambda: [SourceFile(file, _partitions(file)) for files in found for file in files]
    )


def _resolve(path: str) -> list[str]:
    if not path:
        raise SourceError("'' names no file: give a path, glob, folder or URL.")
    if is_url(path):
        return [_checked(path)]
    if "://" in path:
        raise SourceError(
            f"{without_secrets(path)}: {path.partition('://')[0]}:// cannot be read. http://, "
            f"https://, s3://, gs://, az:// and abfss:// can, and paths. Download the file first."
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
    if is_glob(path):
        return _glob(path)
    if re.match(r"\w+:/[^/]", path):
        raise SourceError(f"{path}: a URL is given as text: pathlib takes a slash away from it.")
    raise SourceError(f"{path}: there is no such file or folder (looked from {os.getcwd()}).")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    # What is wrong may be in the password: nothing before the last @ is shown.
    raise SourceError(
        f"…{without_secrets('://' + url.rpartition('@')[2].rpartition('://')[2])} is no valid URL. "
        f"It needs a host; / ? # @ in a password are written as %2F %3F %23 %40."
    )


def _folder(path: str) -> list[str]:
    found = _below(path)
    if not found:
        raise SourceError(f"{path}: the folder holds no Parquet file ({', '.join(SUFFIXES)}).")
    return sorted(found)


def _below(folder: str) -> list[str]:
    return [
        str(file)
        for file in Path(folder).rglob("*")
        if in_folder(file.relative_to(folder).parts) and file.is_file()
    ]


def _glob(pattern: str) -> list[str]:
    """The files that a glob takes; the Parquet files of the folders, where it ends in a slash."""
    parts = _parts(pattern)
    found = [name for name in glob.glob(pattern, recursive=True) if matches(parts, _parts(name))]
    folders = [name for name in found if os.path.isdir(name)]
    if pattern.endswith(("/", os.sep)):
        files = {file for folder in folders for file in _below(folder)}
        missing = "folder with a Parquet file in it"
    else:
        files = {name for name in found if os.path.isfile(name)}
        missing = "file, but folders (end it with / to load those)" if folders else "file"
    if not files:
        raise SourceError(f"{pattern}: the glob matches no {missing} (looked from {os.getcwd()}).")
    return sorted(files)


def _parts(path: str) -> list[str]:
    return [os.path.normcase(part) for part in Path(path).parts]


def _partitions(path: str) -> tuple[tuple[str, str | None], ...]:
    """All folders ``column=text`` of the path or URL, as it was given."""
    if is_url(path):
        folders = [_decoded(part) for part in urlsplit(path).path.split("/")[:-1]]
    elif is_object(path):
        folders = path.partition("://")[2].split("/")[1:-1]
    else:
        folders = list(Path(path).parts[:-1])
    pairs = (folder.partition("=") for folder in folders)
    return tuple(
        (_decoded(column), None if text == HIVE_NULL else _decoded(text))
        for column, equals, text in pairs
        if column and equals
    )


def _decoded(text: str) -> str:
    # Bytes that are no UTF-8 become what is no text either, and no value of a column.
    return unquote(text, errors="surrogateescape")
