"""Loads side by side, in processes of their own: the same file, and different ones of one view."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from faults import NAME, VIEW, new_project, opened, rows_table, state, write_file
from loading import Loader, job

import featurestore as fs

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

FILES, ROWS = 6, 3_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All of the same drivers, who come in another order in each."""
    folder = tmp_path_factory.mktemp("files")
    return [
        write_file(
            folder / f"{number}.parquet",
            rows_table(ROWS, first=number * ROWS, stride=[1, 149, 7, 143, 11, 139][number]),
        )
        for number in range(FILES)
    ]


async def one_after_the_other(url: str, files: list[Path]):
    async with opened(url) as store:
        await store.ingest(NAME, [str(path) for path in files], on_invalid="quarantine")
        return await state(store)


@pytest.mark.parametrize("options", [{}, {"commit_every": 700}])
@both
async def test_of_two_loaders_of_one_file_one_loads_and_one_skips(
    featurestore_url: str, files: list[Path], child: Loader, options: dict
):
    wanted = await one_after_the_other(featurestore_url, files[:1])
    for _ in range(3):
        async with opened(featurestore_url, project := new_project()) as store:
            await store.apply([VIEW])
            one = job(featurestore_url, project, files[0], options=options)
            ended = await child.run(one, one)
            assert [end["status"] for end in ended] == [0, 0]
            read = [end["said"].get("rows") for end in ended]
            assert None not in read, ended
            assert (await state(store)).difference(wanted) == ""
            assert sum(read) == sum(entry[3] for entry in wanted.ledger)
            if not options:
                assert sorted(end["said"]["skipped"] for end in ended) == [[False], [True]]


@both
async def test_loaders_of_different_files_of_the_same_keys_do_not_deadlock(
    featurestore_url: str, files: list[Path], child: Loader
):
    """Into a view that is empty, and into one that is not."""
    wanted = await one_after_the_other(featurestore_url, files)
    for begun in (0, 2):
        async with opened(featurestore_url, project := new_project()) as store:
            await store.apply([VIEW])
            for path in files[:begun]:
                await store.ingest(NAME, path, on_invalid="quarantine")
            jobs = [job(featurestore_url, project, path) for path in files[begun:]]
            ended = await child.run(*jobs)
            assert [end["said"].get("skipped") for end in ended] == [[False]] * len(jobs), ended
            found = await state(store)
            # Loads are numbered as they come; which comes first is left open.
            assert found.history.equals(wanted.history)
            assert found.online == wanted.online
            assert sorted(found.ledger) == sorted(wanted.ledger)
            assert sorted(found.rejected, key=repr) == sorted(wanted.rejected, key=repr)


@both
async def test_loaders_of_the_same_files_in_opposite_orders_load_each_once(
    featurestore_url: str, files: list[Path], child: Loader
):
    wanted = await one_after_the_other(featurestore_url, files)
    async with opened(featurestore_url, project := new_project()) as store:
        await store.apply([VIEW])
        ways = [files, files[::-1], [*files[3:], *files[:3]]]
        ended = await child.run(*(job(featurestore_url, project, way) for way in ways))
        assert all("error" not in end["said"] for end in ended), ended
        skipped = [skip for end in ended for skip in end["said"]["skipped"]]
        assert skipped.count(False) == FILES
        found = await state(store)
        assert found.history.equals(wanted.history)
        assert found.online == wanted.online
        assert sorted(found.ledger) == sorted(wanted.ledger)


@both
async def test_many_loads_and_pushes_in_one_process(featurestore_url: str, files: list[Path]):
    wanted = await one_after_the_other(featurestore_url, files)
    row = {"driver_id": 149, "event_timestamp": "", "conv_rate": 1.0, "trips": 1, "city": "Oslo"}
    async with opened(featurestore_url) as store:

        async def push(number: int) -> None:
            moment = fs.Timestamp.python(wanted.history["event_timestamp"][number].as_py())
            await store.push(NAME, [{**row, "driver_id": number, "event_timestamp": moment}])

        await asyncio.gather(
            *(store.ingest(NAME, path, on_invalid="quarantine") for path in files),
            *(push(number) for number in range(20)),
        )
        found = await state(store)
        assert found.online == wanted.online
        assert found.history.num_rows == wanted.history.num_rows + 20
