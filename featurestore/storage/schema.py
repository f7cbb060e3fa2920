"""Carrying out a plan: the registry's rows and the views' tables, in one transaction.

Tables are changed through Alembic's operations. Whatever changes a view holds its lock alone,
so no write is under way that knows the old shape only.
"""

from __future__ import annotations

import asyncio
import decimal
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from featurestore.definitions import Definition, Entity, FeatureService, FeatureView, Field
from featurestore.errors import DefinitionError, FeatureStoreError
from featurestore.storage import tables
from featurestore.storage.marks import note_lost_field
from featurestore.storage.planning import (
    Change,
    Plan,
    check_allowed,
    make_plan,
    widens,
    with_warnings,
)
from featurestore.storage.registry import (
    Catalog,
    RegisteredView,
    entity_row,
    field_row,
    load_catalog,
    register,
    service_row,
    view_row,
)
from featurestore.storage.rule import keys_with_events, take_online
from featurestore.storage.session import Session
from featurestore.types import ArrayType, DecimalType, FeatureType

if TYPE_CHECKING:
    import datetime as dt

    from alembic.operations import Operations

Definitions = Definition | Iterable[Definition]


async def plan_changes(session: Session, catalog: Catalog, definitions: Definitions) -> Plan:
    """The plan, with row counts where a change goes through a table's rows."""
    plan = make_plan(definitions, catalog)
    warnings = {}
    for position, change in enumerate(plan):
        if warning := await _cost(session, catalog, change):
            warnings[position] = warning
    return with_warnings(plan, warnings)


async def _cost(session: Session, catalog: Catalog, change: Change) -> str | None:
    view = catalog.views.get(change.name.partition(".")[0])
    if view is None or not _touches_rows(change):
        return None
    rows = await session.rows(sa.select(sa.func.count()).select_from(view.history))
    count = int(rows[0][0])
    if not count:
        return None
    if change.kind == "view":
        return f"fills the online table from {count:,} rows of history"
    if change.action == "drop":
        return f"drops the values of {count:,} rows of history"
    if session.dialect.single_writer and not change.requires:
        return f"concerns {count:,} rows of history; SQLite keeps them as they are"
    return f"rewrites {count:,} rows of history, and writers wait meanwhile"


def _touches_rows(change: Change) -> bool:
    if change.kind == "field":
        return change.action == "drop" or (
            change.action == "change" and change.old.type != change.new.type
        )
    return change.kind == "view" and change.action == "change" and _turns_on(change)


def _turns_on(change: Change) -> bool:
    return bool(change.new.online and not change.old.online)


async def apply_changes(
    session: Session,
    project: str,
    definitions: Definitions,
    allow: Iterable[str],
    skew: dt.timedelta,
) -> Plan:
    """Plan against the registry as it is now, and carry that out in the session's transaction."""
    # Loading Alembic takes half a second of disk and CPU: not on the loop.
    await asyncio.to_thread(importlib.import_module, "alembic.operations")
    # One apply at a time per project: the second plans against what the first has made.
    await session.dialect.lock_name(session, f"featurestore:apply:{project}")
    catalog = await load_catalog(session, project)
    plan = await plan_changes(session, catalog, definitions)
    check_allowed(plan, allow)
    if plan.changes:
        await _bump(session, catalog)
        work = _Work(session, catalog, skew)
        for change in plan:
            await work.carry_out(change)
    return plan


async def _bump(session: Session, catalog: Catalog) -> None:
    table = tables.project
    if catalog.revision:
        statement: Any = table.update().where(table.c.name == catalog.project)
        await session.execute(statement.values(revision=table.c.revision + 1))
    else:
        await session.execute(table.insert().values(name=catalog.project, revision=1))


