"""What a feature store holds, as frozen values: entities, fields, views, services, sources.

Nothing here does I/O. A definition that cannot be is refused as it is made, by a
:class:`~featurestore.errors.DefinitionError` that says what is wrong, where, and what to do.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from featurestore.errors import DefinitionError, NotFoundError
from featurestore.types import FeatureType, is_key_type
from featurestore.urls import without_secrets

K = TypeVar("K")
V = TypeVar("V")

MAX_NAME = 40
_UNITS = {"days": "d", "hours": "h", "minutes": "min"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SYSTEM_COLUMNS = frozenset(
    # PostgreSQL's of every table, then SQLite's names for the row number.
    ("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid", "rowid")
)


class FrozenMap(Mapping[K, V], Generic[K, V]):
    """A mapping that is a value: hashable, equal to any mapping of the same items."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._items: dict[K, V] = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


_EMPTY: FrozenMap[str, str] = FrozenMap()


def check_name(kind: str, name: object) -> str:
    """``name`` where it may be one, else a :class:`DefinitionError` that says why not."""
    if not isinstance(name, str):
        raise DefinitionError(f"The name of {_a(kind)} must be text, not {type(name).__name__}.")
    if not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r} cannot name {_a(kind)}: names begin with a small letter and hold only "
            f"small letters, digits and single underscores."
        )
    if "__" in name:
        raise DefinitionError(f"{name!r} cannot name {_a(kind)}: '__' separates view and feature.")
    if len(name) > MAX_NAME:
        raise DefinitionError(
            f"{name!r} cannot name {_a(kind)}: it has {len(name)} characters; {MAX_NAME} are the "
            f"most."
        )
    if name in _SYSTEM_COLUMNS:
        raise DefinitionError(
            f"{name!r} cannot name {_a(kind)}: databases use it for a system column."
        )
    return name


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _text(where: str, what: str, value: object) -> str:
    if not isinstance(value, str):
        raise DefinitionError(f"{where}: {what} must be text, not {type(value).__name__}.")
    if "\0" in value:
        raise DefinitionError(f"{where}: {what} must not hold NUL (U+0000).")
    return value


def _tags(where: str, tags: object) -> FrozenMap[str, str]:
    if not isinstance(tags, Mapping):
        raise DefinitionError(f"{where}: tags must be a mapping of text to text.")
    return FrozenMap(
        {_text(where, "a tag's name", k): _text(where, f"tag {k!r}", v) for k, v in tags.items()}
    )


def _set(target: object, **values: Any) -> None:
    """Normalise attributes of a frozen dataclass as it is made."""
    for name, value in values.items():
        object.__setattr__(target, name, value)


@dataclass(frozen=True)
class Entity:
    """What features are about, and the join keys that name one of its kind.

    Example: ``Entity("driver", join_keys={"driver_id": Int64})``. Key types are Bool, Int32,
    Int64, String, Bytes, Date, Timestamp and Decimal.
    """

    name: str
    join_keys: Mapping[str, FeatureType]
    description: str = ""
    tags: Mapping[str, str] = _EMPTY
    owner: str = ""

    def __post_init__(self) -> None:
        where = f"entity {check_name('entity', self.name)!r}"
        if not isinstance(self.join_keys, Mapping) or not self.join_keys:
            raise DefinitionError(
                f"{where}: join_keys must map one name or several to their types, "
                f'for example {{"{self.name}_id": fs.Int64}}.'
            )
        for key, kind in self.join_keys.items():
            check_name(f"join key of {where}", key)
            if not isinstance(kind, FeatureType):
                raise DefinitionError(f"{where}: join key {key!r} needs a type such as fs.Int64.")
            if not is_key_type(kind):
                raise DefinitionError(
                    f"{where}: join key {key!r} cannot be {kind}; keys are Bool, Int32, Int64, "
                    f"String, Bytes, Date, Timestamp or Decimal."
                )
        _set(
            self,
            join_keys=FrozenMap(self.join_keys),
            description=_text(where, "description", self.description),
            tags=_tags(where, self.tags),
            owner=_text(where, "owner", self.owner),
        )


@dataclass(frozen=True)
class Field:
    """One feature of a view: its name and type."""

    name: str
    type: FeatureType
    description: str = ""
    tags: Mapping[str, str] = _EMPTY

    def __post_init__(self) -> None:
        where = f"field {check_name('field', self.name)!r}"
        if not isinstance(self.type, FeatureType):
            raise DefinitionError(f"{where}: {self.type!r} is no type; use fs.Float64 or the like.")
        _set(
            self,
            description=_text(where, "description", self.description),
            tags=_tags(where, self.tags),
        )


