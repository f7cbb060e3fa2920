"""The loader of ``loader.py`` from the side of a test."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults import NAME

_SCRIPT = Path(__file__).with_name("loader.py")
_SECONDS = 60


class Loader:
    """A process that does jobs in children of its own. ``pids`` are those of the jobs at work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pids: asyncio.Future[list[int]]

    async def run(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """Do the jobs side by side: of each the exit status and what it said."""
        self.pids = asyncio.get_running_loop().create_future()
        await asyncio.to_thread(self._ask, jobs)
        async with asyncio.timeout(_SECONDS):
            self.pids.set_result(await asyncio.to_thread(self._answer))
            ended: list[dict[str, Any]] = await asyncio.to_thread(self._answer)
        return ended

    def _ask(self, jobs: Sequence[dict[str, Any]]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def job(url: str, project: str, path: Path | Sequence[Path], **more: Any) -> dict[str, Any]:
    """A job that loads files, and sets aside what does not fit."""
    paths = [str(path)] if isinstance(path, Path) else [str(one) for one in path]
    options = {"on_invalid": "quarantine", **more.pop("options", {})}
    return {
        "url": url, "project": project, "view": NAME, "path": paths, "options": options, **more
    }  # fmt: skip


@contextmanager
def loader() -> Iterator[Loader]:
    """A loader for as long as the block."""
    # Its forks are fine: the only threads that it has are idle ones of pools.
    command = [sys.executable, "-Wignore::DeprecationWarning", str(_SCRIPT)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Loader(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_SECONDS)
