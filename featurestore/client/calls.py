"""The store's calls, over HTTP."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from featurestore.client.requests import (
    encoded_entities,
    encoded_rows,
    feature_names,
    listed_rows,
    path_name,
    pushed_table,
)
from featurestore.client.transport import (
    MAX_CONNECTIONS,
    RETRIES,
    TIMEOUT,
    Call,
    Forbidden,
    Transport,
)
from featurestore.definitions import Entity, FeatureService, FeatureView
from featurestore.errors import (
    FeatureStoreError,
    InvalidRowsError,
    NotFoundError,
    SchemaMismatchError,
)
from featurestore.historical import ViewName, view_name
from featurestore.ingest.rows import is_arrow
from featurestore.online.keys import entity_keys
from featurestore.online.keys import listed_rows as listed_entities
from featurestore.online.vectors import OnlineFeatures, Status
from featurestore.reports import PushReport
from featurestore.selection import Features
from featurestore.training.entities import read_entities
from featurestore.training.training_set import TrainingSet
from featurestore.wire import (
    decode_entity,
    decode_online,
    decode_push,
    decode_service,
    decode_view,
    online_from_table,
    read_stream,
    training_from_table,
    write_stream,
)
from featurestore.wire.text import dumps, loads

T = TypeVar("T")

ARROW_ENTITIES = 50
"""Entity rows from which on vectors come as Arrow. Writing and reading 8 features takes, in JSON
and in Arrow, 0.03 and 0.3 ms for one row, 0.8 and 0.7 for 50, 2.3 and 1.2 for 100, 18 and 7.5 for
1,000 (of which 5.5 make the dicts, when they are asked for), and a third of the bytes."""

INLINE_ROWS = 200
"""Rows up to this many are written and read on the loop; more take a thread, which would cost
a lone row more than it saves."""

INLINE_BYTES = 32 * 1024
"""Answers up to this size are read on the loop, in about 1 ms."""

VIEW_SECONDS = 60.0
"""How long a view's types count before they are asked for again."""


class AsyncClient:
    """A server's features, by the names that :class:`featurestore.FeatureStore` has for them.

    ``url`` is the server's address; ``api_key`` by default ``FEATURESTORE_API_KEY``. A call with
    all of its tries ends within ``timeout`` seconds; ``retries`` more follow the first where that
    may help and does no harm. At most ``max_connections`` requests are under way at a time.
    ``ssl_context`` is for servers with a certificate of one's own. Making a client does no I/O;
    it belongs to the event loop that uses it, and is closed by ``async with`` or :meth:`close`.

    The calls raise what the store raises, and :class:`StoreUnavailableError` where the server
    cannot be reached, or does not answer in time.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        max_connections: int = MAX_CONNECTIONS,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._transport = Transport(
            url,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            max_connections=max_connections,
            ssl_context=ssl_context,
        )
        self._views: dict[str, tuple[float, FeatureView | None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def __repr__(self) -> str:
        return f"<AsyncClient {self._transport.url}>"

    # --- reads ----------------------------------------------------------------------------

    async def get_online_features(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]],
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """See :meth:`featurestore.FeatureStore.get_online_features`."""
        names = feature_names(features)
        large = len(entity_rows) > INLINE_ROWS if hasattr(entity_rows, "__len__") else True
        rows, body, left_out = await _run(
            large, _online_request, names, entity_rows, full_feature_names
        )
        call = Call(
            "get_online_features",
            "POST",
            "/v1/online-features",
            body,
            wants_arrow=len(rows) >= ARROW_ENTITIES,
        )
        try:
            answer = await self._answer(call, _online_answer)
            await _run(large, entity_keys, rows, answer.key_types)
        except SchemaMismatchError as error:
            if left_out:
                error.add_note(left_out)
            raise
        return answer

    async def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        full_feature_names: bool = False,
    ) -> TrainingSet:
        """See :meth:`featurestore.FeatureStore.get_historical_features`; for entity tables as
        large as the server takes in one request."""
        names = feature_names(features)
        body = await asyncio.to_thread(lambda: write_stream(read_entities(entity_df)))
        listed = [names] if isinstance(names, str) else names
        call = Call(
            "get_historical_features",
            "POST",
            "/v1/historical-features",
            body,
            (
                *(("features", name) for name in listed),
                ("timestamp_column", timestamp_column),
                ("full_feature_names", "true" if full_feature_names else "false"),
            ),
            sends_arrow=True,
            wants_arrow=True,
        )
        return await self._answer(call, lambda got: training_from_table(_table(got)))

    def repository(self, view: ViewName) -> AsyncRepository:
        """One view as a collection of entities, as far as the server has its calls."""
        return AsyncRepository(self, view_name(view))

    # --- writes ---------------------------------------------------------------------------

    async def push(self, view: ViewName, rows: Any) -> PushReport:
        """See :meth:`featurestore.FeatureStore.push`.

        It is tried again only where nothing can have been written. Where an answer was lost,
        :class:`StoreUnavailableError` says that the rows may be there.
        """
        name = path_name("view", view_name(view))
        ends, arrow = self._transport.ends(), is_arrow(rows)
        if arrow:
            body = await asyncio.to_thread(pushed_table, rows)
        else:
            body = await self._rows(name, listed_rows(rows), ends)
        call = Call(
            f"push to {name!r}",
            "POST",
            f"/v1/views/{name}/rows",
            body,
            sends_arrow=arrow,
            writes=True,
        )
        return await self._answer(call, lambda got: decode_push(loads(got.content)), ends)

    async def _rows(self, name: str, rows: list[Any], ends: float) -> bytes:
        """A push's body. What does not fit the view as it was known is held against the view as
        it is now."""

        def body(view: FeatureView | None) -> bytes:
            return dumps({"rows": encoded_rows(rows, view)})

        large = len(rows) > INLINE_ROWS
        view, fresh = await self._known_view(name, ends)
        try:
            return await _run(large, body, view)
        except (SchemaMismatchError, InvalidRowsError):
            if fresh:
                raise
            self._views.pop(name, None)
            view, _ = await self._known_view(name, ends)
            return await _run(large, body, view)

    async def _known_view(self, name: str, ends: float) -> tuple[FeatureView | None, bool]:
        """A view for its types, and whether it was asked for just now. None where the key that
        we have may only write."""
        now = time.monotonic()
        if name in self._views and self._views[name][0] > now:
            return self._views[name][1], False
        view: FeatureView | None
        try:
            view = await self._get("views", name, decode_view, ends)
        except Forbidden:
            view = None
        self._views[name] = (now + VIEW_SECONDS, view)
        return view, True

    # --- definitions ----------------------------------------------------------------------

    async def list_views(self) -> list[FeatureView]:
        """The registered feature views, by name."""
        return await self._list("views", decode_view)

    async def list_entities(self) -> list[Entity]:
        """The registered entities, by name."""
        return await self._list("entities", decode_entity)

    async def list_services(self) -> list[FeatureService]:
        """The registered feature services, by name."""
        return await self._list("services", decode_service)

    async def get_view(self, name: str) -> FeatureView:
        """The registered view; :class:`NotFoundError` with the closest names."""
        return await self._get("views", path_name("view", name), decode_view)

    async def get_entity(self, name: str) -> Entity:
        """The registered entity; :class:`NotFoundError` with the closest names."""
        return await self._get("entities", path_name("entity", name), decode_entity)

    async def get_service(self, name: str) -> FeatureService:
        """The registered service; :class:`NotFoundError` with the closest names."""
        return await self._get("services", path_name("feature service", name), decode_service)

    async def _list(self, kind: str, decode: Callable[[Mapping[str, Any]], T]) -> list[T]:
        call = Call(f"list_{kind}", "GET", f"/v1/{kind}")
        return await self._answer(
            call, lambda got: [decode(one) for one in loads(got.content)[kind]]
        )

    async def _get(
        self,
        kind: str,
        name: str,
        decode: Callable[[Mapping[str, Any]], T],
        ends: float | None = None,
    ) -> T:
        call = Call(f"the definition of {name!r}", "GET", f"/v1/{kind}/{name}")
        return await self._answer(call, lambda got: decode(loads(got.content)), ends)

    async def _answer(
        self, call: Call, decode: Callable[[httpx.Response], T], ends: float | None = None
    ) -> T:
        """What ``decode`` makes of the answer; whatever it cannot read is not the server's."""
        response = await self._transport.send(call, ends or self._transport.ends())
        try:
            return await _run(len(response.content) > INLINE_BYTES, decode, response)
        except (ValueError, TypeError, KeyError, AttributeError, FeatureStoreError) as error:
            raise self._transport.unreadable(call, response, error) from error


