"""Stores before and after a fork, in real processes: the child never waits for what is not there,
never speaks on its parent's connections, and the parent goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from featurestore.testing import PostgresServer

PROGRAM = Path(__file__).with_name("forking.py")
SECONDS = 120

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

IS_OPEN = "FeatureStoreError: The SQLite file {file} was open in the process that"
PARENTS = "FeatureStoreError: The {what} was opened before this process was forked"


def run(case: str, url: str) -> list[str]:
    """What the children of the case have said, once all has gone well in the parent."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", PROGRAM, case, url],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def is_open(url: str) -> str:
    return IS_OPEN.format(file=url.removeprefix("sqlite:///"))


def all_begin(lines: list[str], start: str, count: int) -> bool:
    return len(lines) == count and all(line.startswith(start) for line in lines)


@both
def test_a_store_that_was_used_before(featurestore_url: str):
    lines = run("used_before", featurestore_url)
    if featurestore_url.startswith("sqlite"):
        assert all_begin(lines, is_open(featurestore_url), 3)
        assert "'spawn' or 'forkserver'" in lines[0]
    else:
        assert lines == ["works"] * 3


@both
@pytest.mark.parametrize("case", ["unused_before", "closed_before"])
def test_a_store_that_has_nothing_open_works(featurestore_url: str, case: str):
    assert set(run(case, featurestore_url)) == {"works"}


@both
def test_another_store_in_the_child(featurestore_url: str):
    lines = run("another_in_the_child", featurestore_url)
    if featurestore_url.startswith("sqlite"):
        assert all_begin(lines, is_open(featurestore_url), 1)
    else:
        assert lines == ["works"]


@both
def test_a_transaction_and_an_iterator_stay_with_the_parent(featurestore_url: str):
    lines = run("under_way", featurestore_url)
    assert all_begin(lines[:2], PARENTS.format(what="transaction"), 2)
    assert all_begin(lines[2:], PARENTS.format(what="iterator"), 1)


@both
def test_a_child_that_leaves_a_block_of_its_parent_leaves_the_work_to_it(featurestore_url: str):
    lines = run("leaving_blocks", featurestore_url)
    assert all_begin(lines, PARENTS.format(what="transaction"), 1)


@both
def test_a_source_of_a_stream_that_forks(featurestore_url: str):
    lines = run("streaming", featurestore_url)
    assert all_begin(lines, PARENTS.format(what="stream"), 1)


@both
@pytest.mark.slow
def test_a_fork_while_threads_are_at_work(featurestore_url: str):
    lines = run("while_threads_work", featurestore_url)
    if featurestore_url.startswith("sqlite"):
        assert all_begin(lines, is_open(featurestore_url), 12)
    else:
        assert lines == ["works"] * 12


@both
def test_a_borrowed_engine_is_for_its_owner_to_begin_anew(featurestore_url: str):
    lines = run("borrowed", featurestore_url)
    refused = "FeatureStoreError: The engine that the store on "
    if featurestore_url.startswith("sqlite"):
        assert all_begin(lines, is_open(featurestore_url), 1)
    else:
        assert lines[0] == "0 views"
        assert lines[1].startswith(refused)
        assert "dispose(close=False)" in lines[1]
        assert lines[2:] == ["works"]


def test_a_database_in_memory_stays_with_its_process():
    lines = run("in_memory", "")
    assert lines[0] == "works"
    assert all_begin(lines[1:], "FeatureStoreError: sqlite+aiosqlite:// is a database in memory", 1)


@both
def test_a_store_with_await(featurestore_url: str):
    lines = run("with_await", featurestore_url)
    if featurestore_url.startswith("sqlite"):
        assert all_begin(lines[:1], is_open(featurestore_url), 1)
    else:
        assert lines[0] == "works"
    assert all_begin(lines[1:], PARENTS.format(what="transaction"), 1)


@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
def test_a_server_notices_that_a_parent_is_gone_though_its_child_lives(
    featurestore_url: str, featurestore_postgres: PostgresServer
):
    """Else what the parent has locked would stay so for as long as the child lives."""
    database = sa.make_url(featurestore_url).database
    command = [sys.executable, PROGRAM, "parent_dies", featurestore_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        try:
            assert parent.wait(SECONDS) == 0
            deadline = time.monotonic() + 10
            while featurestore_postgres.activity(str(database)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            parent.kill()
            assert parent.stdin is not None
            parent.stdin.close()  # which is what the child waits for


@both
def test_processes_of_multiprocessing_as_torch_makes_them(featurestore_url: str):
    assert run("multiprocessing_fork", featurestore_url) == []
