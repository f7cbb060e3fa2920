"""Names of files, folders and URLs: what they stand for, what a glob takes, what may be shown."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import PurePosixPath

from featurestore.urls import is_object as is_object
from featurestore.urls import is_url as is_url
from featurestore.urls import without_secrets as without_secrets

SUFFIXES = (".parquet", ".parq", ".pq")
"""What the Parquet files in a folder are called."""

_MAGIC = frozenset("*?[")


def is_glob(text: str) -> bool:
    """Whether ``text`` holds a character that globs give a meaning."""
    return not _MAGIC.isdisjoint(text)


def is_hidden(name: str) -> bool:
    """Whether a folder or glob passes over this file or folder, and all that is in it."""
    return name.startswith(("_", ".")) and name not in (".", "..")


def in_folder(parts: Sequence[str]) -> bool:
    """Whether a folder is loaded with the file at ``parts`` below it."""
    suffix = PurePosixPath(parts[-1]).suffix.lower()
    return suffix in SUFFIXES and not any(map(is_hidden, parts))


def matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a glob takes a path, both given by their parts; ``**`` stands for any of them.

    What a glob writes out may be hidden, what it finds may not.
    """
    if not pattern:
        return not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        if matches(rest, parts):
            return True
        return bool(parts) and not is_hidden(parts[0]) and matches(pattern, parts[1:])
    if not parts:
        return False
    if is_glob(first):
        taken = not is_hidden(parts[0]) and fnmatch.fnmatchcase(parts[0], first)
    else:
        taken = parts[0] == first
    return taken and matches(rest, parts[1:])
