"""Pushes of many callers in few transactions.

A push is sent at once while no other one of its view is under way: a lone caller waits for nobody,
and works in its own task. Pushes that come meanwhile wait; when the one under way has ended, all
of them go as the next, or half where they are many, in the order in which they came. There is no
timer to gather by.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum

from featurestore.errors import (
    FeatureStoreError,
    MigrationRequiredError,
    OverloadedError,
    StoreUnavailableError,
)
from featurestore.storage.counts import Counts
from featurestore.storage.faults import copy_of
from featurestore.storage.limits import Limits
from featurestore.storage.push import PushPlan, Rows
from featurestore.storage.waiting import uninterrupted

GROUP_ROWS = 2_000
"""Rows of one group; what comes on top waits for the next."""

GROUP_VALUES = 20_000
"""Values of one group: sending them keeps the loop for some milliseconds."""

GROUP_BYTES = 4 * 1024 * 1024

HALVED = 128
"""Of so many that wait, half are the next group: else all callers would wait for one answer, and
the database then for all callers. For 1,000 callers that is half as fast again."""

STALLED_SECONDS = 0.25
"""A group that takes so long waits for somebody's lock: others pass it, on other connections."""

CLOSE_SECONDS = 30.0
"""How long groups under way are waited for when their store is closed."""

GROUPS_AT_ONCE = 4
"""Groups of one view under way where they stall. Else it is one: it has all that was waiting."""


class Refusal(Enum):
    """Why nothing was written: the caller has to do something else first."""

    MOVED = "the registry is at another revision"
    UNINDEXED = "the first load of the view has not been"


Written = tuple[int, int]
"""A load's number, and how many of its rows lie ahead of the clock."""

Answer = Written | Refusal | BaseException

Send = Callable[[PushPlan, Sequence[Rows]], Awaitable[Sequence[Written] | Refusal]]
"""Writes the rows of callers as one transaction; an answer for each of them."""