@dataclass(frozen=True, repr=False)
class ParquetSource:
    """Parquet that a view is loaded from: a file, glob, folder or URL, or several of them.

    ``field_mapping`` renames columns of the files as they are read (``{"source": "view"}``),
    join keys and times too. Relative paths are taken from the folder that the load runs in.
    """

    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    field_mapping: Mapping[str, str] = _EMPTY

    def __post_init__(self) -> None:
        given = self.path
        paths = (given,) if isinstance(given, str | os.PathLike) else tuple(given)
        if not paths or not all(isinstance(p, str | os.PathLike) and os.fspath(p) for p in paths):
            raise DefinitionError("ParquetSource: give it a path, glob, folder or URL, or several.")
        mapping = dict(self.field_mapping)
        for column, target in mapping.items():
            _text("ParquetSource", "a column of field_mapping", column)
            _text("ParquetSource", f"field_mapping[{column!r}]", target)
        targets = Counter(mapping.values())
        if doubled := sorted(target for target, count in targets.items() if count > 1):
            raise DefinitionError(
                f"ParquetSource: field_mapping gives {doubled} two source columns."
            )
        _set(
            self,
            path=tuple(os.fspath(p) for p in paths),
            field_mapping=FrozenMap(mapping),
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """What ``path`` named, as a tuple of one or more."""
        return self.path  # type: ignore[return-value]

    def __repr__(self) -> str:
        """As it was written, without what is secret in a URL: plans and errors print it."""
        shown = [without_secrets(path) for path in self.paths]
        mapping = f", field_mapping={self.field_mapping!r}" if self.field_mapping else ""
        return f"ParquetSource({(shown[0] if len(shown) == 1 else shown)!r}{mapping})"


class _Selectable(ABC):
    """What a view and a selection of it share: choosing features, renaming, rekeying."""

    @abstractmethod
    def _selection(self) -> FeatureSelection:
        """The selection that this stands for."""

    def __getitem__(self, features: str | Sequence[str]) -> FeatureSelection:
        selection = self._selection()
        names = (features,) if isinstance(features, str) else tuple(features)
        if not names:
            raise DefinitionError(f"view {selection.view.name!r}: a selection needs a feature.")
        known = set(selection.features)
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise NotFoundError.of(
                    "feature", str(name), selection.features, f" in view {selection.view.name!r}"
                )
        if len(set(names)) < len(names):
            raise DefinitionError(f"view {selection.view.name!r}: a feature is selected twice.")
        return replace(selection, features=names)

    def with_name(self, name: str) -> FeatureSelection:
        """The same view under another name in outputs; nothing is registered by it."""
        return replace(self._selection(), name=check_name("view", name))

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> FeatureSelection:
        """The same view joined by other columns: ``{"airport": "dest"}``."""
        selection = self._selection()
        for key, column in join_key_map.items():
            if key not in selection.view.join_keys:
                raise NotFoundError.of(
                    "join key", str(key), selection.view.join_keys, f" of view {selection.name!r}"
                )
            _text(f"view {selection.name!r}", f"join_key_map[{key!r}]", column)
        return replace(selection, join_key_map=FrozenMap(join_key_map))


@dataclass(frozen=True)
class FeatureView(_Selectable):
    """A typed table of features over time: what a set of keys looked like at each moment.

    ``ttl`` is how long a value counts after its event time (None: for ever).
    ``created_timestamp_field`` breaks ties between rows of one event time, the later wins.
    ``entities=[]`` makes a global view, joined on time alone. Views with ``online=False`` are
    for training only. With ``notify=True`` each write tells the caches of other processes
    (:class:`Cache`) what it has changed, by PostgreSQL's NOTIFY: that makes writers commit one
    after the other, of whatever view that notifies. On SQLite it does nothing.
    """

    name: str
    entities: Sequence[Entity]
    # A view is a key in each read: the name tells it from others, and there may be thousands here.
    fields: Sequence[Field] = field(hash=False)
    timestamp_field: str
    created_timestamp_field: str | None = None
    ttl: dt.timedelta | None = None
    source: ParquetSource | None = None
    online: bool = True
    description: str = ""
    tags: Mapping[str, str] = _EMPTY
    owner: str = ""
    notify: bool = False
    join_keys: Mapping[str, FeatureType] = field(init=False, repr=False, compare=False)
    types: Mapping[str, FeatureType] = field(init=False, repr=False, compare=False)
    """The features' types by name, in order."""

    def __post_init__(self) -> None:
        where = f"view {check_name('view', self.name)!r}"
        entities = _values(where, "entities", self.entities, Entity)
        fields = _values(where, "fields", self.fields, Field)
        if not fields:
            raise DefinitionError(f"{where}: it needs at least one field.")
        join_keys = _join_keys(where, entities)
        self._check_columns(where, join_keys, fields)
        if self.ttl is not None and not isinstance(self.ttl, dt.timedelta):
            raise DefinitionError(f"{where}: ttl must be a timedelta or None (unlimited).")
        if self.ttl is not None and self.ttl <= dt.timedelta(0):
            raise DefinitionError(f"{where}: ttl must be above zero; None means unlimited.")
        if self.source is not None and not isinstance(self.source, ParquetSource):
            raise DefinitionError(f"{where}: source must be a ParquetSource or None.")
        if not isinstance(self.online, bool):
            raise DefinitionError(f"{where}: online must be True or False.")
        if not isinstance(self.notify, bool):
            raise DefinitionError(f"{where}: notify must be True or False.")
        _set(
            self,
            entities=entities,
            fields=fields,
            join_keys=FrozenMap(join_keys),
            types=FrozenMap((one.name, one.type) for one in fields),
            description=_text(where, "description", self.description),
            tags=_tags(where, self.tags),
            owner=_text(where, "owner", self.owner),
        )

    def _check_columns(
        self, where: str, join_keys: Mapping[str, FeatureType], fields: tuple[Field, ...]
    ) -> None:
        times = [self.timestamp_field]
        if self.created_timestamp_field is not None:
            times.append(self.created_timestamp_field)
        for time in times:
            if not _text(where, "a timestamp field", time):
                raise DefinitionError(f"{where}: a timestamp field's name is empty.")
        seen: dict[str, str] = dict.fromkeys(join_keys, "a join key")
        columns = [(time, "a timestamp field") for time in times]
        columns += [(one.name, "a field") for one in fields]
        for name, role in columns:
            if name in seen:
                raise DefinitionError(
                    f"{where}: {name!r} is {seen[name]} and {role}; each column has one part."
                )
            seen[name] = role

    def _selection(self) -> FeatureSelection:
        return FeatureSelection(self, tuple(self.types), self.name)


def ttl_text(ttl: dt.timedelta) -> str:
    """A ttl as people write it, exact: ``30 d``, ``36 h``, ``90 min``, ``0.5 s``."""
    for unit in ("days", "hours", "minutes"):
        count, rest = divmod(ttl, dt.timedelta(**{unit: 1}))
        if not rest:
            return f"{count} {_UNITS[unit]}"
    micros = ttl // dt.timedelta(microseconds=1)
    return f"{micros / 1_000_000:.6f}".rstrip("0").rstrip(".") + " s"


def _values(where: str, what: str, values: object, kind: type[V]) -> tuple[V, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise DefinitionError(f"{where}: {what} must be a list of {kind.__name__}.")
    found = tuple(values)
    for value in found:
        if not isinstance(value, kind):
            raise DefinitionError(f"{where}: {what} holds {value!r}, which is no {kind.__name__}.")
    return found


def _join_keys(where: str, entities: tuple[Entity, ...]) -> dict[str, FeatureType]:
    keys: dict[str, FeatureType] = {}
    for entity in entities:
        for key, kind in entity.join_keys.items():
            if key in keys:
                raise DefinitionError(f"{where}: two of its entities have the join key {key!r}.")
            keys[key] = kind
    return keys


@dataclass(frozen=True)
class FeatureSelection(_Selectable):
    """Some features of a view, perhaps under another name and joined by other columns.

    Made by ``view[["a", "b"]]``, ``view.with_name(…)`` and ``view.with_join_key_map(…)``.
    """

    view: FeatureView
    features: tuple[str, ...]
    name: str
    join_key_map: Mapping[str, str] = _EMPTY

    def _selection(self) -> FeatureSelection:
        return self


@dataclass(frozen=True)
class FeatureService:
    """The features of one model, under a name: the same columns in training and online."""

    name: str
    features: Sequence[FeatureView | FeatureSelection]
    description: str = ""
    tags: Mapping[str, str] = _EMPTY
    owner: str = ""

    def __post_init__(self) -> None:
        where = f"service {check_name('service', self.name)!r}"
        if isinstance(self.features, _Selectable | str) or not isinstance(self.features, Iterable):
            raise DefinitionError(f"{where}: features must be a list of views and selections.")
        selections = []
        for item in self.features:
            if not isinstance(item, _Selectable):
                raise DefinitionError(
                    f"{where}: features holds {item!r}, which is no view or selection of one."
                )
            selections.append(item._selection())
        if not selections:
            raise DefinitionError(f"{where}: it needs at least one feature.")
        outputs = Counter((one.name, feature) for one in selections for feature in one.features)
        if doubled := sorted(":".join(one) for one, count in outputs.items() if count > 1):
            raise DefinitionError(
                f"{where}: {doubled} are in it twice; give one of the two another name "
                f"by with_name."
            )
        _set(
            self,
            features=tuple(selections),
            description=_text(where, "description", self.description),
            tags=_tags(where, self.tags),
            owner=_text(where, "owner", self.owner),
        )


Definition = Entity | FeatureView | FeatureService
