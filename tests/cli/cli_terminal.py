"""A program on a terminal of its own: what it draws there, and keys that are pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from cli_helpers import command

SECONDS = 60.0
"""How long something may take to appear; far more than it does."""


class Terminal:
    """`featurestore args…`, with standard error on a terminal and standard output in a pipe."""

    def __init__(self, *args: str | Path, columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.drawn = ""
        self.process = subprocess.Popen(
            command(*args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            env=os.environ | {"TERM": "xterm-256color"},
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """All that was drawn, without what steers the terminal."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.drawn)

    def until(self, pattern: str) -> None:
        """Wait until something was drawn that ``pattern`` finds."""
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text[-1_000:]
            assert self._read(0.1) or self.process.poll() is None, self.text[-1_000:]

    def press_ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Wait for the end: the exit status, and standard output."""
        while self._read(SECONDS):
            pass
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        return self.process.wait(timeout=SECONDS), out

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1].rpartition("\r")[2]

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            chunk = os.read(self._ours, 65_536)
        except OSError:  # Linux says so when the other end is closed
            return False
        self.drawn += chunk.decode()
        return bool(chunk)
