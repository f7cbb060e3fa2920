"""The process of a job by Daft on Ray: :mod:`.daft_job`, seen from the one that wants its answer.

It runs on the Ray cluster that ``RAY_ADDRESS`` names, or that this process is connected to, else on
a Ray of this machine that ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import sys
from typing import Any

from featurestore.errors import DefinitionError, FeatureStoreError, SourceError
from featurestore.storage.waiting import uninterrupted
from featurestore.training.daft_job import Plan

EXTRA = "featurestore[distributed]"

STOP_SECONDS = 10.0
"""How long a job that was cancelled may take to leave its cluster before it is killed."""

_SHOWN_LINES = 8
_PROGRAM = "from featurestore.training.daft_job import main; main()"


def check_installed() -> None:
    """:class:`DefinitionError` where Daft or Ray is missing."""
    missing = [name for name in ("daft", "ray") if importlib.util.find_spec(name) is None]
    if missing:
        raise DefinitionError(
            f"engine='daft' needs {' and '.join(missing)}: install {EXTRA}, here and on every "
            f"machine of the cluster."
        )


def cluster_address() -> str | None:
    """The cluster to use: what the environment says, or what this process is connected to."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    return None


async def run_job(plan: Plan) -> list[str]:
    """Carry out a plan: the files that were written. A caller that is cancelled ends the job."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=_environment(plan),
        start_new_session=True,
    )
    try:
        said, noise = await process.communicate(plan.text().encode())
    finally:
        if process.returncode is None:
            await uninterrupted(_end(process), seconds=None)
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        lines = noise.decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
        raise FeatureStoreError(
            f"The job on Ray ended with status {process.returncode} and no answer:\n"
            + "\n".join(lines)
        ) from None
    if "error" in answer:
        raise _failure(answer["error"])
    return list(answer["files"])


def _environment(plan: Plan) -> dict[str, str]:
    """What the job's process is started with: nothing is drawn or sent home, and Ray makes no
    environment per worker where the program was started by uv. What the user has set stands."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0"}
    local = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_prestart_worker_first_driver": "0"}
    if plan.address is None:
        # Its ports are open to the network; without a token of ours Ray puts one into the home.
        local |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**quiet, **local, **os.environ, "PYTHONWARNINGS": "ignore"}


async def _end(process: asyncio.subprocess.Process) -> None:
    """Have the job leave its cluster, which then ends its tasks; kill what does not."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.communicate()
                return


def _failure(text: str) -> FeatureStoreError:
    if "No such file" in text or "FileNotFoundError" in text:
        return SourceError(
            f"A file of a copy or of the entity rows is not there for the job on Ray: an export "
            f"has replaced it meanwhile, or the machines of the cluster do not have that folder "
            f"under its path. {text}"
        )
    if "ModuleNotFoundError" in text or "No module named" in text:
        return DefinitionError(
            f"The machines of the cluster do not have what the job needs: install {EXTRA} of this "
            f"version on all of them. {text}"
        )
    return FeatureStoreError(f"The job on Ray failed: {text}")
