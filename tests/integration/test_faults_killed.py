"""Processes that are killed with signal 9 while they load, at points spread over all of it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from faults import NAME, VIEW, State, becomes_idle, new_project, opened, rows_table, spread, state
from faults import write_file as write
from loading import Loader, job
from proxy import Do, Message, Proxy

import featurestore as fs
from featurestore.testing import PostgresServer

ROWS = 4_000
STEPS = [{}, {"commit_every": 1_500}]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("files") / "rows.parquet", rows_table(ROWS))


def killed(ended: list[dict]) -> bool:
    """Whether the one job was killed; otherwise it did what it was to do."""
    (one,) = ended
    if one["status"] == -signal.SIGKILL:
        return True
    assert one["status"] == 0
    assert "error" not in one["said"], one
    return False


async def load_again(store: fs.FeatureStore, path: Path, wanted: State, every: int, story: str):
    """Check what a killed load left, load again, and check that this ends in one state."""
    found = await state(store)
    kept = found.history.num_rows + len(found.rejected)
    assert kept == sum(entry[2] for entry in found.ledger), story
    if every:
        assert kept % every == 0 or kept == ROWS, story
    else:
        assert found.empty or found == wanted, story
    options = {"commit_every": every} if every else {}
    report = await store.ingest(NAME, path, on_invalid="quarantine", **options)
    assert report.rows_read == ROWS - kept, story
    assert report.loads[0].skipped == (kept == ROWS), story
    assert (await state(store)).difference(wanted) == "", story


@pytest.mark.parametrize("options", STEPS)
@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_killed_at_any_message_to_or_from_postgresql(
    featurestore_url: str,
    featurestore_postgres: PostgresServer,
    file: Path,
    child: Loader,
    options: dict,
):
    async with Proxy(featurestore_url) as proxy:
        async with opened(featurestore_url, project := new_project()) as store:
            await store.apply([VIEW])
            assert not killed(await child.run(job(proxy.url, project, file, options=options)))
            wanted = await state(store)
        messages = proxy.seen
        points = spread(25 if not options else 7, messages)
        reached = 0
        # Those that matter most: each COMMIT on its way, and its answer.
        commits = [] if options else ["asked", "answered"]
        for point in [*points, *commits]:
            async with opened(featurestore_url, project := new_project()) as store:
                await store.apply([VIEW])
                start, copied = proxy.seen, False

                async def hook(message: Message, point=point, start=start) -> Do:
                    nonlocal copied
                    copied = copied or message.kind == "CopyData"
                    asked = point == "asked" and copied and message.is_commit
                    answered = point == "answered" and copied and message.is_commit_answer
                    if message.number - start == point or asked or answered:
                        os.kill((await child.pids)[0], signal.SIGKILL)
                        # The server gets what was sent before, the dead client gets nothing.
                        return Do.CUT_AFTER
                    return Do.FORWARD

                proxy.on_message = hook
                reached += killed(await child.run(job(proxy.url, project, file, options=options)))
                proxy.forward()
                await becomes_idle(featurestore_postgres, featurestore_url, 3)
                story = f"killed at message {point} of {messages}"
                await load_again(store, file, wanted, options.get("commit_every", 0), story)
        assert reached > len(points) * 0.8, "it was rarely killed: the test proves little"


@pytest.mark.parametrize("options", STEPS)
async def test_killed_at_any_step_of_sqlite(
    featurestore_url: str, file: Path, child: Loader, options: dict
):
    async def run(store: fs.FeatureStore, **how: object) -> list[dict]:
        one = job(featurestore_url, store.project, file, options=options, step=True, **how)
        return await child.run(one)

    async with opened(featurestore_url) as store:
        ended = await run(store)
        assert not killed(ended)
        steps = ended[0]["said"]["steps"]
        wanted = await state(store)
    assert steps > 30, "the points are the same: the test proves little"
    reached = 0
    kills: list[dict] = [{"kill_at": at} for at in spread(18 if not options else 7, steps)]
    # In the middle of writing a COMMIT: it takes about a millisecond.
    late = [0, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032]
    at_steps = len(kills)
    kills += [{"kill_after_commit": seconds} for seconds in late[:: 1 if not options else 3]]
    for kill in kills:
        async with opened(featurestore_url) as store:
            reached += killed(await run(store, **kill)) and "kill_at" in kill
            await load_again(store, file, wanted, options.get("commit_every", 0), str(kill))
            damage = await check(store)
            assert damage == "ok", (kill, damage)
    assert reached > at_steps * 0.7, "it was rarely killed: the test proves little"


async def check(store: fs.FeatureStore) -> str:
    """SQLite's own opinion of its file."""
    async with store.engine.connect() as connection:
        return (await connection.exec_driver_sql("PRAGMA integrity_check")).scalar_one()


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
async def test_interrupted_by_ctrl_c(
    featurestore_url: str, file: Path, child: Loader, capfd: pytest.CaptureFixture[str]
):
    """Nothing is printed, nothing kept, nothing left running; the loop of the program ends."""
    async with opened(featurestore_url) as store:
        for pause in (0.02, 0.05, 0.08, 0.11):
            running = asyncio.create_task(
                child.run(job(featurestore_url, store.project, file, background=True))
            )
            await asyncio.sleep(0)
            (pid,) = await child.pids
            await asyncio.sleep(pause)
            os.kill(pid, signal.SIGINT)
            (ended,) = await running
            assert ended["said"] in ({"error": "KeyboardInterrupt"}, None), ended
            found = await state(store)
            assert found.empty or found.history.num_rows + len(found.rejected) == ROWS
    assert capfd.readouterr().err == ""
