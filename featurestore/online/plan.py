"""A request for features, resolved and compiled once and kept for the next of its kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from featurestore.definitions import FeatureSelection, FeatureService, FeatureView
from featurestore.errors import DefinitionError
from featurestore.online.cache import Shelf
from featurestore.online.gather import Lane
from featurestore.online.shape import Shape
from featurestore.selection import Features, Request, resolve
from featurestore.storage.dialect import Lookup, Lookups
from featurestore.storage.registry import Catalog

PLANS = 256
"""How many kinds of request are remembered; services ask for a handful."""


@dataclass(frozen=True, slots=True)
class OnlinePlan:
    """What to look up for a request, with the statements that were compiled for it, how the rows
    that are found become vectors, where a cache keeps them, and the callers that wait for theirs.
    """

    lookups: Lookups
    shape: Shape
    shelf: Shelf
    lane: Lane = field(default_factory=Lane)


class OnlinePlans:
    """The plans of one store, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, OnlinePlan] = OrderedDict()

    def get(self, features: Features, catalog: Catalog, *, full_feature_names: bool) -> OnlinePlan:
        """The plan for ``features`` by the registry's present revision."""
        try:
            asked = tuple(features) if type(features) is list else _key(features)
            key = (asked, catalog.revision, full_feature_names)
            known = self._plans.get(key)
        except TypeError as error:
            raise DefinitionError(
                f"Features are named as 'view:feature', views, selections or a service: {error}."
            ) from error
        if known is not None:
            self._plans.move_to_end(key)
            return known
        request = resolve(features, catalog, full_feature_names=full_feature_names)
        plan = OnlinePlan(_lookups(request, catalog.project), Shape(request), Shelf(request))
        self._plans[key] = plan
        if len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        return plan


def _key(features: Features) -> Hashable:
    if isinstance(features, FeatureService):
        return features.name  # what is read is the registered one
    if isinstance(features, str | FeatureView | FeatureSelection):
        return features
    return tuple(features)


def _lookups(request: Request, project: str) -> Lookups:
    columns = list(request.key_columns)
    for output in request.outputs:
        if output.name in columns:
            raise DefinitionError(
                f"{request.joins[output.join].name}:{output.name} would be named as the join key "
                f"{output.name!r} is; read with full_feature_names=True."
            )
    return Lookups(
        project,
        request.revision,
        tuple(request.key_columns.values()),
        tuple(
            Lookup(
                join.view.online_or_error(),
                tuple(zip(join.features, join.types(), strict=True)),
                tuple((key, columns.index(column)) for key, column in join.columns),
                join.view.ttl,
            )
            for join in request.joins
        ),
    )
