"""Keys of the HTTP server: who may call it, and how far.

A key is ``fs_<id>_<secret>``. The table has the id, which is no secret, and the SHA-256 of the
secret. A slow hash, as passwords need it, would gain nothing: the secret is 256 random bits, which
nobody can try out, and each request pays for the hash.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import sqlalchemy as sa

from featurestore.errors import DefinitionError, NotFoundError
from featurestore.storage.session import Session
from featurestore.storage.tables import api_key

PREFIX = "fs"
MAX_NAME = 100
_NAME = re.compile(r"[^\W_](?:[\w .@:/-]*[^\W])?")
_NOBODY = hashlib.sha256(b"").hexdigest()


class Scope(IntEnum):
    """What a key allows; each includes those below it."""

    READ = 1
    """Reads: online, training sets, the registry, metrics."""
    WRITE = 2
    """Pushes as well."""
    ADMIN = 3
    """Everything."""

    def __str__(self) -> str:
        return self.name.lower()


SCOPES = tuple(str(scope) for scope in Scope)


@dataclass(frozen=True)
class ApiKey:
    """One key as the table has it; ``hash`` is the hexadecimal SHA-256 of its secret."""

    id: str
    project: str
    name: str
    scope: Scope
    hash: str
    created_at: dt.datetime
    revoked_at: dt.datetime | None

    def __repr__(self) -> str:
        return f"<ApiKey {self.name!r} {self.id} {self.scope}>"


def hash_secret(secret: str) -> str:
    """What the table keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def split_token(token: str) -> tuple[str, str] | None:
    """The id and the secret of ``fs_<id>_<secret>``; None where it is no key."""
    parts = token.split("_", 2)
    if len(parts) != 3 or parts[0] != PREFIX or not parts[1] or not parts[2]:
        return None
    return parts[1], parts[2]


def opens(key: ApiKey | None, secret: str) -> bool:
    """Whether ``secret`` is that of ``key`` and the key still counts.

    It takes as long for a key that is not there as for a wrong secret.
    """
    known = _NOBODY if key is None else key.hash
    same = hmac.compare_digest(known, hash_secret(secret))
    return same and key is not None and key.revoked_at is None


async def create_key(
    session: Session, project: str, name: str, scope: Scope, now: dt.datetime
) -> tuple[ApiKey, str]:
    """Make a key; the key and its token, which is nowhere else.

    Raises :class:`DefinitionError` for a name that cannot be, or that a key has or had.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r} cannot name a key: a name says who uses it, in at most {MAX_NAME} letters, "
            f"digits, spaces and . @ : / _ -"
        )
    taken = sa.select(api_key.c.id).where(api_key.c.project == project, api_key.c.name == name)
    if (await session.execute(taken)).first() is not None:
        raise DefinitionError(
            f"Project {project!r} has, or had, a key named {name!r}: choose another name. "
            f"`featurestore keys list` shows them."
        )
    key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    key = ApiKey(key_id, project, name, scope, hash_secret(secret), now, None)
    values = {**vars(key), "scope": str(scope)}
    await session.execute(api_key.insert().values(values))
    return key, f"{PREFIX}_{key_id}_{secret}"


async def list_keys(session: Session, project: str) -> list[ApiKey]:
    """The project's keys, revoked ones too, oldest first."""
    query = sa.select(api_key).where(api_key.c.project == project)
    rows = await session.execute(query.order_by(api_key.c.created_at, api_key.c.id))
    return [_key(row) for row in rows]


async def revoke_key(session: Session, project: str, key: str, now: dt.datetime) -> ApiKey:
    """Revoke the key of that name or id; one that was revoked before stays as it is.

    Raises :class:`NotFoundError` with the closest names.
    """
    keys = await list_keys(session, project)
    found = next((one for one in keys if key in (one.name, one.id)), None)
    if found is None:
        known = [one.name for one in keys if one.revoked_at is None]
        error = NotFoundError.of("key", key, known, f" in project {project!r}")
        if not known:  # apply would not help
            message = f"There is no key {key!r} in project {project!r}: it has none that counts."
            error = NotFoundError(message, name=key)
        raise error
    if found.revoked_at is None:
        change = api_key.update().where(api_key.c.id == found.id, api_key.c.revoked_at.is_(None))
        await session.execute(change.values(revoked_at=now))
    return next(one for one in await list_keys(session, project) if one.id == found.id)


def _key(row: Any) -> ApiKey:
    return ApiKey(
        row.id,
        row.project,
        row.name,
        Scope[row.scope.upper()],
        row.hash,
        row.created_at,
        row.revoked_at,
    )
