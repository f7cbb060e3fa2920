"""Paths that are URLs: which of them are, and what of one may be shown."""

from __future__ import annotations

OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "azure", "adl", "abfs", "abfss"})
"""Schemes of the object stores that obstore knows; ``gcs`` is another word for ``gs``."""

_ACCOUNT_AFTER_AT = frozenset({"az", "abfs", "abfss"})  # abfss://container@account.host/path


def is_url(path: str) -> bool:
    """Whether ``path`` is read by HTTP."""
    return path.lower().startswith(("http://", "https://"))


def is_object(path: str) -> bool:
    """Whether ``path`` names something in an object store."""
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme.lower() in OBJECT_SCHEMES


def without_secrets(path: str) -> str:
    """A URL without user, password, fragment and the values of its query; a path as it is.

    An object's URL has no query, and ``?`` and ``#`` are characters of its name: only what looks
    like a signature behind one is hidden.
    """
    scheme, found, rest = path.partition("://")
    if not found:
        return path
    if is_object(path):
        return f"{scheme}://{_object_without_secrets(scheme.lower(), rest)}"
    address, asked, query = rest.partition("#")[0].partition("?")
    host, slash, place = address.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{place}{asked}{_hidden_values(query)}"


def _object_without_secrets(scheme: str, rest: str) -> str:
    authority, slash, key = rest.partition("/")
    if ":" in authority:  # a password, which may hold slashes itself
        authority, slash, key = rest.rpartition("@")[2].partition("/")
    user, at, bucket = authority.rpartition("@")
    shown = f"{user}{at}{bucket}" if scheme in _ACCOUNT_AFTER_AT else bucket
    name, asked, query = key.partition("?")
    return f"{shown}{slash}{name}{asked}{_hidden_values(query) if '=' in query else query}"


def _hidden_values(query: str) -> str:
    named = (one.partition("=") for one in query.split("&") if one)
    return "&".join(f"{name}=***" if equals else "***" for name, equals, _ in named)
