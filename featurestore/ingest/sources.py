"""What an ingest was asked to load, as a list of files in path order and of URLs."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from featurestore.errors import SourceError

_SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = frozenset("*?[")


def is_url(path: str) -> bool:
    """Whether ``path`` is a URL that can be read."""
    return path.lower().startswith(("http://", "https://"))


def without_secrets(path: str) -> str:
    """A URL without user, password, fragment and the values of its query; a path as it is."""
    scheme, found, rest = path.partition("://")
    if not found:
        return path
    address, asked, query = rest.partition("#")[0].partition("?")
    host, slash, place = address.partition("/")
    named = (one.partition("=") for one in query.split("&") if one)
    hidden = "&".join(f"{name}=***" if equals else "***" for name, equals, _ in named)
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{place}{asked}{hidden}"


async def resolve_paths(paths: Sequence[str]) -> list[str]:
    """The files that paths, globs and folders name, those of each in path order, and URLs.

    Names that begin with ``_`` or ``.`` inside a folder or glob are passed over. Raises
    :class:`SourceError` for a path that is not there and a glob or folder that holds nothing.
    """
    return await asyncio.to_thread(lambda: [file for path in paths for file in _resolve(path)])


def _resolve(path: str) -> Iterable[str]:
    if is_url(path):
        return [_checked(path)]
    if "://" in path:
        scheme = path.partition("://")[0]
        raise SourceError(
            f"{without_secrets(path)}: {scheme}:// cannot be read by this version, http:// and "
            f"https:// can. Download the file first."
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
