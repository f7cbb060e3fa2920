"""The guard of the event loop: by itself, and as pytest applies it to tests."""

# What ruff's ASYNC rules forbid is what is tested here.
# ruff: noqa: ASYNC221, ASYNC230, ASYNC240, ASYNC251

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import blockbuster
import pytest
import pytest_asyncio.plugin

import featurestore.testing.plugin
from featurestore.testing import (
    LoopBlockedError,
    LoopGuard,
    allow_blocking,
    loop_guard,
)

# The tests below block loops on purpose, some of them in a pytest within this one.
pytestmark = pytest.mark.allow_blocking


def spin(seconds: float) -> None:
    """Use that much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def spin_in_task() -> None:
    async def busy() -> None:
        spin(0.05)
        await asyncio.sleep(0)

    await asyncio.create_task(busy(), name="busy-one")


async def sleep_on_loop() -> None:
    time.sleep(0.001)


async def nothing() -> None:
    await asyncio.sleep(0.01)


# CPU time


def test_a_stall_is_an_error_that_names_the_task_and_its_place() -> None:
    with pytest.raises(LoopBlockedError) as caught, loop_guard(max_stall=0.02) as guard:
        asyncio.run(spin_in_task())

    message = str(caught.value)
    assert "limit 0.020 s" in message
    assert "task 'busy-one': spin_in_task.<locals>.busy" in message
    assert f"{__file__}:" in message
    assert "to_thread" in message
    assert len(guard.stalls) == 1
    assert 0.05 <= guard.worst_stall == guard.stalls[0].seconds


def test_a_stall_in_a_plain_callback_is_found() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(spin, 0.05)
        await asyncio.sleep(0.01)

    with pytest.raises(LoopBlockedError, match=r"<Handle spin\(0.05\)"), loop_guard(0.02):
        asyncio.run(main())


def test_steps_within_the_limit_pass_and_are_measured() -> None:
    with loop_guard(max_stall=0.5) as guard:
        asyncio.run(spin_in_task())

    assert guard.findings == []
    assert 0.05 <= guard.worst_stall < 0.5


def test_loops_of_other_threads_are_guarded() -> None:
    def run_in_thread() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(spin_in_task()))
        thread.start()
        thread.join()

    with pytest.raises(LoopBlockedError, match="busy-one"), loop_guard(0.02):
        run_in_thread()


def test_work_in_a_thread_is_no_stall() -> None:
    async def main() -> None:
        await asyncio.to_thread(spin, 0.1)
        await asyncio.to_thread(time.sleep, 0.1)

    with loop_guard(max_stall=0.05):
        asyncio.run(main())


def test_imports_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import time\n"
        "end = time.thread_time() + 0.1\n"
        "while time.thread_time() < end: pass\n"
        "open(__file__).close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        importlib.import_module("slow_to_import")

    with loop_guard(max_stall=0.05):
        asyncio.run(main())
    del sys.modules["slow_to_import"]


def test_garbage_collection_is_not_counted() -> None:
    class SlowToFree:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            spin(0.1)

    async def main() -> None:
        SlowToFree()
        gc.collect()

    gc.collect()
    with loop_guard(max_stall=0.08):
        asyncio.run(main())


def test_allowed_sections_are_not_counted() -> None:
    async def main() -> None:
        with allow_blocking():
            spin(0.1)
            time.sleep(0.001)
        await asyncio.sleep(0)
        with allow_blocking():
            await asyncio.sleep(0)
            spin(0.1)

    with loop_guard(max_stall=0.05):
        asyncio.run(main())

    async def other() -> None:
        with allow_blocking():
            spin(0.01)
        spin(0.1)

    with pytest.raises(LoopBlockedError), loop_guard(max_stall=0.05):
        asyncio.run(other())


def test_a_loop_within_an_allowed_section_is_not_counted() -> None:
    async def main() -> None:
        spin(0.1)
        time.sleep(0.001)

    with loop_guard(max_stall=0.05), allow_blocking():
        asyncio.run(main())


# Calls


async def open_a_file() -> None:
    open(__file__).close()


async def read_a_path() -> None:
    Path(__file__).read_bytes()


async def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=0.01)


async def run_a_process() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


@pytest.mark.parametrize(
    ("blocking", "function"),
    [
        (sleep_on_loop, "time.sleep"),
        (open_a_file, "builtins.open"),
        (read_a_path, "pathlib.Path.open"),
        (wait_for_a_lock, "lock.acquire"),
        (run_a_process, "subprocess.Popen.__init__"),
    ],
)
def test_a_blocking_call_raises_where_it_is_made(
    blocking: Callable[[], Coroutine[Any, Any, None]], function: str
) -> None:
    with loop_guard() as guard:
        with pytest.raises(blockbuster.BlockingError, match=function):
            asyncio.run(blocking())
        (found,) = guard.blocking_calls
        guard.findings.clear()

    assert found.function.endswith(function)
    assert f"{blocking.__name__} ({__file__}:" in found.where


def test_catching_the_error_hides_nothing() -> None:
    async def main() -> None:
        with contextlib.suppress(Exception):
            time.sleep(0.001)

    found = r"blocking call of time\.sleep in .*main"
    with pytest.raises(LoopBlockedError, match=found), loop_guard():
        asyncio.run(main())


def test_the_blocks_own_error_is_not_replaced() -> None:
    async def main() -> None:
        spin(0.05)
        raise KeyError("its own")

    with pytest.raises(KeyError), loop_guard(max_stall=0.02) as guard:
        asyncio.run(main())
    assert len(guard.stalls) == 1


def test_the_same_finding_is_told_once() -> None:
    async def main() -> None:
        for _ in range(3):
            with contextlib.suppress(blockbuster.BlockingError):
                time.sleep(0.001)

    with pytest.raises(LoopBlockedError) as caught, loop_guard():
        asyncio.run(main())
    assert str(caught.value).count("time.sleep") == 1
    assert "), 3 times\n" in str(caught.value)


def test_blocking_calls_outside_a_loop_pass(tmp_path: Path) -> None:
    with loop_guard():
        time.sleep(0.001)
        (tmp_path / "file").write_text("text")


def test_calls_can_be_left_alone() -> None:
    with loop_guard(blocking=False):
        asyncio.run(sleep_on_loop())


def test_subprocesses_of_asyncio_pass() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "", stderr=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0

    with loop_guard():
        asyncio.run(main())


def test_more_functions_can_be_forbidden() -> None:
    async def main() -> None:
        gc.collect()
        threading.Thread(target=spin, args=(0,)).run()

    with loop_guard():
        asyncio.run(main())
    for name in ("gc:collect", "threading:Thread.run"):
        with (
            pytest.raises(blockbuster.BlockingError, match=name.replace(":", r"\.")),
            loop_guard(forbid=[name]),
        ):
            asyncio.run(main())
    with loop_guard():
        asyncio.run(main())


def test_more_places_can_be_allowed() -> None:
    with loop_guard(allow=[f"{Path(__file__).name}:other,sleep_on_loop"]):
        asyncio.run(sleep_on_loop())


@pytest.mark.parametrize(
    "options",
    [
        {"forbid": ["gc.collect"]},
        {"forbid": ["gc:no_such"]},
        {"forbid": ["no_such_module:function"]},
        {"allow": ["file.py"]},
        {"max_stall": 0},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"module:|path\.py|positive"), loop_guard(**options):
        pass


def test_a_missing_blockbuster_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "featurestore.testing._blocking", raising=False)
    monkeypatch.delattr("featurestore.testing._blocking", raising=False)
    monkeypatch.setitem(sys.modules, "blockbuster", None)
    with pytest.raises(ImportError, match=r"featurestore\[testing\]"), loop_guard():
        pass


def test_guards_nest_and_leave_nothing_behind() -> None:
    before = (time.sleep, open, asyncio.Handle._run, blockbuster.BlockingError.__init__)
    callbacks = list(gc.callbacks)

    with loop_guard(max_stall=0.5) as outer:
        with LoopGuard(max_stall=0.02) as inner:
            asyncio.run(spin_in_task())
        with pytest.raises(blockbuster.BlockingError):
            asyncio.run(sleep_on_loop())
        assert len(inner.stalls) == 1
        assert inner.blocking_calls == []
        assert outer.stalls == []
        assert len(outer.blocking_calls) == 1
        assert outer.worst_stall == inner.worst_stall
        outer.findings.clear()

    after = (time.sleep, open, asyncio.Handle._run, blockbuster.BlockingError.__init__)
    assert before == after
    assert callbacks == gc.callbacks
    asyncio.run(sleep_on_loop())


# The plugin


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a pytest of its own on the given test module, with the given lines in its ini-file."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    # Imported by this run as well, so that the inner one, in this process, finds the same modules.
    plugins = [pytest_asyncio.plugin.__name__, featurestore.testing.plugin.__name__]

    def run(source: str, *ini: str, mode: str = "auto") -> pytest.RunResult:
        pytester.makeini(
            "\n".join(
                [
                    "[pytest]",
                    f"asyncio_mode = {mode}",
                    "asyncio_default_fixture_loop_scope = function",
                    "addopts = --strict-markers --strict-config",
                    *ini,
                ]
            )
        )
        pytester.makepyfile(
            "import asyncio, time, pytest\n"
            "def spin(seconds):\n"
            "    end = time.thread_time() + seconds\n"
            "    while time.thread_time() < end: pass\n" + source
        )
        options = [f"-p{name}" for name in (*plugins, "no:cacheprovider")]
        return pytester.runpytest_inprocess(*options)

    return run


GUARDED = "featurestore_loop_guard = true"


def test_each_kind_of_blocking_fails_the_test(inner: Callable[..., Any]) -> None:
    result = inner(
        """
