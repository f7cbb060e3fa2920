"""Several workers on one port: a parent that starts them, replaces those that die, and ends them.

Each worker listens on a socket of its own (SO_REUSEPORT), and the system spreads connections
over them; on a single socket, whoever wakes first takes most. The parent holds the port with a
socket that does not listen. A worker that dies takes no waiting connections with it but its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from featurestore.server.limits import ServerLimits
from featurestore.server.running import Server, Serving, bind, log_to_stderr, run_loop, serve

FIRST_PAUSE = 0.5
LAST_PAUSE = 30.0
"""Seconds until a worker that died is replaced; twice as long each time that it dies young."""

YOUNG_SECONDS = 30.0

KILL_SECONDS = 10.0
"""How long a worker may take beyond its own deadlines before it is killed."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STARTED = b"started\n"

Say = Callable[[str], None]


async def supervise(
    serving: Serving,
    bound: socket.socket,
    say: Say,
    on_started: Callable[[], None],
    on_ending: Callable[[], None],
) -> None:
    """Run the workers until SIGTERM or SIGINT; the second of them ends all at once.

    ``say`` tells of workers that die; ``on_started`` is called once all have begun, and
    ``on_ending`` at the first signal.
    """
    with tempfile.TemporaryDirectory(prefix="featurestore-") as folder:
        serving = replace(serving, folder=Path(folder))
        supervisor = _Supervisor(serving, bound, say, on_started, on_ending)
        await supervisor.run()


class _Supervisor:
    def __init__(
        self,
        serving: Serving,
        bound: socket.socket,
        say: Say,
        on_started: Callable[[], None],
        on_ending: Callable[[], None],
    ) -> None:
        self._serving = serving
        self._bound = bound
        self._say = say
        self._on_started = on_started
        self._on_ending = on_ending
        self._ending = asyncio.Event()
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._started: set[int] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for one in _SIGNALS:
            loop.add_signal_handler(one, self._end, one)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._serving.workers):
                    group.create_task(self._keep(number))
        finally:
            for one in _SIGNALS:
                loop.remove_signal_handler(one)

    def _end(self, number: int) -> None:
        if not self._ending.is_set():
            self._ending.set()
            self._on_ending()
            return
        for process in self._running.values():
            _kill(process)
        shutil.rmtree(str(self._serving.folder), ignore_errors=True)
        os.write(2, b"Ended at once: requests under way had no answer.\n")
        os._exit(128 + number)

    async def _keep(self, number: int) -> None:
        """Have a worker of this number run until the end."""
        pause = FIRST_PAUSE
        while not self._ending.is_set():
            began = time.monotonic()
            status = await self._run_one(number)
            if self._ending.is_set():
                return
            pause = FIRST_PAUSE if time.monotonic() - began > YOUNG_SECONDS else pause
            self._say(
                f"Worker {number} ended ({_words(status)}); another one starts in {pause:g} s."
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _run_one(self, number: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "featurestore.server.workers"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the parent, which passes it on.
            start_new_session=True,
        )
        self._running[number] = process
        try:
            assert process.stdin is not None
            process.stdin.write(_written(replace(self._serving, number=number), self._bound))
            reading = asyncio.create_task(self._hear(number, process))
            ending = asyncio.create_task(self._ending.wait())
            waiting = asyncio.create_task(process.wait())
            await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await self._stop(process, waiting)
            ending.cancel()
            reading.cancel()
            await asyncio.wait([ending, reading])
            return await waiting
        finally:
            if process.returncode is None:
                _kill(process)
            del self._running[number]

    async def _stop(self, process: asyncio.subprocess.Process, waiting: asyncio.Task[int]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait([waiting], timeout=2 * self._serving.limits.seconds + KILL_SECONDS)
        if not waiting.done():
            _kill(process)

    async def _hear(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        if await process.stdout.readline() != _STARTED:
            return
        everybody = range(self._serving.workers)
        before = self._started.issuperset(everybody)
        self._started.add(number)
        if not before and self._started.issuperset(everybody):
            self._on_started()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _words(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _written(serving: Serving, bound: socket.socket) -> bytes:
    """What a worker reads from its standard input; the URL is in no list of processes so."""
    document = {
        **asdict(serving),
        "folder": str(serving.folder),
        "address": bound.getsockname(),
        "family": int(bound.family),
    }
    return json.dumps(document).encode() + b"\n"


# --- a worker -------------------------------------------------------------------------------


def _read() -> tuple[Serving, socket.socket]:
    given: dict[str, Any] = json.loads(sys.stdin.readline())
    address, family = tuple(given.pop("address")), given.pop("family")
    limits = ServerLimits(**given.pop("limits"))
    folder = Path(given.pop("folder"))
    return Serving(**given, limits=limits, folder=folder), bind(address, family, shared=True)


def _main() -> None:
    log_to_stderr()
    serving, bound = _read()

    def started() -> None:
        os.write(1, _STARTED)

    def watch_parent(server: Server) -> None:
        """The parent never writes again: standard input ends with it, and so does its worker."""

        def wait() -> None:
            os.read(0, 1)  # not by sys.stdin, whose lock the interpreter would miss at its end
            server.end()

        threading.Thread(target=wait, name="parent", daemon=True).start()

    run_loop(serve(serving, bound, started, on_made=watch_parent))


if __name__ == "__main__":
    _main()
