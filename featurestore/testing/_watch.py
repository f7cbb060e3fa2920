"""Measures the CPU time of each callback of every asyncio loop while a guard is active.

`asyncio.Handle._run`, through which each callback goes, is replaced once for all guards. Two
clock readings and what is done with them cost about 3 µs a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from time import thread_time
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.testing.loop_guard import LoopGuard

# The import system as C code calls it: one function for every module that is not loaded yet.
_importer: Any = sys.modules["_frozen_importlib"]

_PATHS = sysconfig.get_paths()
# site-packages lies within the standard library's folder.
_SITE_PACKAGES = (_PATHS["purelib"], _PATHS["platlib"])
_STANDARD_LIBRARY = (_PATHS["stdlib"], _PATHS["platstdlib"], "<frozen ")
_NOT_OWN = (*_SITE_PACKAGES, *_STANDARD_LIBRARY)

_lock = threading.Lock()
# Replaced, never changed, so that callbacks read it without the lock.
_guards: tuple[LoopGuard, ...] = ()
_undo = contextlib.ExitStack()


class _Thread(threading.local):
    """What is known about one thread: when its callback began, and the time not to count."""

    step_started = 0.0
    uncounted = 0.0
    depth = 0
    section_started = 0.0


_thread = _Thread()


def add(guard: LoopGuard) -> None:
    """Report the callbacks of all loops to the guard, from now on."""
    global _guards
    with _lock:
        if not _guards:
            _install()
        _guards = (*_guards, guard)


def remove(guard: LoopGuard) -> None:
    """Report nothing more to the guard."""
    global _guards
    with _lock:
        _guards = tuple(other for other in _guards if other is not guard)
        if not _guards:
            _undo.close()


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Leave the block's CPU time out of the callback that it is part of."""
    _begin_uncounted()
    try:
        yield
    finally:
        _end_uncounted()


def _begin_uncounted() -> None:
    thread = _thread
    thread.depth += 1
    if thread.depth == 1:
        thread.section_started = thread_time()


def _end_uncounted() -> None:
    thread = _thread
    if thread.depth == 0:  # a collection that was under way when the watch began
        return
    thread.depth -= 1
    if thread.depth == 0:
        thread.uncounted += _open_section(thread_time())


def _open_section(now: float) -> float:
    """How long, in the present callback, nothing has been counted."""
    return now - max(_thread.section_started, _thread.step_started)


def _install() -> None:
    _replace(asyncio.Handle, "_run", _measured(asyncio.Handle._run))
    _replace(_importer, "_find_and_load", _uncounted_import(_importer._find_and_load))
    gc.callbacks.append(_on_collection)
    _undo.callback(gc.callbacks.remove, _on_collection)


def _replace(owner: Any, name: str, value: Any) -> None:
    _undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _measured(run: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
    def _run(self: asyncio.Handle) -> None:
        thread = _thread
        outer, uncounted_before = thread.step_started, thread.uncounted
        thread.step_started = started = thread_time()
        try:
            run(self)
        finally:
            now = thread_time()
            seconds = now - started - (thread.uncounted - uncounted_before)
            if thread.depth:
                seconds -= _open_section(now)
            thread.step_started = outer
            for guard in _guards:
                if seconds > guard.worst_stall or seconds > guard.max_stall:
                    # Naming a place takes long enough to be done only for one to be reported.
                    where = _describe(self) if seconds > guard.max_stall else ""
                    guard.note_step(seconds, where)

    return _run


def _uncounted_import(find_and_load: Callable[..., Any]) -> Callable[..., Any]:
    def _find_and_load(*args: Any) -> Any:
        __tracebackhide__ = True
        _begin_uncounted()
        try:
            return find_and_load(*args)
        finally:
            _end_uncounted()

    return _find_and_load


def _on_collection(phase: str, _info: dict[str, int]) -> None:
    if phase == "start":
        _begin_uncounted()
    else:
        _end_uncounted()


def is_standard_library(path: str) -> bool:
    """Whether the code at that path came with Python."""
    return path.startswith(_STANDARD_LIBRARY) and not path.startswith(_SITE_PACKAGES)


def _describe(handle: asyncio.Handle) -> str:
    task = getattr(getattr(handle, "_callback", None), "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle)
    coroutine: Any = task.get_coro()
    text = f"task {task.get_name()!r}: {getattr(coroutine, '__qualname__', coroutine)}"
    code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
    if code is not None:
        text += f" ({code.co_filename}:{code.co_firstlineno})"
    frames = list(_suspended_frames(coroutine))
    if not frames:
        return f"{text}, up to its end"
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(_NOT_OWN)]
    frame = (own or frames)[-1]
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return f"{text}, up to its await in {frame.f_code.co_qualname} ({place})"


def _suspended_frames(awaitable: Any) -> Iterator[FrameType]:
    """The frames of a suspended coroutine and of what it awaits, outermost first."""
    kinds = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
    while awaitable is not None:
        kind = next((kind for kind in kinds if getattr(awaitable, kind[0], None)), None)
        if kind is None:
            return
        yield getattr(awaitable, kind[0])
        awaitable = getattr(awaitable, kind[1])
