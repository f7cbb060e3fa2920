"""What apply would change: the difference between definitions and the registry, as a value.

Pure: :func:`make_plan` compares, ``schema.py`` carries out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from featurestore.definitions import (
    Definition,
    Entity,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    ttl_text,
)
from featurestore.errors import DefinitionError, NotFoundError
from featurestore.storage.registry import Catalog
from featurestore.types import ArrayType, DecimalType, FeatureType

Action = Literal["add", "change", "drop"]
Kind = Literal["entity", "view", "field", "service"]
_SIGNS = {"add": "+", "change": "~", "drop": "-"}


@dataclass(frozen=True)
class Change:
    """One change: ``detail`` says what becomes of it, ``warning`` what it costs.

    ``requires`` is what must be allowed for it: "drop", "narrow", or None.
    """

    action: Action
    kind: Kind
    name: str
    detail: str = ""
    requires: str | None = None
    warning: str | None = None
    old: Any = field(default=None, repr=False)
    new: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        line = f"{_SIGNS[self.action]} {self.kind} {self.name}"
        if self.detail:
            line += f": {self.detail}"
        if self.requires:
            line += f"  (needs allow={{{self.requires!r}}})"
        return line


@dataclass(frozen=True)
class Plan:
    """The changes that apply would make, or has made. Empty where nothing differs (falsy).

    Printing it shows them like a diff: ``+`` adds, ``~`` changes, ``-`` drops.
    """

    project: str
    changes: tuple[Change, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the changes cost, where that is worth a thought."""
        return tuple(change.warning for change in self.changes if change.warning)

    def __str__(self) -> str:
        if not self.changes:
            return f"project {self.project}: nothing to change"
        lines = [f"project {self.project}:"]
        for change in self.changes:
            lines.append(f"  {change}")
            if change.warning:
                lines.append(f"      warning: {change.warning}")
        return "\n".join(lines)


@dataclass
class Wanted:
    """The definitions that were given, by name, with those that they bring along."""

    entities: dict[str, Entity] = field(default_factory=dict)
    views: dict[str, FeatureView] = field(default_factory=dict)
    services: dict[str, FeatureService] = field(default_factory=dict)


def gather(definitions: Definition | Iterable[Definition], catalog: Catalog) -> Wanted:
    """The definitions by name; :class:`DefinitionError` where a name has two.

    A view brings its entities along, a service those of its views that are not registered.
    """
    if isinstance(definitions, Entity | FeatureView | FeatureService):
        definitions = [definitions]
    wanted = Wanted()
    services = []
    for one in definitions:
        match one:
            case Entity():
                _put(wanted.entities, one, "entity")
            case FeatureView():
                _put_view(wanted, one)
            case FeatureService():
                _put(wanted.services, one, "service")
                services.append(one)
            case FeatureSelection():
                raise DefinitionError(
                    f"A selection of view {one.view.name!r} is no definition: apply the view "
                    f"itself; selections are for services and reads."
                )
            case _:
                raise DefinitionError(
                    f"{one!r} is no definition: give entities, feature views and services."
                )
    for service in services:
        for selection in service.features:
            assert isinstance(selection, FeatureSelection)
            if selection.view.name not in wanted.views and selection.view.name not in catalog.views:
                _put_view(wanted, selection.view)
            _check_selection(service, selection, wanted, catalog)
    return wanted


def _put(known: dict[str, Any], one: Any, kind: str) -> None:
    if known.setdefault(one.name, one) != one:
        raise DefinitionError(
            f"There are two different definitions of {kind} {one.name!r}; a name has one."
        )


def _put_view(wanted: Wanted, view: FeatureView) -> None:
    _put(wanted.views, view, "view")
    for entity in view.entities:
        _put(wanted.entities, entity, "entity")


def _check_selection(
    service: FeatureService, selection: FeatureSelection, wanted: Wanted, catalog: Catalog
) -> None:
    name = selection.view.name
    view = wanted.views[name] if name in wanted.views else catalog.views[name].view
    for feature in selection.features:
        if feature not in view.types:
            raise NotFoundError.of(
                "feature", feature, view.types, f" in view {name!r}, named by {service.name!r}"
            )


