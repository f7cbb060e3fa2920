"""A load that is cancelled while it waits, for the first time, the second, … the last: all of it
is kept or nothing, and loading again ends in the state of one undisturbed load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cancelling import How, by_scope, by_task, by_task_twice, cancelled_at, waits_of
from faults import (
    NAME,
    Complaints,
    State,
    becomes_idle,
    checked_out,
    opened,
    rows_table,
    spread,
    state,
    write_file,
)

from featurestore.testing import PostgresServer

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

ROWS = 1_800


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "rows.parquet"
    return write_file(path, rows_table(ROWS, bad_every=397), groups=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "points", "options"),
    [
        (by_task, 40, {}),
        (by_task_twice, 6, {}),
        (by_scope, 8, {}),
        (by_task, 10, {"commit_every": 700}),
        (by_scope, 5, {"commit_every": 700}),
    ],
)
@both
async def test_cancelled_at_any_await(
    featurestore_url: str,
    request: pytest.FixtureRequest,
    file: Path,
    how: How,
    points: int,
    options: dict,
):
    postgres: PostgresServer | None = None
    if featurestore_url.startswith("postgresql"):
        postgres = request.getfixturevalue("featurestore_postgres")
    options = {"on_invalid": "quarantine", **options}
    async with opened(featurestore_url) as store:
        waits = await waits_of(store.ingest(NAME, file, **options))
        wanted = await state(store)
    assert not wanted.empty
    assert waits > 40, "the points are the same: the test proves little"
    broken_off = 0
    at = spread(points, waits)
    with Complaints():
        for wait in at:
            async with opened(featurestore_url) as store:
                broken_off += await cancelled_at(wait, how, store.ingest(NAME, file, **options))
                story = f"cancelled at wait {wait} of {waits}"
                assert checked_out(store) == 0, story
                if postgres is not None:
                    await becomes_idle(postgres, featurestore_url)
                found = await state(store)
                if "commit_every" not in options:
                    assert found.empty or found == wanted, story
                assert_in_steps(found, options.get("commit_every"), story)
                async with asyncio.timeout(30):
                    await store.ingest(NAME, file, **options)
                assert (await state(store)).difference(wanted) == "", story
    assert broken_off > len(at) / 2, "it was rarely broken off: the test proves little"


def assert_in_steps(found: State, every: int | None, story: str) -> None:
    """What a load that was broken off left agrees with itself, whole steps of it."""
    kept = found.history.num_rows + len(found.rejected)
    read = sum(entry[2] for entry in found.ledger)
    assert kept == read, story
    if every is not None:
        assert read % every == 0 or read == ROWS, story
