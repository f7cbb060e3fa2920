"""One export into a folder at a time, whichever process it is of."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import SourceError
from featurestore.export.copy import LOCK

if sys.platform == "win32":
    import msvcrt

    def _take(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; :class:`SourceError` where another export has it.

    The system lets go of it with the process, however that ends. For a thread.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SourceError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        try:
            _take(number)
        except OSError as error:
            raise SourceError(
                f"Another export into {folder} is under way; try again when it has ended."
            ) from error
        yield
    finally:
        os.close(number)
