"""The store's calls over HTTP, for programs beside a ``featurestore serve``.

:class:`AsyncClient` has the names and answers of :class:`featurestore.FeatureStore`, as far as
the server has its calls; :class:`Client` is the same without ``await``. They need
``featurestore[client]``.

Example::

    async with AsyncClient("http://localhost:8000") as client:
        vectors = await client.get_online_features("eta", [{"driver_id": 7}])
"""

from __future__ import annotations

try:
    import h2 as _h2  # noqa: F401
    import httpx as _httpx  # noqa: F401
    import orjson as _orjson  # noqa: F401
except ImportError as error:
    raise ImportError(
        "featurestore.client needs httpx, h2 and orjson: pip install 'featurestore[client]'"
    ) from error

from featurestore.client.calls import AsyncClient, AsyncRepository
from featurestore.client.sync import Client, Repository

__all__ = ["AsyncClient", "AsyncRepository", "Client", "Repository"]
