"""Loads files in processes of their own, each a fork of one that has imported everything.

It is run by its path. Each line of its input is a list of jobs (JSON); each job is done by a
child. It answers with two lines: the children's ids, and for each how it ended and what it said.

A job has ``url``, ``project``, ``view``, ``path`` and ``options`` of the ingest. ``step`` counts
what SQLite does, and ``kill_at`` kills the child at that count; ``kill_after_commit`` kills it so
many seconds after it began to commit. ``background`` has a task load that nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

import featurestore as fs

# What would be imported late, by each child anew.
for scheme in ("postgresql://host/db", "sqlite://"):
    fs.FeatureStore(scheme)
pa.array([1])

ROWS_A_STEP = 500
INSTRUCTIONS_A_STEP = 20_000


class Steps:
    """Counts statements, rows and work of SQLite, and kills this process at one of them."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.count = 0
        self._rows = 0
        self._kill_at = job.get("kill_at")
        self._after_commit = job.get("kill_after_commit")

    def install(self, store: fs.FeatureStore) -> None:
        @sa.event.listens_for(store.engine.sync_engine, "connect")
        def connected(connection: Any, record: Any) -> None:
            connection.run_async(lambda driver: driver.set_trace_callback(self._statement))
            connection.run_async(
                lambda driver: driver.set_progress_handler(self._worked, INSTRUCTIONS_A_STEP)
            )

    def _statement(self, sql: str) -> None:
        if sql.startswith("INSERT"):
            self._rows += 1
            if self._rows % ROWS_A_STEP:
                return
        self._step()
        if sql == "COMMIT" and self._after_commit is not None:
            threading.Thread(target=self._kill_soon, daemon=True).start()

    def _worked(self) -> int:
        self._step()
        return 0

    def _step(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill_soon(self) -> None:
        time.sleep(self._after_commit)
        os.kill(os.getpid(), signal.SIGKILL)


async def load(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job: what the report says, or the error."""
    steps = Steps(job)
    async with fs.FeatureStore(job["url"], project=job["project"]) as store:
        if job.get("step"):
            steps.install(store)
        loading = asyncio.create_task(store.ingest(job["view"], job["path"], **job["options"]))
        if job.get("background"):
            await asyncio.sleep(60)
        try:
            report = await loading
        except fs.FeatureStoreError as error:
            return {"error": type(error).__name__, "message": str(error)}
    return {
        "skipped": [load.skipped for load in report.loads],
        "rows": report.rows_written,
        "steps": steps.count,
    }


def child(job: dict[str, Any], answer: int) -> None:
    """Do a job in this process and end it."""
    try:
        said = asyncio.run(load(job))
    except KeyboardInterrupt:
        said = {"error": "KeyboardInterrupt"}
    os.write(answer, json.dumps(said).encode())
    os._exit(0)


def start(job: dict[str, Any]) -> tuple[int, int]:
    """Fork a child for a job: its id, and where its answer comes from."""
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(ours)
        child(job, theirs)
    os.close(theirs)
    return pid, ours


def end(pid: int, answer: int) -> dict[str, Any]:
    """Wait for a child: its status, and what it said."""
    with os.fdopen(answer, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status, "said": json.loads(said) if said else None}


def main() -> None:
    for line in sys.stdin:
        children = [start(job) for job in json.loads(line)]
        print(json.dumps([pid for pid, _ in children]), flush=True)
        print(json.dumps([end(*started) for started in children]), flush=True)


if __name__ == "__main__":
    main()
