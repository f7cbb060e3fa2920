"""Who may call: the keys of the project, remembered for a few seconds."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache

from featurestore.errors import FeatureStoreError, StoreUnavailableError
from featurestore.server.answers import Refused, log
from featurestore.server.calls import Call
from featurestore.storage.api_keys import ApiKey, Scope, opens, split_token

FRESH_SECONDS = 2.0
"""From this age on, keys are read again beside the requests that go by them."""

MAX_SECONDS = 5.0
"""Nobody goes by older ones: a key that was revoked opens nothing after this time."""

AGAIN_SECONDS = 0.5
"""For a key that is not known the table is looked at again, but not more often than this."""

READ_SECONDS = 5.0

Load = Callable[[], Awaitable[Sequence[ApiKey]]]

_BEARER: tuple[bytes, bytes] = (b"www-authenticate", b'Bearer realm="featurestore"')


class Keys:
    """The project's keys. Who made it closes it.

    All of them are read at once, by ``load``: they are few, and so a flood of made-up keys asks
    the database no more than twice a second. ``always`` says whether a key is demanded in any
    case; else that begins with the first key that the project has ever had. Until then, only
    requests to this machine's own names are answered: a page in a browser here could otherwise
    have its own name lead to this server.
    """

    def __init__(self, load: Load, *, always: bool) -> None:
        self._load = load
        self._always = always
        self._known: dict[str, ApiKey] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def allow(self, call: Call, needed: Scope) -> None:
        """Return where the request may be served; :class:`Refused` (401, 403) otherwise."""
        age = time.monotonic() - self._read_at
        if age > MAX_SECONDS:
            await self._read()
        elif age > FRESH_SECONDS:
            self._begin_reading()
        if not self._always and not self._known:
            _check_host(call.host)
            return
        key = await self._key(call.authorization)
        if key.scope < needed:
            raise Refused(
                403, f"The key {key.name!r} may {key.scope}; this needs one that may {needed}."
            )

    async def _key(self, authorization: bytes) -> ApiKey:
        if not authorization:
            raise Refused(401, "A key is needed: Authorization: Bearer fs_…", _BEARER)
        kind, _, token = authorization.decode("latin-1").partition(" ")
        parts = split_token(token.strip())
        if kind.lower() != "bearer" or parts is None:
            raise Refused(
                401, "The Authorization header holds no key: Authorization: Bearer fs_…", _BEARER
            )
        key_id, secret = parts
        if key_id not in self._known and time.monotonic() - self._read_at > AGAIN_SECONDS:
            await self._read()
        key = self._known.get(key_id)
        if not opens(key, secret) or key is None:
            raise Refused(401, "The key is not known, or was revoked.", _BEARER)
        return key

    async def _read(self) -> None:
        try:
            await asyncio.shield(self._begin_reading())
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"The database does not tell within {READ_SECONDS:g} s who may call. Try again."
            ) from error

    def _begin_reading(self) -> asyncio.Task[None]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_now())
            self._reading.add_done_callback(self._done)
        return self._reading

    async def _read_now(self) -> None:
        began = time.monotonic()
        async with asyncio.timeout(READ_SECONDS):
            keys = await self._load()
        self._known = {key.id: key for key in keys}
        self._read_at = began

    def _done(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            foreseen = isinstance(error, FeatureStoreError | TimeoutError)
            log.warning("keys cannot be read: %s", error, exc_info=None if foreseen else error)

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])


def _check_host(header: bytes) -> None:
    if not _is_local(header):
        raise Refused(
            403,
            f"Without keys, this server answers to localhost and addresses alone, not to "
            f"{header.decode('latin-1')!r:.80}. Make a key (featurestore keys create) to use it "
            f"under a name.",
        )


@lru_cache(64)
def _is_local(header: bytes) -> bool:
    """Whether a Host header names this machine, or an address."""
    host = header.decode("latin-1").lower()
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
