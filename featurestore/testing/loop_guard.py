"""A guard that fails code which blocks the event loop.

::

    with loop_guard(max_stall=0.05) as guard:
        asyncio.run(main())            # LoopBlockedError at the end of the block, if it was blocked
    print(guard.worst_stall)           # seconds of CPU that the longest callback took

Two things block a loop. Calls that wait (`time.sleep`, files, sockets, sqlite3, locks) raise
`blockbuster.BlockingError` where they are made on a thread with a running loop; they are kept as
well, so that catching that error hides nothing. Computation is measured: the CPU time that the
loop's own thread spends in one callback, which a busy machine does not change. Loops of all
threads are guarded, a portal's too.

Not counted are the time in imports (they happen once) and in the garbage collector (which hits
an innocent callback), nor anything within `allow_blocking()`.

Out of reach are loops whose callbacks are not Python's own (uvloop: its blocking calls are found,
its CPU time is not measured), and C code that waits for threads of its own with the loop's thread
asleep. Name the entry points of such code in `forbid`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from featurestore.testing._blocking import BlockingDetector

__all__ = [
    "BlockingCall",
    "LoopBlockedError",
    "LoopGuard",
    "Stall",
    "allow_blocking",
    "loop_guard",
]

DEFAULT_MAX_STALL = 0.1

_SHOWN = 10

_ADVICE = (
    "Hand such work to a thread (asyncio.to_thread) or cut it into smaller steps. Where it is "
    "meant: `with allow_blocking():` around it; for a whole test @pytest.mark.allow_blocking, "
    "or @pytest.mark.loop_guard(max_stall=seconds)."
)

blocking_is_allowed: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "featurestore_blocking_is_allowed", default=False
)


class LoopBlockedError(AssertionError):
    """The event loop was blocked; the message names each place."""


@dataclass(frozen=True)
class Stall:
    """A callback that kept the loop's thread busy for longer than the guard allows."""

    seconds: float
    limit: float
    where: str

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s of CPU (limit {self.limit:.3f} s) in {self.where}"


@dataclass(frozen=True)
class BlockingCall:
    """A call that waits, made on a thread whose loop was running."""

    function: str
    where: str

    def __str__(self) -> str:
        return f"blocking call of {self.function} {self.where}"


@dataclass
class LoopGuard:
    """What a guard found, and the guard itself: active within `with guard:`.

    `max_stall` is the CPU time in seconds that one callback may take; `blocking=False` leaves the
    calls alone and measures only. `forbid` names more functions that must not be called on a
    loop, as `module:name` or `module:Class.name`; `allow` names functions below which anything
    may be called, as `end/of/path.py:function`.

    Guards may be nested: each judges by its own rules, and they end in reverse order. Leaving the
    block raises nothing: `check()` does, and `loop_guard()` calls it.
    """

    max_stall: float = DEFAULT_MAX_STALL
    blocking: bool = True
    forbid: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    worst_stall: float = field(default=0.0, init=False)
    findings: list[Stall | BlockingCall] = field(default_factory=list, init=False)
    _detector: BlockingDetector | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.max_stall > 0:
            raise ValueError(f"max_stall is a positive number of seconds, not {self.max_stall!r}")

    def __enter__(self) -> Self:
        from featurestore.testing import _watch

        if self.blocking:
            from featurestore.testing._blocking import BlockingDetector

            self._detector = BlockingDetector(forbid=self.forbid, allow=self.allow)
            self._detector.start(self._note_call)
        _watch.add(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from featurestore.testing import _watch

        _watch.remove(self)
        if self._detector is not None:
            self._detector.stop()
            self._detector = None

    @property
    def stalls(self) -> list[Stall]:
        """The callbacks that took longer than `max_stall`."""
        return [found for found in self.findings if isinstance(found, Stall)]

    @property
    def blocking_calls(self) -> list[BlockingCall]:
        """The calls that were refused."""
        return [found for found in self.findings if isinstance(found, BlockingCall)]

    def describe(self, first: int = 0) -> str:
        """The findings from number `first` on, in words; empty where there are none."""
        found = Counter(str(each) for each in self.findings[first:])
        if not found:
            return ""
        lines = [f"- {text}" + (f", {n} times" if n > 1 else "") for text, n in found.items()]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"- and {len(lines) - _SHOWN} more"]
        return "\n".join(["The event loop was blocked:", *lines, _ADVICE])

    def check(self) -> None:
        """Raise `LoopBlockedError` if anything was found."""
        if self.findings:
            raise LoopBlockedError(self.describe())

    def note_step(self, seconds: float, where: str) -> None:
        """Take the measure of one callback (called by the watch, from any thread)."""
        self.worst_stall = max(self.worst_stall, seconds)
        if seconds > self.max_stall:
            self.findings.append(Stall(seconds, self.max_stall, where))

    def _note_call(self, function: str, where: str) -> None:
        self.findings.append(BlockingCall(function, where))


@contextlib.contextmanager
def loop_guard(
    max_stall: float = DEFAULT_MAX_STALL,
    *,
    blocking: bool = True,
    forbid: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> Iterator[LoopGuard]:
    """Guard the loops that run during the block, and raise `LoopBlockedError` at its end.

    The parameters are those of `LoopGuard`, which is what the block gets. An error that leaves
    the block by itself is not replaced. Blocking calls need `pip install 'featurestore[testing]'`.
    """
    guard = LoopGuard(max_stall, blocking, tuple(forbid), tuple(allow))
    with guard:
        yield guard
    guard.check()


@contextlib.contextmanager
def allow_blocking() -> Iterator[None]:
    """Let the block do what guards forbid, for it is meant: a test that writes its input, say.

    It is for code without `await`: while it waits, other tasks of its loop are not measured either.
    """
    from featurestore.testing import _watch

    token = blocking_is_allowed.set(True)
    try:
        with _watch.uncounted():
            yield
    finally:
        blocking_is_allowed.reset(token)