class AsyncRepository:
    """One view of a server. Made by ``client.repository(view)``; see
    :class:`featurestore.FeatureRepository`."""

    def __init__(self, client: AsyncClient, view: str) -> None:
        self._client = client
        self.view = view

    async def get(self, **keys: Any) -> dict[str, Any] | None:
        """The entity's features as of now, after its join keys; None where there is nothing, or
        nothing within the ttl."""
        found, known = await self._found([keys])
        for name in keys:
            if name not in known:
                missing = NotFoundError.of("join key", name, known)
                raise SchemaMismatchError(f"view {self.view!r}: {missing}")
        return found[0]

    async def get_many(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """:meth:`get` for several entities at once, in order."""
        return (await self._found(rows))[0]

    async def _found(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any] | None], Sequence[str]]:
        answer = await self._client.get_online_features(f"{self.view}:*", rows)
        there = (Status.PRESENT, Status.NULL_VALUE)
        found = [
            values if all(status in there for status in statuses.values()) else None
            for values, statuses in zip(answer.to_dicts(), answer.statuses, strict=True)
        ]
        return found, list(answer.key_types)

    async def upsert(self, rows: Any) -> PushReport:
        """Add a version of each row's entity; the newest event time is what is read online."""
        return await self._client.push(self.view, rows)


# --- bodies -------------------------------------------------------------------------------


def _online_request(
    names: list[str] | str, entity_rows: Any, full_feature_names: bool
) -> tuple[Sequence[Any], bytes, str]:
    rows = listed_entities(entity_rows)
    entities, left_out = encoded_entities(rows)
    asked = {"features": names, "entities": entities, "full_feature_names": full_feature_names}
    return rows, dumps(asked), left_out


def _online_answer(response: httpx.Response) -> OnlineFeatures:
    if response.headers.get("Content-Type", "").startswith("application/json"):
        return decode_online(loads(response.content))
    return online_from_table(_table(response))


def _table(response: httpx.Response) -> Any:
    return read_stream(response.content)


async def _run(aside: bool, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.to_thread(work, *arguments) if aside else work(*arguments)
