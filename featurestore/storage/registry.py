"""What is registered in a project: rows of the registry's tables to definitions and back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from featurestore.definitions import (
    Definition,
    Entity,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    FrozenMap,
    ParquetSource,
)
from featurestore.errors import DefinitionError, NotFoundError, StoreUnavailableError
from featurestore.storage import tables
from featurestore.storage.migrations import check_revision, database_revision
from featurestore.storage.session import Session
from featurestore.types import MAX_TIMESTAMP, MIN_TIMESTAMP, parse_type

_TRIES = 5


@dataclass(frozen=True)
class RegisteredView:
    """A view with its number in the registry and its tables (``online`` None where it has none)."""

    id: int
    view: FeatureView
    history: sa.Table
    online: sa.Table | None

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def ttl(self) -> dt.timedelta | None:
        """The view's ttl; None, which is unlimited, where it is longer than all of time."""
        ttl = self.view.ttl
        return None if ttl is None or ttl > MAX_TIMESTAMP - MIN_TIMESTAMP else ttl

    def online_or_error(self) -> sa.Table:
        """The online table; :class:`DefinitionError` where the view is for training only."""
        if self.online is None:
            raise DefinitionError(
                f"view {self.name!r} has online=False and cannot be read online. Set online=True "
                f"and apply it: that fills its online table."
            )
        return self.online


@dataclass(frozen=True)
class Catalog:
    """A project's definitions as of one ``revision`` of its registry."""

    project: str
    revision: int = 0
    entities: Mapping[str, Entity] = field(default_factory=dict)
    views: Mapping[str, RegisteredView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)

    def view(self, name: str) -> RegisteredView:
        """The registered view of that name; :class:`NotFoundError` with the closest names."""
        try:
            return self.views[name]
        except KeyError:
            raise NotFoundError.of(
                "view", name, self.views, f" in project {self.project!r}"
            ) from None

    def entity(self, name: str) -> Entity:
        """The registered entity of that name; :class:`NotFoundError` with the closest names."""
        try:
            return self.entities[name]
        except KeyError:
            raise NotFoundError.of(
                "entity", name, self.entities, f" in project {self.project!r}"
            ) from None

    def service(self, name: str) -> FeatureService:
        """The registered service of that name; :class:`NotFoundError` with the closest names."""
        try:
            return self.services[name]
        except KeyError:
            if name in self.views:
                raise NotFoundError(
                    f"There is no feature service {name!r}, but a view: write '{name}:*' for its "
                    f"features.",
                    name=name,
                    candidates=[f"{name}:*"],
                ) from None
            raise NotFoundError.of(
                "feature service", name, self.services, f" in project {self.project!r}"
            ) from None


async def project_revision(session: Session, project: str) -> int:
    """How often definitions were applied to the project; 0 where it is not there."""
    statement = sa.select(tables.project.c.revision).where(tables.project.c.name == project)
    return int((await session.execute(statement)).scalar_one_or_none() or 0)


async def load_catalog(session: Session, project: str) -> Catalog:
    """Read the registry; :class:`MigrationRequiredError` at another revision than the code's."""
    check_revision(await database_revision(session), session.label)
    # Several statements: in a transaction that writes, an apply may commit between two of them.
    for _ in range(_TRIES):
        revision = await project_revision(session, project)
        try:
            catalog = await _read(session, project, revision)
        except KeyError:
            continue
        if await project_revision(session, project) == revision:
            return catalog
    raise StoreUnavailableError("Definitions are being applied again and again; repeat the call.")


async def _read(session: Session, project: str, revision: int) -> Catalog:
    async def rows(table: sa.Table) -> list[Any]:
        query = sa.select(table).where(table.c.project == project).order_by(table.c.name)
        return list((await session.execute(query)).all())

    entities = {row.name: _entity(row) for row in await rows(tables.entity)}
    view_rows = await rows(tables.view)
    fields = await _fields(session, [row.id for row in view_rows])
    views = {row.name: _view(row, entities, fields[row.id], session) for row in view_rows}
    services = {row.name: _service(row, views) for row in await rows(tables.service)}
    return Catalog(project, revision, entities, views, services)


