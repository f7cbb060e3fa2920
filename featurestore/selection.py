"""Which features a read asks for: references, views, selections or a service, resolved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from featurestore.definitions import FeatureSelection, FeatureService, FeatureView
from featurestore.errors import DefinitionError, NotFoundError
from featurestore.storage.registry import Catalog, RegisteredView
from featurestore.types import FeatureType

FeatureRef = str | FeatureView | FeatureSelection
Features = Sequence[FeatureRef] | FeatureRef | FeatureService
"""``"view:feature"``, ``"view:*"``, views, selections; or one service, or its name."""


@dataclass(frozen=True)
class Join:
    """One view as a read joins it: under a name, by some entity columns, for some features."""

    view: RegisteredView
    name: str
    features: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Join key → entity column, in the order of the keys."""

    def types(self) -> list[FeatureType]:
        """The types of ``features``."""
        return [self.view.view.types[name] for name in self.features]


@dataclass(frozen=True)
class Output:
    """One column of the answer: the feature at ``position`` of join number ``join``."""

    name: str
    join: int
    position: int
    type: FeatureType


@dataclass(frozen=True)
class Request:
    """What a read asks for, resolved against one revision of the registry."""

    joins: tuple[Join, ...]
    outputs: tuple[Output, ...]
    revision: int

    @property
    def key_columns(self) -> dict[str, FeatureType]:
        """The entity columns that the joins need, and their types, in order."""
        columns: dict[str, FeatureType] = {}
        for join in self.joins:
            for key, column in join.columns:
                kind = join.view.view.join_keys[key]
                if columns.setdefault(column, kind) != kind:
                    raise DefinitionError(
                        f"Entity column {column!r} would have to be {columns[column]} for one view "
                        f"and {kind} for view {join.name!r}: map one of them to another column by "
                        f"with_join_key_map."
                    )
        return columns


def resolve(features: Features, catalog: Catalog, *, full_feature_names: bool) -> Request:
    """The joins and output columns that ``features`` asks for.

    Raises :class:`NotFoundError` with the closest names, and :class:`DefinitionError` where two
    outputs would have one name.
    """
    selections = _selections(features, catalog)
    joins: list[Join] = []
    places: dict[tuple[str, str, tuple[tuple[str, str], ...]], int] = {}
    wanted: dict[tuple[int, str], None] = {}
    for selection in selections:
        view = catalog.view(selection.view.name)
        mapping = selection.join_key_map
        columns = tuple((key, mapping.get(key, key)) for key in view.view.join_keys)
        place = (view.name, selection.name, columns)
        if place not in places:
            places[place] = len(joins)
            joins.append(Join(view, selection.name, (), columns))
        for feature in selection.features:
            if feature not in view.view.types:
                raise NotFoundError.of(
                    "feature", feature, view.view.types, f" in view {view.name!r}"
                )
            wanted[places[place], feature] = None
    chosen: list[list[str]] = [[] for _ in joins]
    for index, feature in wanted:
        chosen[index].append(feature)
    named = [
        replace(join, features=tuple(names)) for join, names in zip(joins, chosen, strict=True)
    ]
    outputs = _outputs(named, wanted, full_feature_names)
    return Request(tuple(named), outputs, catalog.revision)


def _outputs(
    joins: Sequence[Join], wanted: Iterable[tuple[int, str]], full: bool
) -> tuple[Output, ...]:
    outputs: list[Output] = []
    owners: dict[str, str] = {}
    positions = [{name: at for at, name in enumerate(join.features)} for join in joins]
    for index, feature in wanted:
        join = joins[index]
        name = f"{join.name}__{feature}" if full else feature
        owner = f"{join.name}:{feature}"
        if name in owners:
            way_out = (
                "give one of the views another name by with_name"
                if full
                else "read with full_feature_names=True, which names them view__feature"
            )
            raise DefinitionError(
                f"Two features would both be named {name!r}: {owners[name]} and {owner}; {way_out}."
            )
        owners[name] = owner
        kind = join.view.view.types[feature]
        outputs.append(Output(name, index, positions[index][feature], kind))
    return tuple(outputs)


def _selections(features: Features, catalog: Catalog) -> list[FeatureSelection]:
    if isinstance(features, FeatureService):
        # The registered one is what training and serving agree on.
        features = features.name
        return _of_service(catalog.service(features))
    if isinstance(features, str) and ":" not in features:
        return _of_service(catalog.service(features))
    if isinstance(features, str | FeatureView | FeatureSelection):
        features = [features]
    items = list(features)
    if not items:
        raise DefinitionError(
            "No feature is asked for: give 'view:feature', 'view:*', views or a service."
        )
    if len(items) == 1 and isinstance(items[0], FeatureService):
        return _of_service(catalog.service(items[0].name))
    return [_selection(item, catalog) for item in items]


def _of_service(service: FeatureService) -> list[FeatureSelection]:
    return [one for one in service.features if isinstance(one, FeatureSelection)]


def _selection(item: FeatureRef, catalog: Catalog) -> FeatureSelection:
    if isinstance(item, FeatureSelection):
        return item
    if isinstance(item, FeatureView):
        view = catalog.view(item.name).view
        return FeatureSelection(view, tuple(view.types), view.name)
    if not isinstance(item, str):
        raise DefinitionError(
            f"{item!r} names no feature: use 'view:feature', 'view:*', a view or a selection."
        )
    name, colon, feature = item.partition(":")
    if not colon:
        if name in catalog.services:
            raise DefinitionError(f"{name!r} is a service: give it alone, not in a list.")
        raise DefinitionError(f"{item!r} names no feature: write it as 'view:feature' or 'view:*'.")
    view = catalog.view(name).view
    if feature == "*":
        return FeatureSelection(view, tuple(view.types), view.name)
    if feature not in view.types:
        raise NotFoundError.of("feature", feature, view.types, f" in view {name!r}")
    return FeatureSelection(view, (feature,), view.name)
