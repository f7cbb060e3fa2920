"""The same client without ``await``; a loop that runs already, as in a notebook, is not
disturbed. What a call does stands in :mod:`featurestore.client.calls`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from featurestore.client.calls import AsyncClient, AsyncRepository
from featurestore.client.transport import MAX_CONNECTIONS, RETRIES, TIMEOUT
from featurestore.definitions import Entity, FeatureService, FeatureView
from featurestore.historical import ViewName
from featurestore.online.vectors import OnlineFeatures
from featurestore.portal import portal
from featurestore.reports import PushReport
from featurestore.selection import Features
from featurestore.training.training_set import TrainingSet


class Client:
    """:class:`AsyncClient` without ``await``; a context manager, for any number of threads."""

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
        self._async = AsyncClient(
            url,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            max_connections=max_connections,
            ssl_context=ssl_context,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._async).replace("<AsyncClient", "<Client", 1)

    def close(self) -> None:
        """See :meth:`AsyncClient.close`."""
        portal.call(self._async.close())

    def get_online_features(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]],
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """See :meth:`featurestore.FeatureStore.get_online_features`."""
        return portal.call(
            self._async.get_online_features(
                features, entity_rows, full_feature_names=full_feature_names
            )
        )

    def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        full_feature_names: bool = False,
    ) -> TrainingSet:
        """See :meth:`AsyncClient.get_historical_features`."""
        return portal.call(
            self._async.get_historical_features(
                entity_df,
                features,
                timestamp_column=timestamp_column,
                full_feature_names=full_feature_names,
            )
        )

    def push(self, view: ViewName, rows: Any) -> PushReport:
        """See :meth:`AsyncClient.push`."""
        return portal.call(self._async.push(view, rows))

    def repository(self, view: ViewName) -> Repository:
        """See :meth:`AsyncClient.repository`."""
        return Repository(self._async.repository(view))

    def list_views(self) -> list[FeatureView]:
        """See :meth:`AsyncClient.list_views`."""
        return portal.call(self._async.list_views())

    def list_entities(self) -> list[Entity]:
        """See :meth:`AsyncClient.list_entities`."""
        return portal.call(self._async.list_entities())

    def list_services(self) -> list[FeatureService]:
        """See :meth:`AsyncClient.list_services`."""
        return portal.call(self._async.list_services())

    def get_view(self, name: str) -> FeatureView:
        """See :meth:`AsyncClient.get_view`."""
        return portal.call(self._async.get_view(name))

    def get_entity(self, name: str) -> Entity:
        """See :meth:`AsyncClient.get_entity`."""
        return portal.call(self._async.get_entity(name))

    def get_service(self, name: str) -> FeatureService:
        """See :meth:`AsyncClient.get_service`."""
        return portal.call(self._async.get_service(name))


class Repository:
    """:class:`AsyncRepository` without ``await``."""

    def __init__(self, inner: AsyncRepository) -> None:
        self._async = inner
        self.view = inner.view

    def get(self, **keys: Any) -> dict[str, Any] | None:
        """See :meth:`AsyncRepository.get`."""
        return portal.call(self._async.get(**keys))

    def get_many(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """See :meth:`AsyncRepository.get_many`."""
        return portal.call(self._async.get_many(rows))

    def upsert(self, rows: Any) -> PushReport:
        """See :meth:`AsyncRepository.upsert`."""
        return portal.call(self._async.upsert(rows))
