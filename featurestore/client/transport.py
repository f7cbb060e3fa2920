"""Requests on their way: pooled connections, deadlines, what is tried again and what is not.

A read is tried again after whatever may pass. A push is tried again only where it is certain
that nothing of it was written: it was never sent, or the server says that it did not begin.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import os
import random
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from featurestore.client.connections import Connections, Way
from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    OverloadedError,
    StoreUnavailableError,
)
from featurestore.urls import is_url, without_secrets
from featurestore.wire import ARROW_STREAM, decode_error
from featurestore.wire.text import loads

TIMEOUT = 30.0
RETRIES = 3
MAX_CONNECTIONS = 20

BACKOFF = 0.1
BACKOFF_CAP = 5.0
"""Seconds: the pause after try n is anything up to BACKOFF * 2**n, so that many clients whose
requests failed together don't come back together."""

_PASSING = frozenset({502, 503, 504})
_JSON = "application/json"


class Forbidden(FeatureStoreError):
    """The server knows the key, and it may not do this."""


@dataclass(frozen=True)
class Call:
    """One request. ``what`` names it for people; ``writes`` says that it must not happen twice."""

    what: str
    method: str
    path: str
    body: bytes | None = None
    params: tuple[tuple[str, str], ...] = ()
    sends_arrow: bool = False
    wants_arrow: bool = False
    writes: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What says how body and answer are written."""
        headers = {"Accept": ARROW_STREAM if self.wants_arrow else _JSON}
        if self.body is not None:
            headers["Content-Type"] = ARROW_STREAM if self.sends_arrow else _JSON
        return headers


class Transport:
    """One server's connections, made at the first call and closed by :meth:`close`."""

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
        self.url = _checked_url(url)
        headers = {"User-Agent": "featurestore"}
        if (key := _checked_key(api_key)) is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._timeout = float(_positive("timeout", timeout))
        self._retries = _whole("retries", retries, 0)
        most = _whole("max_connections", max_connections, 1)
        self._connections = Connections(self.url, headers, most, ssl_context)

    def __repr__(self) -> str:
        return f"<Transport {self.url}>"

    async def close(self) -> None:
        """Close the connections; calls under way fail."""
        await self._connections.close()

    def ends(self) -> float:
        """When a call that begins now has to be over, by the loop's clock."""
        return asyncio.get_running_loop().time() + self._timeout

    async def send(self, call: Call, ends: float) -> httpx.Response:
        """The answer to a call: its status is 200.

        Raises what the server says, :class:`StoreUnavailableError` where it cannot be reached
        or does not answer within the deadline, and :class:`OverloadedError` where no connection
        became free.
        """
        way = Way()
        try:
            async with asyncio.timeout_at(ends):
                return await self._tries(call, way, ends)
        except TimeoutError:
            raise self._late(call, way) from way.last

    async def _tries(self, call: Call, way: Way, ends: float) -> httpx.Response:
        loop = asyncio.get_running_loop()
        while True:
            way.tries += 1
            wait: float | None = None
            try:
                response = await self._once(call, way)
            except httpx.HTTPError as error:
                way.last = self._broken(call, way, error)
                again = not (call.writes and way.sent) and not _hopeless(error)
            else:
                if response.status_code == 200:
                    return response
                way.last = failure = self._refusal(call, response)
                again = _may_pass(call, response, failure)
                wait = _retry_after(response)
            pause = random.uniform(0, min(BACKOFF_CAP, BACKOFF * 2**way.tries))
            pause += wait or 0.0
            if not again or way.tries > self._retries or loop.time() + pause >= ends:
                raise way.last
            way.sent = False
            await asyncio.sleep(pause)

    async def _once(self, call: Call, way: Way) -> httpx.Response:
        async with self._connections.one(way) as http:
            request = http.build_request(
                call.method,
                self.url + call.path,
                params=list(call.params) or None,
                content=call.body,
                headers=call.headers,
            )
            request.extensions["trace"] = way.note
            return await http.send(request)

    # --- failures -------------------------------------------------------------------------

    def unreadable(
        self, call: Call, response: httpx.Response, error: Exception
    ) -> StoreUnavailableError:
        """The error for an answer that no server of featurestore gives."""
        kind = response.headers.get("Content-Type", "").partition(";")[0] or "nothing"
        refused = 300 <= response.status_code < 500  # whatever stands there, it did not pass it on
        failure = StoreUnavailableError(
            f"{self.url} answered to {call.what} with status {response.status_code} and what is "
            f"no answer of featurestore's ({kind}). Is the URL right, and what stands before the "
            f"server?{_written(call.writes and not refused)}"
        )
        failure.__cause__ = error
        return failure

    def _refusal(self, call: Call, response: httpx.Response) -> FeatureStoreError:
        try:
            failure = decode_error(loads(response.content))
        except ValueError as error:
            return self.unreadable(call, response, error)
        return Forbidden(str(failure)) if response.status_code == 403 else failure

    def _broken(self, call: Call, way: Way, error: httpx.HTTPError) -> StoreUnavailableError:
        said = str(error) or type(error).__name__
        if way.sent or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            text = f"The connection to {self.url} broke off during {call.what}: {said}."
        else:
            text = f"{self.url} cannot be reached: {said}. Is the server running?"
        failure = StoreUnavailableError(text + _written(call.writes and way.sent))
        failure.__cause__ = error
        return failure

    def _late(self, call: Call, way: Way) -> FeatureStoreError:
        within = f"within {self._timeout:g} s"
        if way.queued:
            return OverloadedError(
                f"No connection to {self.url} became free {within}: all {self._connections.most} "
                f"are in use. Try again later, or allow more (max_connections)."
            )
        tries = "" if way.tries < 2 else f" in {way.tries} tries"
        return StoreUnavailableError(
            f"{self.url} gave no answer to {call.what} {within}{tries}."
            f"{_written(call.writes and way.sent)}"
        )


