"""What is done with features: online reads, pushes, training sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs

import pyarrow as pa

from featurestore import wire
from featurestore.definitions import FeatureView
from featurestore.errors import InvalidRowsError, SchemaMismatchError
from featurestore.online.vectors import OnlineFeatures
from featurestore.server.answers import ARROW, Answer, Refused, read_json, write_json
from featurestore.server.bodies import read_table
from featurestore.server.calls import Call
from featurestore.server.limits import INLINE_BYTES, INLINE_VALUES, MAX_FEATURES
from featurestore.server.state import ServerState
from featurestore.training.entities import columnless
from featurestore.training.training_set import TrainingSet
from featurestore.types import FeatureType, Timestamp

T = TypeVar("T")

_ONLINE = frozenset(("features", "entities", "full_feature_names"))
_TRAINING = frozenset((*_ONLINE, "timestamp_column"))
_FLAGS = {"true": True, "false": False}


class FeatureRoutes:
    """Handlers over the server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    # --- online ---------------------------------------------------------------------------

    async def online(self, call: Call) -> Answer:
        """Feature vectors of entities."""
        if call.brings_arrow():
            raise Refused(415, "Entities are sent as JSON: Content-Type: application/json.")
        given = await self._document(call, _ONLINE)
        features = _features(given)
        entities = _rows(given, "entities")
        full = _flag(given)
        asked = await self._state.asked(features)
        self._check_values(len(entities), len(asked.types), "features")
        if not asked.plain:
            entities = await self._aside(
                len(entities) * len(asked.key_types) > INLINE_VALUES,
                wire.decode_rows,
                *(entities, asked.key_types, "the entity rows"),
            )
        answer = await self._state.store.get_online_features(
            features, entities, full_feature_names=full
        )
        large = len(answer) * len(asked.types) > INLINE_VALUES
        if call.wants_arrow:
            return Answer(200, await asyncio.to_thread(_online_arrow, answer), ARROW)
        return Answer(200, await self._aside(large, _online_json, answer))

    # --- push -----------------------------------------------------------------------------

    async def push(self, call: Call) -> Answer:
        """Write rows into a view."""
        name, store = call.path["view"], self._state.store
        if call.brings_arrow():
            report = await store.push(name, await self._table(call))
            return Answer(200, write_json(wire.encode_push(report)))
        given = await self._document(call, frozenset(("rows",)))
        rows, view = _rows(given, "rows"), await self._state.view(name)
        try:
            report = await store.push(name, await self._pushed(rows, view))
        except (SchemaMismatchError, InvalidRowsError):
            # Were the values read by definitions that another process has changed since?
            newer = await self._state.view(name, than=view)
            if newer == view:
                raise
            report = await store.push(name, await self._pushed(rows, newer))
        return Answer(200, write_json(wire.encode_push(report)))

    async def _pushed(self, rows: Sequence[Any], view: FeatureView) -> Sequence[Any]:
        """Rows of a request as a view takes them."""
        types = wire.view_types(view)
        self._check_values(len(rows), len(types), "columns")
        large = len(rows) * len(types) > INLINE_VALUES
        decoded: Sequence[Any] = await self._aside(large, wire.decode_rows, rows, types, "the rows")
        return decoded

    # --- historical -----------------------------------------------------------------------

    async def historical(self, call: Call) -> Answer:
        """Entities with the features as they were known at their times."""
        entities: Any
        arrow, given = call.brings_arrow(), _of_query(call.query)
        if arrow:
            entities = await self._table(call)
            rows = entities.num_rows
        else:
            given |= await self._document(call, _TRAINING)
            entities = _rows(given, "entities")
            rows = len(entities)
        features, full = _features(given), _flag(given)
        column = given.get("timestamp_column", "event_timestamp")
        if not isinstance(column, str):
            raise SchemaMismatchError('"timestamp_column" must be text.')
        asked = await self._state.asked(features)
        self._check_values(rows, len(asked.types), "features")
        types = {**asked.key_types, column: Timestamp}
        if not isinstance(entities, pa.Table):
            entities = await asyncio.to_thread(_table_of, entities, types)
        training = await self._training(entities, features, column, full)
        if call.wants_arrow:
            return Answer(200, await asyncio.to_thread(_training_arrow, training), ARROW)
        outputs = asked.types
        if not full:  # no name of a definition holds "__"
            outputs = {name.partition("__")[2]: kind for name, kind in outputs.items()}
        named = {**outputs, **types}
        return Answer(200, await asyncio.to_thread(_training_json, training, named))

    async def _training(
        self, entities: pa.Table, features: str | list[str], column: str, full: bool
    ) -> TrainingSet:
        state = self._state
        if state.training_reads >= state.limits.training_reads:
            raise Refused(503, "Other historical reads are under way; come again.")
        state.training_reads += 1
        try:
            return await state.store.get_historical_features(
                entities, features, timestamp_column=column, full_feature_names=full
            )
        finally:
            state.training_reads -= 1

    # --- what they share ------------------------------------------------------------------

    async def _document(self, call: Call, names: frozenset[str]) -> dict[str, Any]:
        """The JSON object of a request, which has entries of these names alone."""
        body = await self._state.body(call)
        document = await self._aside(len(body) > INLINE_BYTES, read_json, body)
        if not isinstance(document, dict):
            raise SchemaMismatchError("The body must be a JSON object.")
        if not document.keys() <= names:
            unknown = min(document.keys() - names)
            raise SchemaMismatchError(
                f"The body has {unknown!r:.60}, which is not known; it may have "
                f"{', '.join(sorted(names))}."
            )
        return document

    async def _table(self, call: Call) -> pa.Table:
        body = await self._state.body(call)
        limits = self._state.limits
        # Decoded, text may take more than on the wire, as far as several rows share it.
        return await asyncio.to_thread(read_table, body, 4 * limits.body_bytes, limits.values)

    def _check_values(self, rows: int, width: int, what: str) -> None:
        most = self._state.limits.values
        if rows * width > most:
            raise Refused(
                413,
                f"{rows:,} rows of {width:,} {what} are more than the {most:,} values that are "
                f"taken at a time: ask for them in parts.",
            )

    @staticmethod
    async def _aside(aside: bool, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(work, *arguments) if aside else work(*arguments)


# --- what a request says --------------------------------------------------------------------


def _features(given: Mapping[str, Any]) -> str | list[str]:
    features = given.get("features")
    if isinstance(features, str):
        return features
    if isinstance(features, list) and len(features) > MAX_FEATURES:
        raise Refused(413, f"More than {MAX_FEATURES:,} features are asked for at a time.")
    if isinstance(features, list) and all(isinstance(one, str) for one in features):
        return features
    raise SchemaMismatchError(
        '"features" must be an array of "view:feature" or "view:*", or the name of a service.'
    )


def _rows(given: Mapping[str, Any], name: str) -> list[Any]:
    rows = given.get(name)
    if not isinstance(rows, list):
        raise SchemaMismatchError(f'"{name}" must be an array of objects.')
    return rows


def _flag(given: Mapping[str, Any]) -> bool:
    full = given.get("full_feature_names", False)
    if not isinstance(full, bool):
        raise SchemaMismatchError('"full_feature_names" must be true or false.')
    return full


def _of_query(query: bytes) -> dict[str, Any]:
    """What stands in the query, as it must beside an Arrow body: ``features`` several times, or a
    service once."""
    if not query:
        return {}
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    except ValueError as error:
        raise SchemaMismatchError(f"The query cannot be read: {error}.") from None
    found: dict[str, Any] = {}
    for name, values in given.items():
        if name not in _TRAINING or name == "entities":
            raise SchemaMismatchError(f"The query has {name!r:.60}, which is not known.")
        if name == "features":
            service = len(values) == 1 and ":" not in values[0]
            found[name] = values[0] if service else values
        elif len(values) > 1:
            raise SchemaMismatchError(f'The query has "{name}" several times.')
        elif name == "full_feature_names":
            if values[0] not in _FLAGS:
                raise SchemaMismatchError('"full_feature_names" must be true or false.')
            found[name] = _FLAGS[values[0]]
        else:
            found[name] = values[0]
    return found


# --- work that may be done in a thread ------------------------------------------------------


def _online_json(answer: OnlineFeatures) -> bytes:
    return write_json(wire.encode_online(answer))


def _online_arrow(answer: OnlineFeatures) -> bytes:
    return wire.write_stream(wire.online_table(answer))


def _training_json(training: TrainingSet, types: Mapping[str, FeatureType]) -> bytes:
    return write_json(wire.encode_training(training, types))


def _training_arrow(training: TrainingSet) -> bytes:
    return wire.write_stream(wire.training_table(training))


def _table_of(rows: Sequence[Any], types: Mapping[str, FeatureType]) -> pa.Table:
    """Entity rows as a table: keys and times by the views' types, the rest by what it holds."""
    decoded = wire.decode_rows(rows, types, "the entity table")
    names = dict.fromkeys(name for row in decoded for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in decoded]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SchemaMismatchError(
                f"The entity table's column {name!r:.60} holds values of several types: {error}"
            ) from None
    return pa.table(columns) if columns else columnless(len(decoded))