class _Work:
    """One apply under way: each change finds its method by action and kind."""

    def __init__(self, session: Session, catalog: Catalog, skew: dt.timedelta) -> None:
        self.session = session
        self.project = catalog.project
        self.skew = skew
        self.views = dict(catalog.views)

    async def carry_out(self, change: Change) -> None:
        match (change.action, change.kind):
            case ("add", "entity"):
                await self._insert(tables.entity, entity_row(self.project, change.new))
            case ("change", "entity"):
                await self._update(tables.entity, change.new.name, self._row(change.new))
            case ("add", "service"):
                await self._insert(tables.service, service_row(self.project, change.new))
            case ("change", "service"):
                await self._update(tables.service, change.new.name, self._row(change.new))
            case ("add", "view"):
                await self._add_view(change.new)
            case ("change", "view"):
                await self._change_view(change)
            case (_, "field"):
                await self._change_field(change)

    def _row(self, new: Entity | FeatureService) -> dict[str, Any]:
        if isinstance(new, Entity):
            return entity_row(self.project, new)
        return service_row(self.project, new)

    async def _insert(self, table: sa.Table, *rows: dict[str, Any]) -> None:
        await self.session.execute(table.insert(), list(rows))

    async def _update(self, table: sa.Table, name: str, row: dict[str, Any]) -> None:
        where = (table.c.project == self.project, table.c.name == name)
        await self.session.execute(table.update().where(*where).values(row))

    async def _operate(self, work: Callable[[Operations], None]) -> None:
        def run(connection: sa.Connection) -> None:
            from alembic.migration import MigrationContext
            from alembic.operations import Operations

            work(Operations(MigrationContext.configure(connection)))

        await self.session.run_sync(run)

    async def _add_view(self, new: FeatureView) -> None:
        history, online = tables.table_names(self.project, new.name)
        row = {**view_row(self.project, new), "history_table": history, "online_table": online}
        insert = tables.view.insert().values(row).returning(tables.view.c.id)
        view_id = (await self.session.execute(insert)).scalar_one()
        fields = [field_row(view_id, i, one) for i, one in enumerate(new.fields)]
        await self._insert(tables.field, *fields)
        view = register(view_id, new, history, online, self.session)
        # The first load makes the index on keys and times: after its rows, which is much faster.
        await self._create(view.history, without=tables.key_index(view.history))
        if view.online is not None:
            await self._create(view.online)
        self.views[new.name] = view

    async def _create(self, table: sa.Table, *, without: sa.Index | None = None) -> None:
        def work(op: Operations) -> None:
            # The Table's own columns, constraints and indexes, created as Alembic does it.
            op.get_bind().execute(sa.schema.CreateTable(table))
            for index in table.indexes - {without}:
                op.get_bind().execute(sa.schema.CreateIndex(index))

        await self._operate(work)

    async def _change_view(self, change: Change) -> None:
        new: FeatureView = change.new
        view = self.views[new.name]
        await self._lock(view)
        await self._update(tables.view, new.name, view_row(self.project, new))
        for position, one in enumerate(new.fields):
            await self._update_field(view.id, one.name, {"position": position})
        _, online = await self._table_names(view.id)
        changed = register(view.id, new, view.history.name, online, self.session)
        if changed.online is not None and view.online is None:
            await self._create(changed.online)
            await self._fill_online(changed)
        elif view.online is not None and changed.online is None:
            await self._operate(lambda op: op.drop_table(online))
        self.views[new.name] = changed

    async def _lock(self, view: RegisteredView) -> None:
        """Have a view to oneself, whichever way others write to it."""
        dialect = self.session.dialect
        await dialect.lock_view(self.session, view.id, exclusive=True)
        await dialect.lock_history(self.session, view.history)

    async def _table_names(self, view_id: int) -> tuple[str, str]:
        columns = (tables.view.c.history_table, tables.view.c.online_table)
        query = sa.select(*columns).where(tables.view.c.id == view_id)
        row = (await self.session.execute(query)).one()
        return row.history_table, row.online_table

    async def _fill_online(self, view: RegisteredView) -> None:
        dialect = self.session.dialect
        online, keys = view.online_or_error(), view.view.join_keys
        until = await dialect.now(self.session) + self.skew
        everything = keys_with_events(dialect, view.history, list(keys), None, None)
        await self.session.execute(
            take_online(dialect, view.history, online, keys, everything, until)
        )

    async def _update_field(self, view_id: int, name: str, values: dict[str, Any]) -> None:
        where = (tables.field.c.view_id == view_id, tables.field.c.name == name)
        await self.session.execute(tables.field.update().where(*where).values(values))

    async def _change_field(self, change: Change) -> None:
        name, _, column = change.name.partition(".")
        view = self.views[name]
        await self._lock(view)
        match change.action:
            case "add":
                await self._add_field(view, change.new, change.old)
            case "drop":
                await self._drop_field(view, column)
            case "change":
                row = field_row(view.id, 0, change.new)
                row.pop("position")
                await self._update_field(view.id, column, row)
                if change.old.type != change.new.type:
                    await self._retype(view, change.old, change.new)
        if change.action != "change" or change.old.type != change.new.type:
            await self._reshape(view, change.action, column, change.new)

    async def _reshape(
        self, view: RegisteredView, action: str, column: str, new: Field | None
    ) -> None:
        """Remember the view with the fields that it has by now, for the changes to come."""
        fields = [one for one in view.view.fields if one.name != column]
        if new is not None:
            fields.append(new)
        known = view.view
        shaped = FeatureView(
            known.name,
            known.entities,
            fields,
            known.timestamp_field,
            known.created_timestamp_field,
            known.ttl,
            known.source,
            known.online,
        )
        _, online = await self._table_names(view.id)
        self.views[known.name] = register(view.id, shaped, view.history.name, online, self.session)

    def _tables(self, view: RegisteredView) -> list[sa.Table]:
        return [table for table in (view.history, view.online) if table is not None]

    async def _add_field(self, view: RegisteredView, new: Field, target: FeatureView) -> None:
        position = list(target.types).index(new.name)
        await self._insert(tables.field, field_row(view.id, position, new))
        for index, one in enumerate(target.fields):
            await self._update_field(view.id, one.name, {"position": index})
        kind = self.session.dialect.column_type(new.type)
        for table in self._tables(view):
            column = sa.Column(new.name, kind, nullable=True)
            await self._operate(lambda op, t=table, c=column: op.add_column(t.name, c))  # type: ignore[misc]

    async def _drop_field(self, view: RegisteredView, column: str) -> None:
        where = (tables.field.c.view_id == view.id, tables.field.c.name == column)
        await self.session.execute(tables.field.delete().where(*where))
        await note_lost_field(self.session, view.id, column)
        for table in self._tables(view):
            await self._operate(lambda op, t=table: op.drop_column(t.name, column))  # type: ignore[misc]

    async def _retype(self, view: RegisteredView, old: Field, new: Field) -> None:
        narrows = not widens(old.type, new.type)
        if narrows:
            await self._check_fit(view, old, new)
            await note_lost_field(self.session, view.id, new.name)
        if self.session.dialect.single_writer:
            # SQLite's columns hold what they are given: only what narrows is written anew.
            if narrows:
                await self._rewrite(view, old, new)
            return
        kind = self.session.dialect.column_type(new.type)
        for table in self._tables(view):
            await self._operate(
                lambda op, t=table: op.alter_column(  # type: ignore[misc]
                    t.name, new.name, type_=kind, existing_nullable=True
                )
            )

    async def _check_fit(self, view: RegisteredView, old: Field, new: Field) -> None:
        """Narrowed integers and decimals must still fit: a wrong number is worse than an error."""
        bounds = _bounds(new.type)
        if bounds is None:
            return
        column: sa.ColumnElement[Any] = view.history.c[new.name]
        if self.session.dialect.single_writer and isinstance(new.type, DecimalType):
            column = sa.cast(column, sa.Numeric)
        query = sa.select(sa.func.count()).where(sa.not_(column.between(*bounds)))
        rows = await self.session.execute(query)
        if count := rows.scalar_one():
            raise _misfit(view, new, f"{count:,} rows hold values that do")

    async def _rewrite(self, view: RegisteredView, old: Field, new: Field) -> None:
        from featurestore.storage.sqlite_values import encode

        decode = self.session.dialect.decode

        def narrowed(value: Any) -> Any:
            if value is None:
                return None
            return encode(new.type, _narrow(new.type, decode(old.type, value)))

        await self.session.driver.create_function("featurestore_narrow", 1, narrowed)
        for table in self._tables(view):
            value = sa.func.featurestore_narrow(table.c[new.name])
            try:
                await self.session.execute(table.update().values({new.name: value}))
            except FeatureStoreError as error:
                raise _misfit(view, new, "some rows hold values that do") from error


def _narrow(kind: FeatureType, value: Any) -> Any:
    """A value of a wider type as ``kind``: decimals are rounded as PostgreSQL rounds them."""
    if isinstance(kind, ArrayType):
        return [None if item is None else _narrow(kind.item, item) for item in value]
    if isinstance(kind, DecimalType):
        step = decimal.Decimal(1).scaleb(-kind.scale)
        value = value.quantize(step, decimal.ROUND_HALF_UP, decimal.Context(prec=80))
    return kind.python(value)


def _misfit(view: RegisteredView, new: Field, what: str) -> DefinitionError:
    return DefinitionError(
        f"field {view.name}.{new.name}: {what} not fit {new.type}; nothing was changed."
    )


def _bounds(kind: FeatureType) -> tuple[Any, Any] | None:
    if kind.name == "int32":
        return -(2**31), 2**31 - 1
    if isinstance(kind, DecimalType):
        most = decimal.Decimal(10**kind.precision - 1).scaleb(-kind.scale)
        return -most, most
    return None
