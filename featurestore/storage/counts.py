"""What callers that are gathered have come to, and how many of them wait: figures and bounds."""

from __future__ import annotations

from bisect import bisect_left

from featurestore.errors import OverloadedError
from featurestore.reports import BATCH_SIZES, GatherStats
from featurestore.storage.limits import Limits


class Counts:
    """The reads of a store, or its pushes, over all views.

    Errors name them as ``what``, and say of one that was refused that it was ``not_done``.
    """

    __slots__ = (
        "_batches", "_not_done", "_overloaded", "_requests", "_rows", "_sizes",
        "_under_way", "_waiting", "_what", "label", "limits",
    )  # fmt: skip

    def __init__(self, limits: Limits, label: str, what: str, not_done: str) -> None:
        self.limits = limits
        self.label = label
        self._what = what
        self._not_done = not_done
        self._waiting = self._under_way = 0
        self._requests = self._rows = self._batches = self._overloaded = 0
        self._sizes = [0] * (len(BATCH_SIZES) + 1)

    def request(self, rows: int) -> None:
        """A caller with so many rows has come."""
        self._requests += 1
        self._rows += rows

    def enter(self) -> None:
        """One more waits; :class:`OverloadedError` where that would be too many."""
        if self._waiting >= self.limits.max_waiting:
            self._overloaded += 1
            raise OverloadedError(
                f"On {self.label} {self._waiting:,} callers wait for their {self._what} already: "
                f"this one was {self._not_done}; try again later."
            )
        self._waiting += 1

    def leave(self, callers: int) -> None:
        """So many wait no more."""
        self._waiting -= callers

    def late(self) -> OverloadedError:
        """The error for one that has waited too long."""
        self._overloaded += 1
        return OverloadedError(
            f"The {self._what} has waited {self.limits.wait_seconds:g} seconds for its turn on "
            f"{self.label} and was {self._not_done}; try again later."
        )

    def begin(self, callers: int) -> None:
        """A statement for so many of them is sent."""
        self._batches += 1
        self._sizes[bisect_left(BATCH_SIZES, callers)] += 1
        self._under_way += 1

    def end(self) -> None:
        """It was answered, or has failed."""
        self._under_way -= 1

    def stats(self) -> GatherStats:
        """All of it."""
        return GatherStats(
            self._requests,
            self._rows,
            self._batches,
            tuple(self._sizes),
            self._waiting,
            self._under_way,
            self._overloaded,
        )
