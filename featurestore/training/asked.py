"""What a user asks of a training set, checked before anything is read."""

from __future__ import annotations

import datetime as dt
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from featurestore.errors import DefinitionError, NotFoundError
from featurestore.selection import Features, Request, resolve
from featurestore.storage.marks import Mark, check_mark, mark_at
from featurestore.storage.registry import Catalog
from featurestore.storage.session import Session
from featurestore.training.history import source_of
from featurestore.training.memory import Memory
from featurestore.training.report import OnTraining
from featurestore.training.rule import KnownBy
from featurestore.types import Timestamp, TypeMismatch, ValueMismatch

Engine = Literal["auto", "sql", "duckdb", "daft"]
ReadFrom = Literal["history", "source"]
AsOf = Mark | dt.datetime | str | None

_STATES = (
    "a datetime with a zone, a mark (store.mark()), or the text of either, such as "
    "'2024-05-01T12:00:00+00:00'"
)
_EXTRAS = {"duckdb": ("duckdb", "duckdb"), "daft": ("daft", "distributed")}


@dataclass(frozen=True)
class Asked:
    """The arguments of a training read. ``find`` resolves the features against a registry;
    ``types`` are the columns' types where they are not to be as they are registered now."""

    names: Callable[[Catalog], list[str]]
    find: Callable[[Catalog], Request]
    timestamp_column: str = "event_timestamp"
    engine: str = "auto"
    as_of: AsOf = None
    known_by: str | None = None
    read_from: str | Mapping[str, str] = "history"
    memory: Memory | None = None
    progress: OnTraining | None = None
    types: tuple[pa.DataType, ...] | None = None

    def check(self) -> None:
        """Raise :class:`DefinitionError` for what is no choice, or not installed."""
        engines = get_args(Engine)
        if self.engine not in engines:
            raise DefinitionError(f"engine={self.engine!r} is not known; use {_either(engines)}.")
        if self.engine in _EXTRAS:
            check_installed(self.engine, f"engine={self.engine!r}", " engine='sql' does without.")
        if self.known_by is not None and self.known_by not in get_args(KnownBy):
            raise DefinitionError(
                f"known_by={self.known_by!r}: it is 'created_timestamp', or None."
            )
        chosen = (
            self.read_from.values() if isinstance(self.read_from, Mapping) else [self.read_from]
        )
        for one in chosen:
            if one not in get_args(ReadFrom):
                raise DefinitionError(f"read_from={one!r}: it is 'history' or 'source'.")
        if not isinstance(self.timestamp_column, str):
            raise DefinitionError("timestamp_column must be the name of a column.")
        if self.progress is not None and not callable(self.progress):
            raise DefinitionError(
                f"progress={self.progress!r}: it is a function, called with how far it is."
            )

    def from_source(self, request: Request) -> frozenset[str]:
        """The views that are read from their files; :class:`DefinitionError` where one has none."""
        chosen = self._chosen(request)
        for join in request.joins:
            if join.view.name in chosen:
                source_of(join.view)
        if chosen and self.engine != "daft":
            check_installed("duckdb", "read_from='source'")
        return chosen

    def _chosen(self, request: Request) -> frozenset[str]:
        views = {join.view.name for join in request.joins}
        if not isinstance(self.read_from, Mapping):
            return frozenset(views if self.read_from == "source" else ())
        for name in self.read_from:
            if name not in views:
                raise NotFoundError.of("view", name, views, " among those that are read")
        return frozenset(name for name, place in self.read_from.items() if place == "source")


def check_installed(engine: str, what: str, instead: str = "") -> None:
    """Raise :class:`DefinitionError` where the package of an engine, that ``what`` needs, is not
    there: it says which extra brings it."""
    package, extra = _EXTRAS[engine]
    if importlib.util.find_spec(package) is None:
        raise DefinitionError(
            f"{what} needs the package {package}: pip install 'featurestore[{extra}]'.{instead}"
        )


def _either(choices: tuple[str, ...]) -> str:
    *first, last = (repr(choice) for choice in choices)
    return f"{', '.join(first)} or {last}"


def names_of(features: Features, catalog: Catalog) -> list[str]:
    """The views that features are of, as far as they are known."""
    try:
        request = resolve(features, catalog, full_feature_names=True)
    except (NotFoundError, DefinitionError):
        return []  # the snapshot's registry will tell
    return [join.view.name for join in request.joins]


async def resolve_mark(session: Session, as_of: AsOf) -> Mark | None:
    """The mark that is asked for."""
    if isinstance(as_of, str):
        as_of = _of_text(as_of)
    if isinstance(as_of, Mark):
        await check_mark(session, as_of)
    if as_of is None or isinstance(as_of, Mark):
        return as_of
    try:
        return await mark_at(session, Timestamp.python(as_of))
    except (TypeMismatch, ValueMismatch) as error:
        raise DefinitionError(f"as_of: {error}; it is {_STATES}.") from None


def _of_text(text: str) -> Mark | dt.datetime:
    """A mark, or a time with its zone, from the text of either."""
    if "@" in text:
        return Mark.parse(text)
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise DefinitionError(f"as_of={text!r} is no time and no mark; it is {_STATES}.") from None
    if moment.tzinfo is None:
        raise DefinitionError(f"as_of={text!r} is a time without a zone; it is {_STATES}.")
    return moment
