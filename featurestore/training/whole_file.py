"""Files that are written whole or not at all, whoever else writes them."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from featurestore.errors import SourceError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """The name of a new file beside ``path``, which takes its place when all went well. For a
    thread.

    A link is followed. :class:`SourceError` where ``path`` cannot be written, or is no file.
    """
    if not os.path.basename(os.fspath(path)):
        raise SourceError(f"{os.fspath(path)!r} names no file.")
    target = os.path.realpath(os.fspath(path))
    try:
        mode = check_target(path)
        folder = os.path.dirname(target)
        new = os.path.join(folder, f".featurestore-{secrets.token_hex(8)}.partial")
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield new
            if mode is not None:  # which may be one that nobody writes to
                os.chmod(new, mode)
            os.replace(new, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise
    except OSError as error:
        raise SourceError(
            f"{os.fspath(path)} cannot be written: {error.strerror or error}"
        ) from error


def check_target(path: str | os.PathLike[str]) -> int | None:
    """The permissions of the file that would be replaced, None where there is none yet;
    :class:`SourceError` where it is no file."""
    name = os.fspath(path)
    try:
        found = os.stat(name).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found):
        raise SourceError(f"{name} is a folder: name a file in it.")
    if not stat.S_ISREG(found):
        raise SourceError(f"{name} is no regular file, and would be replaced by one.")
    return stat.S_IMODE(found)