class _Push:
    """A caller that waits: its rows, until when, and where its answer goes."""

    __slots__ = ("answer", "deadline", "group", "plan", "rows", "since", "size")

    def __init__(self, plan: PushPlan, rows: Rows, size: int, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.plan = plan
        self.rows = rows
        self.size = size
        self.since = loop.time()
        self.deadline = self.since + limits.wait_seconds
        self.answer: asyncio.Future[Written | Refusal] = loop.create_future()
        self.group: _Group | None = None


class _Group:
    """Pushes that one transaction writes, and the task that does it."""

    __slots__ = ("_left", "pushes", "task")

    def __init__(self, pushes: Sequence[_Push]) -> None:
        self.pushes = pushes
        self.task: asyncio.Task[None] | None = None
        self._left = len(pushes)
        for push in pushes:
            push.group = self

    async def leave(self, seconds: float | None) -> None:
        """A caller was cancelled. Its rows are on their way to a commit with those of others,
        whose answer it waits for; where nobody else is left, they are taken back."""
        self._left -= 1
        if self.task is None or self.task.done():
            return
        if not self._left:
            self.task.cancel()
        with suppress(TimeoutError):
            await uninterrupted(_ended(self.task), seconds=seconds)


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


class Gatherer:
    """The pushes of one view: those that wait, and how many groups are under way."""

    def __init__(
        self, counts: Counts, send: Send, *, at_once: int, commit_seconds: float | None
    ) -> None:
        self._counts = counts
        self._send = send
        self._at_once = at_once
        self._commit_seconds = commit_seconds
        self._waiting: deque[_Push] = deque()
        self._under_way = 0
        self._began = 0.0  # the latest of those under way
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(self, plan: PushPlan, rows: Rows, size: int) -> Written | Refusal:
        """Write the rows of one caller, with those of others where it has to wait.

        Raises :class:`OverloadedError` where too many wait, or it has waited too long; nothing of
        the rows was written then.
        """
        if self._waiting or (self._under_way and not self._may_pass()):
            return await self._wait(_Push(plan, rows, size, self._counts.limits))
        self._begun()
        try:
            answer = await self._sent(plan, [rows])
        finally:
            self._ended()
        return answer if isinstance(answer, Refusal) else answer[0]

    def _begun(self) -> None:
        self._under_way += 1
        self._began = asyncio.get_running_loop().time()

    def _may_pass(self) -> bool:
        """Whether all that are under way have stalled, and one more may go beside them."""
        under_way = asyncio.get_running_loop().time() - self._began
        return self._under_way < self._at_once and under_way >= STALLED_SECONDS

    async def _sent(self, plan: PushPlan, callers: Sequence[Rows]) -> Sequence[Written] | Refusal:
        self._counts.begin(len(callers))
        try:
            return await self._send(plan, callers)
        finally:
            self._counts.end()

    # --- waiting --------------------------------------------------------------------------

    async def _wait(self, push: _Push) -> Written | Refusal:
        self._counts.enter()
        self._waiting.append(push)
        if self._timer is None:
            self._set_timer()
        try:
            return await push.answer
        except asyncio.CancelledError:
            if not push.answer.cancelled():
                push.answer.exception()  # it came too late to be raised
            elif push.group is not None:
                await push.group.leave(self._commit_seconds)
            else:
                self._counts.leave(1)
                push.rows = ()  # it stays in its place until those before it are gone
            raise

    def _first(self) -> _Push | None:
        """Who has waited longest; those that were cancelled are dropped."""
        waiting = self._waiting
        while waiting and waiting[0].answer.done():
            waiting.popleft()
        return waiting[0] if waiting else None

    def _set_timer(self) -> None:
        first = self._first()
        if self._timer is not None or first is None:
            return
        at = first.deadline
        if self._under_way < self._at_once:
            at = min(at, first.since + STALLED_SECONDS)
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        """Give up those that have waited too long, who stand in front; let the others pass what
        has stalled."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while (first := self._first()) is not None and first.deadline <= now:
            self._counts.leave(1)
            _tell([first], [self._counts.late()])
        stalled = first is not None and first.since + STALLED_SECONDS <= now
        if stalled and self._under_way < self._at_once:
            self._start()
        self._set_timer()

    # --- groups ---------------------------------------------------------------------------

    def _ended(self) -> None:
        self._under_way -= 1
        if self._first() is not None:
            self._start()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        group = _Group(self._taken())
        self._begun()
        group.task = asyncio.get_running_loop().create_task(
            self._run(group), name="featurestore push"
        )
        self._tasks.add(group.task)
        group.task.add_done_callback(self._tasks.discard)

    def _taken(self) -> list[_Push]:
        """The next group: pushes of one plan, in the order in which they came."""
        waiting = self._waiting
        plan = waiting[0].plan
        taken: list[_Push] = []
        rows = size = 0
        most = min(GROUP_ROWS, GROUP_VALUES // len(plan.columns))
        pushes = len(waiting) if len(waiting) < HALVED else len(waiting) // 2
        while (first := self._first()) is not None and first.plan is plan:
            rows += len(first.rows)
            size += first.size
            if taken and (rows > most or size > GROUP_BYTES or len(taken) >= pushes):
                break
            taken.append(waiting.popleft())
        self._counts.leave(len(taken))
        return taken

    async def _run(self, group: _Group) -> None:
        answers: Sequence[Answer] = ()
        try:
            answers = await self._answers(group.pushes)
        except Exception as error:  # noqa: BLE001 - it is raised by each that waits for it
            answers = [error] * len(group.pushes)
        finally:
            # The next group is sent before these callers go on: the database works meanwhile.
            self._ended()
            if not answers:  # this task was cancelled, with its loop or store
                answers = [self._given_up() for _ in group.pushes]
            _tell(group.pushes, answers)
            # They know their group: a circle of the two would wait for the garbage collector.
            group.pushes = ()

    async def _answers(self, pushes: Sequence[_Push]) -> list[Answer]:
        """Write the rows of pushes, as one where that goes well."""
        try:
            answer = await self._sent(pushes[0].plan, [push.rows for push in pushes])
        except FeatureStoreError as error:
            passing = StoreUnavailableError | OverloadedError | MigrationRequiredError
            if len(pushes) == 1 or isinstance(error, passing):
                # An error of its own for each: tracebacks grow where it is raised.
                return [copy_of(error) for _ in pushes]
            # What one caller's rows have broken must not break the others.
            half = len(pushes) // 2
            first = await self._answers(pushes[:half])
            return first + await self._answers(pushes[half:])
        return [answer] * len(pushes) if isinstance(answer, Refusal) else list(answer)

    async def close(self) -> None:
        """Tell those that wait that nothing was written. Groups under way end; where one takes
        too long, it is broken off."""
        while (first := self._first()) is not None:
            self._counts.leave(1)
            _tell([first], [self._closed()])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"The store on {self._counts.label} was closed before the push was sent: it was not "
            f"written."
        )

    def _given_up(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"The push to {self._counts.label} was broken off before its answer came; the ledger "
            f"(store.loads()) says whether it was written."
        )


def _tell(pushes: Sequence[_Push], answers: Sequence[Answer]) -> None:
    for push, answer in zip(pushes, answers, strict=True):
        if push.answer.done():
            continue
        if isinstance(answer, BaseException):
            push.answer.set_exception(answer)
        else:
            push.answer.set_result(answer)