async def _fields(session: Session, view_ids: list[int]) -> dict[int, list[Field]]:
    query = sa.select(tables.field).where(tables.field.c.view_id.in_(view_ids))
    found: dict[int, list[Field]] = {}
    for row in await session.execute(query.order_by(tables.field.c.position)):
        one = Field(row.name, parse_type(row.type), row.description, row.tags)
        found.setdefault(row.view_id, []).append(one)
    return found


def _entity(row: Any) -> Entity:
    keys = {name: parse_type(kind) for name, kind in row.join_keys}
    return Entity(row.name, keys, row.description, row.tags, row.owner)


def _view(
    row: Any, entities: Mapping[str, Entity], fields: list[Field], session: Session
) -> RegisteredView:
    view = FeatureView(
        row.name,
        entities=[entities[name] for name in row.entities],
        fields=fields,
        timestamp_field=row.timestamp_field,
        created_timestamp_field=row.created_timestamp_field,
        ttl=None if row.ttl is None else dt.timedelta(*row.ttl),
        source=None
        if row.source is None
        else ParquetSource(row.source["paths"], row.source["field_mapping"]),
        online=row.online,
        description=row.description,
        tags=row.tags,
        owner=row.owner,
        notify=row.notify,
    )
    return register(row.id, view, row.history_table, row.online_table, session)


def register(
    view_id: int, view: FeatureView, history: str, online: str, session: Session
) -> RegisteredView:
    """A view together with the declarations of its tables."""
    shape = (view.join_keys, view.types, session.dialect)
    return RegisteredView(
        view_id,
        view,
        tables.history_table(history, *shape),
        tables.online_table(online, *shape) if view.online else None,
    )


def _service(row: Any, views: Mapping[str, RegisteredView]) -> FeatureService:
    selections = []
    for item in row.features:
        view = views[item["view"]].view
        keys = FrozenMap(item["join_key_map"])
        selections.append(FeatureSelection(view, tuple(item["features"]), item["name"], keys))
    return FeatureService(row.name, selections, row.description, row.tags, row.owner)


# --- writing ------------------------------------------------------------------------------


def entity_row(project: str, entity: Entity) -> dict[str, Any]:
    """An entity as the registry keeps it."""
    return {
        "project": project,
        "name": entity.name,
        "join_keys": [[name, kind.name] for name, kind in entity.join_keys.items()],
        **_described(entity),
    }


def view_row(project: str, view: FeatureView) -> dict[str, Any]:
    """A view as the registry keeps it, without its fields and tables."""
    ttl = view.ttl
    return {
        "project": project,
        "name": view.name,
        "entities": [entity.name for entity in view.entities],
        "timestamp_field": view.timestamp_field,
        "created_timestamp_field": view.created_timestamp_field,
        "ttl": None if ttl is None else [ttl.days, ttl.seconds, ttl.microseconds],
        "source": None
        if view.source is None
        else {"paths": list(view.source.paths), "field_mapping": dict(view.source.field_mapping)},
        "online": view.online,
        "notify": view.notify,
        **_described(view),
    }


def field_row(view_id: int, position: int, one: Field) -> dict[str, Any]:
    """A field as the registry keeps it."""
    return {
        "view_id": view_id,
        "name": one.name,
        "position": position,
        "type": one.type.name,
        "description": one.description,
        "tags": dict(one.tags),
    }


def service_row(project: str, service: FeatureService) -> dict[str, Any]:
    """A service as the registry keeps it."""
    features = [
        {
            "view": selection.view.name,
            "features": list(selection.features),
            "name": selection.name,
            "join_key_map": dict(selection.join_key_map),
        }
        for selection in service.features
        if isinstance(selection, FeatureSelection)
    ]
    return {
        "project": project,
        "name": service.name,
        "features": features,
        **_described(service),
    }


def _described(definition: Definition) -> dict[str, Any]:
    return {
        "description": definition.description,
        "tags": dict(definition.tags),
        "owner": definition.owner,
    }
