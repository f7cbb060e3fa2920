"""A store in what others have made: in a web service of one's own, opened and closed with it,
errors as HTTP answers; and in training with PyTorch.

``featurestore.integrations.fastapi`` is for FastAPI, ``.starlette`` for Starlette alone and
``.aiohttp`` for aiohttp; ``.torch`` has a dataset for PyTorch. Each imports its framework, which
must be installed; this page imports none of them.
"""

from featurestore.integrations._stores import check_store

__all__ = ["check_store"]