def _written(perhaps: bool) -> str:
    if not perhaps:
        return ""
    return (
        " The rows may have been written: look before you push them again. Pushing the same rows "
        "twice stores them twice in history and changes nothing online."
    )


def _may_pass(call: Call, response: httpx.Response, failure: Exception) -> bool:
    """Whether another try may help, and does no harm."""
    if isinstance(failure, OverloadedError):
        return response.status_code == 503  # the server has not begun with it
    if call.writes:
        return False
    return response.status_code in _PASSING and isinstance(failure, StoreUnavailableError)


def _hopeless(error: httpx.HTTPError) -> bool:
    return isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError) or (
        isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    )


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds that the server asks to wait."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        until = email.utils.parsedate_to_datetime(said)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=dt.UTC)
    return max((until - dt.datetime.now(dt.UTC)).total_seconds(), 0.0)


# --- what a user gives ---------------------------------------------------------------------


def _checked_url(url: object) -> str:
    if not isinstance(url, str) or not is_url(url):
        shown = repr(without_secrets(url)) if isinstance(url, str) else type(url).__name__
        raise DefinitionError(
            f"The server's address must be a URL such as 'http://localhost:8000', not {shown}."
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - looked at, it is checked
    except ValueError as error:
        raise DefinitionError(f"{without_secrets(url)!r} is no URL: {error}.") from None
    if not parts.hostname:
        raise DefinitionError(f"{without_secrets(url)!r} names no server.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise DefinitionError(
            f"{without_secrets(url)!r}: the server's address holds no user, password or query. "
            f"Give a key as api_key, or in FEATURESTORE_API_KEY."
        )
    return url.rstrip("/")


def _checked_key(api_key: object) -> str | None:
    if api_key is None:
        api_key = os.environ.get("FEATURESTORE_API_KEY") or None
    if api_key is None:
        return None
    plain = isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()
    if not plain or " " in str(api_key) or not api_key:
        raise DefinitionError(
            "The api_key is not one: `featurestore keys create` prints a text such as fs_…, "
            "without spaces or line ends."
        )
    return str(api_key)


def _positive(name: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise DefinitionError(f"{name}={value!r}: it is a number of seconds above 0.")
    return float(value)  # type: ignore[arg-type]


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DefinitionError(f"{name}={value!r}: it is a whole number of {least} or more.")
    return value
