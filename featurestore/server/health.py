"""Whether the server lives and is ready, and its figures: for those who look after it."""

from __future__ import annotations

import asyncio

from featurestore.server.answers import Answer, write_json
from featurestore.server.calls import Call
from featurestore.server.metrics import CONTENT_TYPE, exposition
from featurestore.server.state import ServerState


class Health:
    """Handlers over the server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def live(self, call: Call) -> Answer:
        """The process answers: it need not be restarted."""
        return Answer(200, b'{"status":"live"}')

    async def ready(self, call: Call) -> Answer:
        """The database answers, is at this code's revision, and the server is not ending."""
        if reason := await self._state.why_not_ready():
            return Answer(503, write_json({"status": "not ready", "reason": reason}))
        return Answer(200, b'{"status":"ready"}')

    async def health(self, call: Call) -> Answer:
        """Both."""
        reason = await self._state.why_not_ready()
        document = {"live": True, "ready": not reason, "reason": reason or None}
        return Answer(503 if reason else 200, write_json(document))

    async def metrics(self, call: Call) -> Answer:
        """The figures of all workers, as Prometheus reads them."""
        freshness = await self._state.freshness()
        workers = await self._state.all_figures()
        return Answer(200, await asyncio.to_thread(exposition, workers, freshness), CONTENT_TYPE)