async def test_sleep():
    time.sleep(0.001)

async def test_open():
    open(__file__)

async def test_spin():
    spin(0.15)

def test_sync_test_with_a_loop_of_its_own():
    async def main():
        spin(0.15)
    asyncio.run(main())

async def test_caught():
    try:
        time.sleep(0.001)
    except Exception:
        pass

async def test_clean():
    await asyncio.to_thread(time.sleep, 0.001)
    await asyncio.to_thread(spin, 0.15)

def test_clean_sync(tmp_path):
    time.sleep(0.001)
    spin(0.15)
    (tmp_path / "file").write_text("text")
""",
        GUARDED,
    )
    result.assert_outcomes(failed=5, passed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*BlockingError: Blocking call to time.sleep",
            "*BlockingError: Blocking call to builtins.open",
            "- 0.* s of CPU (limit 0.100 s) in task *: test_spin (*.py:*",
            "*: test_sync_test_with_a_loop_of_its_own.<locals>.main (*",
            "- blocking call of time.sleep in test_caught (*",
        ]
    )
    result.stdout.no_fnmatch_line("*can_block_predicate*")  # of blockbuster's own source


def test_a_blocking_fixture_is_an_error(inner: Callable[..., Any]) -> None:
    result = inner(
        """
@pytest.fixture
async def blocks_at_the_end():
    yield
    spin(0.15)

