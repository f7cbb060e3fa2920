"""What the loads of one call have in common: where they go, and how."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from featurestore.ingest.budget import Budget
from featurestore.ingest.progress import OnProgress
from featurestore.ingest.writer import OnInvalid, Writer
from featurestore.reports import UndoReport
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session

FILES_AT_ONCE = 2
"""Files of an ingest that are loaded side by side, by default: one is read and checked while the
database, on a core of its own, takes in the other."""

Begin = Callable[[], AbstractAsyncContextManager[tuple[Session, RegisteredView]]]
"""A transaction for one load, with the view as it is registered in it."""


@dataclass(frozen=True)
class Job:
    """What all loads of one call have in common. ``undo`` takes back a load by its number."""

    begin: Begin
    undo: Callable[[int], Awaitable[UndoReport]]
    skew: dt.timedelta
    on_invalid: OnInvalid = "raise"
    force: bool = False
    mapping: Mapping[str, str] = field(default_factory=dict)
    progress: OnProgress | None = None
    files_at_once: int = 1
    commit_every: int | None = None
    budget: Budget = field(default_factory=Budget.of)

    def writer(self, session: Session, view: RegisteredView, kind: str, source: str) -> Writer:
        """A writer for one load of the job."""
        return Writer(
            session,
            view,
            kind=kind,
            source=source,
            skew=self.skew,
            on_invalid=self.on_invalid,
            budget=self.budget,
        )
