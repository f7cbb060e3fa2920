"""What a forked process has of its parent's stores: their settings, and nothing that is open.

The child has copies of all objects of its parent, and of its threads only the one that forked.
What waits for a thread or a loop would wait for ever there, and connections are still the
parent's: a word on one of them, a goodbye even, would come amid what the parent says. So what
belongs to a loop is made anew in the child, sockets are let go of, and objects that hold something
open are kept for good, since Python would close it with them.

SQLite's locks are the process's, and its library remembers them per file: in a child it takes
locks for its own that only the parent has. When the parent closed the file, the log with the
child's commits was deleted. A file that was open at the fork is refused.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from featurestore.errors import FeatureStoreError

T = TypeVar("T")

_renewals: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()
_sockets: WeakSet[Any] = WeakSet()
_files: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

_kept: list[object] = []
_open_in_parent: set[tuple[int, int]] = set()
_locked_library = False

_WAY_OUT = (
    "Close stores on SQLite before the fork, or start processes by multiprocessing's 'spawn' or "
    "'forkserver'."
)


def renew_after_fork(thing: T, begin_anew: Callable[[T], None]) -> None:
    """Call ``begin_anew`` with ``thing``, if that is still there, in forked processes: before
    anything else runs in them, and after what was given before it."""
    _renewals[thing] = begin_anew


def keep(*things: object) -> None:
    """Hold what the parent has open, so that nothing in this process closes it."""
    if not _kept:
        # The end of the interpreter lets go of what modules hold. It must not of this.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))
    _kept.extend(things)


def opened_socket(driver: Any) -> None:
    """An asyncpg connection is open, of which a child lets go."""
    _sockets.add(driver)


def opened_file(driver: Any, file: str) -> None:
    """An aiosqlite connection uses ``file``, by its full path; empty in memory."""
    _files[driver] = file


def sqlite_at_work() -> None:
    """SQLite was at work for the parent at the fork: a thread may have had locks of the library
    itself, which nobody gives back here."""
    global _locked_library
    _locked_library = True


def parent_had_files() -> bool:
    """Whether this process was forked from one that had SQLite files open."""
    return bool(_open_in_parent or _locked_library)


def check_file(database: str) -> None:
    """Raise :class:`FeatureStoreError` where a SQLite database, by its path or URI, cannot be
    opened in this process because of what its parent had open at the fork. For a thread."""
    file = database.removeprefix("file:").partition("?")[0]
    if _identity(file) in _open_in_parent:
        raise FeatureStoreError(
            f"The SQLite file {file} was open in the process that this one was forked from, and "
            f"what is written to it here could be lost. {_WAY_OUT}"
        )
    if _locked_library:
        raise FeatureStoreError(
            f"The process that this one was forked from was at work with SQLite at that moment, so "
            f"that {file} may never be opened here. {_WAY_OUT}"
        )


def check_process(process: int, what: str) -> None:
    """Raise :class:`FeatureStoreError` where ``what`` was opened in another process."""
    if process != os.getpid():
        raise FeatureStoreError(
            f"{what} was opened before this process was forked and belongs to its parent: open "
            f"another one here."
        )


def _identity(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0  # there is none, or none any more
    return found.st_dev, found.st_ino


def _in_child() -> None:
    for driver in list(_sockets):
        keep(driver)
        _let_go(driver)
    for driver, file in list(_files.items()):
        keep(driver)
        if file and driver._connection is not None:
            _open_in_parent.add(_identity(file))
    _sockets.clear()
    _files.clear()
    for thing, begin_anew in list(_renewals.items()):
        begin_anew(thing)


def _let_go(driver: Any) -> None:
    """Close the child's copy of a socket, of which the parent and the server notice nothing.

    Its number leads nowhere from then on, and is not given to another file.
    """
    transport = getattr(driver, "_transport", None)
    if transport is None or driver.is_closed() or transport.is_closing():
        return
    number = transport.get_extra_info("socket").fileno()
    if number >= 0 and stat.S_ISSOCK(os.fstat(number).st_mode):
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, number, inheritable=False)
        os.close(nowhere)


class ForkLock:
    """A lock that is free in a forked process, whichever thread of the parent had it."""

    def __init__(self) -> None:
        self._begin_anew()
        renew_after_fork(self, ForkLock._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        """As :meth:`threading.Lock.acquire`."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """As :meth:`threading.Lock.release`."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