def make_plan(definitions: Definition | Iterable[Definition], catalog: Catalog) -> Plan:
    """The changes that bring the registry to the definitions, in the order to carry them out.

    Raises :class:`DefinitionError` for what no permission makes possible: other join keys, or
    a field of an unrelated type.
    """
    wanted = gather(definitions, catalog)
    changes = [change for one in wanted.entities.values() for change in _entity(one, catalog)]
    changes += [change for one in wanted.views.values() for change in _view(one, catalog)]
    changes += [change for one in wanted.services.values() for change in _service(one, catalog)]
    _check_drops(changes, wanted, catalog)
    return Plan(catalog.project, tuple(changes))


def _check_drops(changes: Iterable[Change], wanted: Wanted, catalog: Catalog) -> None:
    """A field that a service names cannot go before the service does without it."""
    dropped = {change.name for change in changes if change.action == "drop"}
    services = {**catalog.services, **wanted.services}
    for service in services.values():
        for view, features, _, _ in _shape(service):
            used = [f"{view}.{name}" for name in features if f"{view}.{name}" in dropped]
            if used:
                raise DefinitionError(
                    f"field {used[0]} cannot be dropped: service {service.name!r} reads it. Apply "
                    f"the service without it as well."
                )


def check_allowed(plan: Plan, allow: Iterable[str]) -> None:
    """Raise :class:`DefinitionError` for changes that lose data and are not allowed."""
    permitted = {allow} if isinstance(allow, str) else set(allow)
    if unknown := permitted - {"drop", "narrow"}:
        raise DefinitionError(f"allow={sorted(unknown)}: only 'drop' and 'narrow' can be allowed.")
    refused = [change for change in plan if change.requires and change.requires not in permitted]
    if refused:
        needs = sorted({str(change.requires) for change in refused})
        lines = "\n".join(f"  {change}" for change in refused)
        raise DefinitionError(
            f"These changes would lose data, and nothing was changed:\n{lines}\n"
            f"Apply with allow={set(needs)!r} (--allow {' --allow '.join(needs)}) to make them."
        )


def _entity(new: Entity, catalog: Catalog) -> Iterator[Change]:
    old = catalog.entities.get(new.name)
    if old is None:
        keys = ", ".join(f"{name} {kind}" for name, kind in new.join_keys.items())
        yield Change("add", "entity", new.name, keys, new=new)
    elif old != new:
        if dict(old.join_keys) != dict(new.join_keys):
            raise DefinitionError(
                f"entity {new.name!r}: its join keys cannot change from {_keys(old.join_keys)} to "
                f"{_keys(new.join_keys)}. Define an entity and views of new names."
            )
        detail = _differences(old, new, ("description", "tags", "owner"))
        yield Change("change", "entity", new.name, detail or "order of keys", old=old, new=new)


def _view(new: FeatureView, catalog: Catalog) -> Iterator[Change]:
    registered = catalog.views.get(new.name)
    if registered is None:
        fields = ", ".join(f"{name} {kind}" for name, kind in new.types.items())
        yield Change("add", "view", new.name, fields, new=new)
        return
    old = registered.view
    if dict(old.join_keys) != dict(new.join_keys):
        raise DefinitionError(
            f"view {new.name!r}: its join keys cannot change from {_keys(old.join_keys)} to "
            f"{_keys(new.join_keys)}. Define a view of a new name and load it."
        )
    yield from _fields(old, new)
    names = (
        "ttl",
        "timestamp_field",
        "created_timestamp_field",
        "source",
        "online",
        "notify",
        "description",
        "tags",
        "owner",
    )
    details = [_differences(old, new, names)]
    if [one.name for one in old.entities] != [one.name for one in new.entities]:
        details.append("entities")
    kept = [name for name in old.types if name in new.types]
    if kept != [name for name in new.types if name in old.types]:
        details.append("order of fields")
    if any(details):
        detail = "; ".join(filter(None, details))
        yield Change("change", "view", new.name, detail, old=old, new=new)


