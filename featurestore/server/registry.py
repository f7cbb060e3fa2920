"""What is registered, for people and for clients, which rebuild the definitions from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from featurestore import wire
from featurestore.server.answers import Answer, write_json
from featurestore.server.calls import Call
from featurestore.server.state import ServerState


class RegistryRoutes:
    """Handlers over the server's state."""

    def __init__(self, state: ServerState) -> None:
        self._store = state.store

    async def views(self, call: Call) -> Answer:
        """All feature views."""
        return _listed("views", await self._store.list_views(), wire.encode_view)

    async def entities(self, call: Call) -> Answer:
        """All entities."""
        return _listed("entities", await self._store.list_entities(), wire.encode_entity)

    async def services(self, call: Call) -> Answer:
        """All feature services."""
        return _listed("services", await self._store.list_services(), wire.encode_service)

    async def view(self, call: Call) -> Answer:
        """One feature view."""
        found = await self._store.get_view(call.path["name"])
        return Answer(200, write_json(wire.encode_view(found)))

    async def entity(self, call: Call) -> Answer:
        """One entity."""
        found = await self._store.get_entity(call.path["name"])
        return Answer(200, write_json(wire.encode_entity(found)))

    async def service(self, call: Call) -> Answer:
        """One feature service."""
        found = await self._store.get_service(call.path["name"])
        return Answer(200, write_json(wire.encode_service(found)))


def _listed(name: str, found: Iterable[Any], encode: Callable[[Any], dict[str, Any]]) -> Answer:
    return Answer(200, write_json({name: [encode(one) for one in found]}))
