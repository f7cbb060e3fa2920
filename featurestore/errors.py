"""Every error that featurestore raises, as one tree.

::

    FeatureStoreError
    ├── DefinitionError           a definition, or a change of one, that cannot be
    ├── NotFoundError             a view, feature, service or load that is not registered
    ├── SchemaMismatchError       a column that is missing, unknown or of a type that cannot fit
    ├── InvalidRowsError          rows whose values do not fit
    ├── SourceError               input that is missing, unreadable or damaged
    ├── MigrationRequiredError    a database at another revision than this code
    ├── StoreUnavailableError     the database cannot be reached; trying again may help
    └── OverloadedError           too many callers wait; trying later will help

A message says what is wrong, where, and what to do. The driver's own error stays on
``__cause__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class FeatureStoreError(Exception):
    """Root of the tree: catch it to catch everything that this package raises by itself."""


class DefinitionError(FeatureStoreError):
    """A definition, or the change that it asks for, cannot be."""


class NotFoundError(FeatureStoreError):
    """Something was named that is not there; the message gives the closest names.

    ``name`` is what was asked for and ``candidates`` the closest names, best first.
    """

    def __init__(self, message: str, *, name: str = "", candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.candidates = tuple(candidates)

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], where: str = "") -> NotFoundError:
        """Build the error for a missing ``kind`` among the ``known`` names."""
        known = sorted(known)
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        message = f"There is no {kind} {name!r}{where}."
        if close:
            message += f" Did you mean {' or '.join(map(repr, close))}?"
        elif known:
            message += f" Known: {', '.join(known[:10])}{' …' if len(known) > 10 else ''}."
        else:
            message += " Nothing of the kind is registered: run apply first."
        return cls(message, name=name, candidates=close)


class SchemaMismatchError(FeatureStoreError):
    """A column is missing, unknown, or of a type that cannot fit the view's."""


@dataclass(frozen=True)
class InvalidRow:
    """One rejected row: its number, counted from 0 within the file or call, and why."""

    row: int
    reason: str


class InvalidRowsError(FeatureStoreError):
    """Rows whose values do not fit; nothing of their file or call was kept.

    ``rows`` lists the first of them and ``count`` says how many there were.
    """

    def __init__(self, where: str, rows: Sequence[InvalidRow], count: int | None = None) -> None:
        self.where = where
        self.rows = tuple(rows)
        self.count = len(self.rows) if count is None else count
        noun = "row" if self.count == 1 else "rows"
        lines = [f"{self.count} invalid {noun} in {where}; nothing of it was kept:"]
        lines += [f"  row {bad.row}: {bad.reason}" for bad in self.rows]
        if self.count > len(self.rows):
            lines.append(f"  … and {self.count - len(self.rows)} more")
        super().__init__("\n".join(lines))


class SourceError(FeatureStoreError):
    """Input is missing, unreadable or damaged; the message names it."""


class MigrationRequiredError(FeatureStoreError):
    """The database's schema is older or newer than this code; the message has the command."""


class StoreUnavailableError(FeatureStoreError):
    """The database cannot be reached or broke off; trying again may help."""


class OverloadedError(FeatureStoreError):
    """Too many callers are waiting, or one has waited too long; try again later."""
