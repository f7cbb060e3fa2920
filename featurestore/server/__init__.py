"""The HTTP server: a project's features over the network.

``create_app(store)`` is an ASGI application for a server of one's own, with OpenAPI docs at
``/docs``; ``featurestore serve`` runs it in uvicorn. It needs ``featurestore[server]``.
"""

from featurestore.server.app import create_app
from featurestore.server.limits import ServerLimits

__all__ = ["ServerLimits", "create_app"]