def _fields(old: FeatureView, new: FeatureView) -> Iterator[Change]:
    before = {one.name: one for one in old.fields}
    after = {one.name: one for one in new.fields}
    for name, one in after.items():
        known = before.get(name)
        where = f"{new.name}.{name}"
        if known is None:
            yield Change("add", "field", where, f"{one.type}, null in old rows", old=new, new=one)
        elif known.type != one.type:
            yield _retyped(where, known, one)
        elif known != one:
            detail = _differences(known, one, ("description", "tags"))
            yield Change("change", "field", where, detail, old=known, new=one)
    for name, one in before.items():
        if name not in after:
            yield Change(
                "drop",
                "field",
                f"{new.name}.{name}",
                f"{one.type}, its values are lost",
                requires="drop",
                old=one,
            )


def _retyped(where: str, old: Field, new: Field) -> Change:
    detail = f"{old.type} → {new.type}"
    if widens(old.type, new.type):
        return Change("change", "field", where, detail, old=old, new=new)
    if widens(new.type, old.type):
        return Change("change", "field", where, detail, requires="narrow", old=old, new=new)
    raise DefinitionError(
        f"field {where}: {old.type} cannot become {new.type}. Define a field of a new name."
    )


def widens(old: FeatureType, new: FeatureType) -> bool:
    """Whether each value of ``old`` is one of ``new`` of the same kind."""
    if isinstance(old, ArrayType) and isinstance(new, ArrayType):
        return widens(old.item, new.item)
    if isinstance(old, DecimalType) and isinstance(new, DecimalType):
        more_digits = new.precision - new.scale >= old.precision - old.scale
        return new.scale >= old.scale and more_digits
    return (old.name, new.name) in {("int32", "int64"), ("float32", "float64")}


def _service(new: FeatureService, catalog: Catalog) -> Iterator[Change]:
    old = catalog.services.get(new.name)
    if old is None:
        yield Change("add", "service", new.name, _outputs(new), new=new)
        return
    details = [_differences(old, new, ("description", "tags", "owner"))]
    if _shape(old) != _shape(new):
        details.append(f"{_outputs(old)} → {_outputs(new)}")
    if any(details):
        detail = "; ".join(filter(None, details))
        yield Change("change", "service", new.name, detail, old=old, new=new)


def _shape(service: FeatureService) -> list[Any]:
    """What a service joins, apart from how its views are described."""
    return [
        (one.view.name, one.features, one.name, dict(one.join_key_map))
        for one in service.features
        if isinstance(one, FeatureSelection)
    ]


def _outputs(service: FeatureService) -> str:
    return ", ".join(
        f"{one.name}[{', '.join(one.features)}]"
        for one in service.features
        if isinstance(one, FeatureSelection)
    )


def _keys(keys: Mapping[str, FeatureType]) -> str:
    return "(" + ", ".join(f"{name} {kind}" for name, kind in keys.items()) + ")"


def _differences(old: Any, new: Any, names: Iterable[str]) -> str:
    changed = []
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            old_text, new_text = _show(before), _show(after)
            if old_text == new_text:  # only a password, say, is another one
                changed.append(f"{name} {new_text}, in what is not shown of it")
            else:
                changed.append(f"{name} {old_text} → {new_text}")
    return ", ".join(changed)


def _show(value: Any) -> str:
    if isinstance(value, dt.timedelta):
        return ttl_text(value)
    if value is None:
        return "none"
    return repr(value)


def with_warnings(plan: Plan, warnings: Mapping[int, str]) -> Plan:
    """The plan with warnings at some of its changes, by position."""
    changes = [
        replace(change, warning=warnings.get(i, change.warning))
        for i, change in enumerate(plan.changes)
    ]
    return Plan(plan.project, tuple(changes))
