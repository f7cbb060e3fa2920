"""Runs a PostgreSQL server for exactly as long as the process that asked for it lives.

`PostgresServer` starts this file by its path in an interpreter of its own; it imports nothing
but the standard library. Its only argument is a JSON object:

    {"folder": str, "account": [uid, gid] | null, "commands": [[str, ...], ...],
     "stop_seconds": float}

The commands run one after the other in `folder`, as `account`. Standard input is a pipe whose
other end only the parent holds: when it closes, because the parent stopped the server or was
killed, the running command is stopped and the folder removed. A command that fails ends the
supervisor with its status and leaves the folder, so that the parent can read the log.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
# A forked child of the parent may hold the pipe open after the parent's death,
# so the parent's identity is looked at as well, this often.
_PARENT_CHECK_SECONDS = 1.0


class _Wakeup:
    """Turns SIGCHLD, SIGTERM and the like into a file descriptor to select on."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.terminated = False
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._terminate)

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)


def _die_with_parent() -> Callable[[], None] | None:
    """What a child calls so that Linux stops it should the supervisor itself be killed."""
    if sys.platform != "linux":
        return None
    # Loaded here, since the child may not be allowed to read the interpreter's files.
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _start(command: list[str], folder: str, account: list[int] | None) -> "subprocess.Popen[bytes]":
    identity: dict[str, Any] = {}
    if account is not None:
        identity = {"user": account[0], "group": account[1], "extra_groups": []}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        # This process has one thread, so running Python between fork and exec is safe.
        preexec_fn=_die_with_parent(),
        **identity,
    )


def _finished(child: "subprocess.Popen[bytes]", wakeup: _Wakeup, parent: int) -> bool:
    """Wait until the child has ended (True) or nobody wants it any more (False)."""
    while child.poll() is None:
        ready, _, _ = select.select([0, wakeup.reader], [], [], _PARENT_CHECK_SECONDS)
        wakeup.drain()
        if 0 in ready or wakeup.terminated or os.getppid() != parent:
            return False
    return True


def _stop(child: "subprocess.Popen[bytes]", seconds: float) -> None:
    child.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: clients are disconnected
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _remove(folder: str) -> None:
    # Backends of a killed server take a moment to notice and may still write.
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def main(plan: dict[str, Any]) -> int:
    """Carry out the plan described in the module's docstring; gives the exit status."""
    parent = os.getppid()
    wakeup = _Wakeup()
    for command in plan["commands"]:
        child = _start(command, plan["folder"], plan["account"])
        if not _finished(child, wakeup, parent):
            _stop(child, plan["stop_seconds"])
            _remove(plan["folder"])
            return 0
        if child.returncode != 0:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
