"""Queries that users wrote themselves: what ends them, and what a database says against them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from featurestore.errors import DefinitionError, FeatureStoreError

_TOKENS = re.compile(
    r"""
      (?P<aside> --[^\n]* | /\*.*?\*/ | [\s;]+ )
    | '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\]
    | .
    """,
    re.VERBOSE | re.DOTALL,
)

# SQLSTATE classes and codes of a statement that is wrong, whenever it is run: values that cannot
# be, syntax and names and rights, what is not supported, results of a subquery, limits.
_WRONG = ("22", "42", "0A", "21", "54")
_WRITES = "25006"


@dataclass(frozen=True)
class UserQuery:
    """A user's own query: the text to run, its columns, and their types where they are known."""

    sql: str
    columns: Sequence[tuple[str, pa.DataType | None]]


def without_end(sql: str) -> str:
    """A statement without the semicolon and comments after it, so that it can stand in another."""
    end = 0
    for token in _TOKENS.finditer(sql):
        if token["aside"] is None:
            end = token.end()
    return sql[:end]


@contextmanager
def reading_for_user(database: str) -> Iterator[None]:
    """Around a user's own query: what the database has against it is the user's to mend. Without
    this it would be told as a fault of the store's own statements."""
    try:
        yield
    except FeatureStoreError as error:
        cause = error.__cause__
        said = str(cause).partition("\n")[0].rstrip(".")
        if _writes(cause, said):
            raise DefinitionError(
                f"The query of the entity table would write to {database}: {said}. It may only "
                f"read; nothing was changed."
            ) from cause
        if _is_wrong(cause, said):
            raise DefinitionError(
                f"{database} refuses the query of the entity table: {said}."
            ) from cause
        raise


def _writes(cause: BaseException | None, said: str) -> bool:
    if isinstance(cause, sqlite3.Error):
        return "readonly" in said
    return getattr(cause, "sqlstate", None) == _WRITES


def _is_wrong(cause: BaseException | None, said: str) -> bool:
    if isinstance(cause, sqlite3.Error):
        passing = ("interrupted", "locked", "busy", "is full", "disk I/O", "malformed", "closed")
        return not any(word in said for word in passing)
    return (getattr(cause, "sqlstate", None) or "").startswith(_WRONG)
