"""Driver errors become featurestore's own, here and nowhere else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc as sa_exc

from featurestore.errors import (
    FeatureStoreError,
    OverloadedError,
    SchemaMismatchError,
    StoreUnavailableError,
)

# SQLSTATE classes and codes after which the same call may succeed: connection failures, too many
# connections, shutdowns, limits of time, a server that is a standby or begins to be the primary,
# I/O errors, deadlocks and serialization failures.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING = (
    "08", "53", "57014", "57P01", "57P02", "57P03", "57P05", "58030", "25006", "25P03", "25P04",
    "40001", "40P01", "55P03",
)  # fmt: skip
_FULL = ("53100", "53400")
_NO_ACCESS = ("3D000", "28")
_LAYOUT = ("42703", "42P01", "22P03", "42804", "0A000")
_STATEMENTS_LOST = ("26000", "42P05")  # of a name that is not there, or that another one has


class LayoutChanged(StoreUnavailableError):
    """A table is not as this process remembers it: another one has applied definitions."""


@contextmanager
def translated(database: str) -> Iterator[None]:
    """Raise what the driver raises inside as featurestore's errors; ``database`` is for people."""
    try:
        yield
    except Exception as error:
        known = translation(error, database)
        if known is None:
            raise
        raise known[0] from known[1]


def translation(error: Exception, database: str) -> tuple[FeatureStoreError, BaseException] | None:
    """The error to raise for a driver's ``error``, and its cause; None for what is no driver's."""
    if isinstance(error, sa_exc.SQLAlchemyError | sqlite3.Error | OSError):
        return translate(error, database), _root(error)
    if type(error).__module__.startswith("asyncpg"):
        return translate(error, database), error
    return None


def _root(error: BaseException) -> BaseException:
    """The driver's own error beneath SQLAlchemy's wrapping."""
    original: BaseException | None = getattr(error, "orig", None)
    if original is None:
        return error
    beneath = original.__cause__
    return original if beneath is None else beneath


def translate(error: BaseException, database: str) -> FeatureStoreError:
    """The error to raise for a driver's ``error``."""
    root = _root(error)
    if isinstance(error, sa_exc.TimeoutError):
        return OverloadedError(
            f"No connection to {database} became free in time: all are in use. Try again, or "
            f"give the engine a larger pool."
        )
    if isinstance(root, sqlite3.Error):
        return _sqlite(root, database)
    state = getattr(root, "sqlstate", None) or ""
    said = str(root).partition("\n")[0].rstrip(".")  # details and hints follow: see __cause__
    if state.startswith(_LAYOUT):
        return LayoutChanged(
            f"A table in {database} is not as the registry has it: {said}. Run apply again, and "
            f"repeat the call."
        )
    if state in _STATEMENTS_LOST:
        return FeatureStoreError(
            f"{database} loses prepared statements: {said}. Is it behind a pooler that switches "
            f"servers, as PgBouncer in transaction mode does? Then add "
            f"prepared_statement_cache_size=0 to its URL, as in postgresql://…?"
            f"prepared_statement_cache_size=0."
        )
    if state.startswith(_FULL):
        return StoreUnavailableError(
            f"{database} has no room for this: {said}. Nothing of the transaction was kept; "
            f"repeat it when there is."
        )
    if state.startswith(_NO_ACCESS):
        return StoreUnavailableError(f"{database} refuses the connection: {said}.")
    if state.startswith(_PASSING):
        return StoreUnavailableError(f"{database} broke off: {said}. Trying again may help.")
    # asyncpg has one class for misuse and for connections that are gone, and loses count of its
    # own states where one goes in the middle of a call.
    kind = type(root).__name__
    gone = kind == "InternalClientError" or (kind == "InterfaceError" and "clos" in said)
    if gone or isinstance(root, OSError):
        return StoreUnavailableError(
            f"{database} cannot be reached: {said or type(root).__name__}. Is it running, "
            f"and is the URL right?"
        )
    return FeatureStoreError(f"{database} refused a statement: {root}")


def _sqlite(error: sqlite3.Error, database: str) -> FeatureStoreError:
    text = str(error)
    if "is full" in text or "disk I/O" in text:
        return StoreUnavailableError(
            f"{database} cannot be written: {text}. Nothing of the transaction was kept; repeat it "
            f"when there is room on its disk."
        )
    if "interrupted" in text:
        return StoreUnavailableError(f"{database} broke off: {text}. Trying again may help.")
    if "readonly" in text:
        return StoreUnavailableError(
            f"{database} cannot be written: {text}. May you write to it, and to its folder?"
        )
    if "locked" in text or "busy" in text:
        return StoreUnavailableError(
            f"{database} is locked by another process that writes. Trying again may help."
        )
    if "unable to open" in text:
        return StoreUnavailableError(
            f"{database} cannot be opened: {text}. Does its folder exist, and may you write to it?"
        )
    if "not a database" in text or "malformed" in text:
        return StoreUnavailableError(f"{database} is no SQLite database, or a damaged one: {text}.")
    if "no such column" in text or "no such table" in text or "has no column" in text:
        return LayoutChanged(
            f"A table in {database} is not as the registry has it: {text}. Run apply again, and "
            f"repeat the call."
        )
    if isinstance(error, sqlite3.IntegrityError):
        return SchemaMismatchError(f"{database} refused a row: {text}")
    return FeatureStoreError(f"{database} refused a statement: {text}")


def copy_of(error: BaseException) -> BaseException:
    """The same error for another caller; what is no error of ours is given as it is."""
    if not isinstance(error, FeatureStoreError):
        return error
    copied = type(error).__new__(type(error), *error.args)
    copied.args = error.args
    copied.__dict__.update(error.__dict__)
    copied.__cause__ = error.__cause__
    return copied


def is_undone(error: FeatureStoreError) -> bool:
    """Whether the database itself has said that the statement failed: nothing of it was kept."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        return True
    # Connection errors (class 08) are asyncpg's own words for an answer that did not come.
    state = getattr(cause, "sqlstate", None) or "08"
    return not state.startswith("08")


def lost_to_others(error: FeatureStoreError) -> bool:
    """Whether the database has undone a transaction for the sake of another: deadlocks."""
    return getattr(error.__cause__, "sqlstate", None) in ("40001", "40P01")


def commit_unanswered(database: str) -> StoreUnavailableError:
    """The error for a connection that broke off between a COMMIT and its answer."""
    return StoreUnavailableError(
        f"{database} broke off before it answered to a COMMIT: whether the transaction was kept "
        f"is not known. Repeat it: files that were loaded are skipped. For anything else the "
        f"ledger (store.loads(), `featurestore loads`) says whether it is there."
    )