async def test_passes(blocks_at_the_end):
    pass
""",
        GUARDED,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_passes*", "*(limit 0.100 s)*"])


def test_a_failing_test_keeps_its_own_error(inner: Callable[..., Any]) -> None:
    result = inner(
        """
async def test_fails():
    spin(0.15)
    assert 1 == 2, "its own"
""",
        GUARDED,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: its own*", "*loop guard*", "*(limit 0.100 s)*"])


def test_markers_and_options_set_the_limit(inner: Callable[..., Any]) -> None:
    result = inner(
        """
async def test_above_the_option():
    spin(0.1)

@pytest.mark.loop_guard(max_stall=0.5)
async def test_below_its_marker(loop_guard):
    spin(0.1)
    await asyncio.sleep(0)
    assert loop_guard.max_stall == 0.5
    assert 0.1 <= loop_guard.worst_stall < 0.5

@pytest.mark.allow_blocking
async def test_allowed():
    time.sleep(0.001)
    spin(0.1)

async def allowed_place():
    time.sleep(0.001)

async def test_allowed_place():
    await allowed_place()

async def test_forbidden():
    import gc
    gc.collect()
""",
        GUARDED,
        "featurestore_loop_guard_max_stall = 0.05",
        "featurestore_loop_guard_allow = test_markers_and_options_set_the_limit.py:allowed_place",
        "featurestore_loop_guard_forbid =",
        "    gc:collect",
        "    gc:get_objects",
    )
    result.assert_outcomes(failed=2, passed=3)
    result.stdout.fnmatch_lines_random(["*(limit 0.050 s)*", "*Blocking call to gc.collect"])


def test_the_marker_takes_nothing_else(inner: Callable[..., Any]) -> None:
    result = inner("@pytest.mark.loop_guard(0.5)\ndef test_wrong(): pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*takes max_stall=seconds and nothing else*"])


def test_without_the_option_nothing_is_guarded(inner: Callable[..., Any]) -> None:
    result = inner(
        """
async def test_blocks(request):
    time.sleep(0.001)
    spin(0.15)
    assert "loop_guard" not in request.fixturenames

@pytest.mark.loop_guard(max_stall=0.1)
async def test_marked():
    spin(0.15)

@pytest.mark.loop_guard(max_stall=0.1)
@pytest.mark.parametrize("seconds", [0, 0.15])
async def test_marked_with_parameters(seconds):
    spin(seconds)

async def test_asks_for_it(loop_guard):
    spin(0.15)
"""
    )
    result.assert_outcomes(passed=2, failed=3)


def test_feature_store_needs_pytest_asyncio(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_store(feature_store): pass")
    result = pytester.runpytest_inprocess("-p", "featurestore.testing.plugin")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*needs pytest-asyncio: pip install 'featurestore[[]testing]'*"])


def test_featurestore_url_is_sqlite_by_default(inner: Callable[..., Any]) -> None:
    result = inner(
        """
from pathlib import Path

def test_default(featurestore_url, tmp_path):
    scheme, path = featurestore_url.split(":///")
    assert scheme == "sqlite"
    assert Path(path).parent.is_dir()
    assert not Path(path).exists()
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize("featurestore_url", ["oracle"], indirect=True)
def test_unknown(featurestore_url):
    pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*'sqlite' or 'postgresql', not 'oracle'*"])


def test_the_plugin_is_light() -> None:
    """Whoever has featurestore installed imports the plugin with each run of pytest."""
    script = (
        "import sys, pytest, featurestore\n"
        "before = set(sys.modules)\n"
        "import featurestore.testing.plugin\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*(new - sys.stdlib_module_names))\n"
        "print('asyncio' in new)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["featurestore", "False"]
