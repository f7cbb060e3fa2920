"""Parquet behind ``http://`` and ``https://``: byte ranges, asked for again where that may help.

A first request of four bytes tells size, identity and whether the server gives ranges. Where it
does, only what is asked for is fetched, some ranges at a time; where it does not, the file goes
into a temporary file and is read from there. httpx comes with the extra ``http`` and is imported
at the first URL, in a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import email.utils
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from featurestore.errors import SourceError
from featurestore.ingest.ranges import (
    RangeReader,
    joined,
    shared_slots,
    side_by_side,
    temporary_copy,
)
from featurestore.urls import without_secrets

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

PARALLEL = 4  # requests at a time for one file: hides round trips, and few servers mind

REQUESTS = 8
"""Requests at a time to one host, for all files together: two files side by side go at full speed,
twenty don't look like an attack."""

PIECE = 4 * 1024 * 1024
"""Bytes per request at most. What fails is fetched again, so a piece is small against a row group
(128 MB and more); it is large against a round trip (0.3 s at 100 Mbit/s)."""

TRIES = 5
"""Requests for one piece: with the pauses below they span some seconds, a server's restart."""

BACKOFF = 0.5
BACKOFF_CAP = 8.0
"""Seconds: the pause after try n is anything up to BACKOFF * 2**n, so that many clients whose
requests failed together don't come back together."""

RETRY_AFTER_CAP = 30.0
"""Seconds that a server may ask us to wait: a load holds a transaction open meanwhile."""

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 20.0
"""A server that sends nothing for so long has failed; the slow ones send something."""

DEADLINE = 180.0
"""Seconds for one piece with all its tries; four at once then still pass at 0.1 MB/s. A whole
download has as long for each of its blocks."""

REDIRECTS = 5  # links to storage take one or two; more is a circle
BLOCK = 256 * 1024  # bytes of a download per write: a thread's turn costs little against it

_PASSING = frozenset({429, 500, 502, 503, 504})
_EXPIRED = frozenset({401, 403, 404, 410})  # what an old signed link may answer

_ADVICE = {
    401: "It wants credentials: put them into the URL (https://user:password@host/…).",
    403: "Access is refused: check the credentials; a signed link may have expired.",
    404: "There is no such file: check the URL.",
    407: "The proxy wants credentials: put them into HTTPS_PROXY and HTTP_PROXY.",
    410: "The file is gone: ask its owner for the new place.",
    429: "It wants fewer requests: try again later, or load fewer files at a time.",
}


@asynccontextmanager
async def open_url(url: str) -> AsyncIterator[RangeReader]:
    """Open a file by URL for reading ranges; :class:`SourceError` where it cannot be.

    Connections and a temporary file end with the block, on cancellation too.
    """
    async with AsyncExitStack() as stack:
        client = await asyncio.to_thread(_client, url)
        await stack.enter_async_context(client)
        yield await HttpReader(client, url, stack).open()


def _client(url: str) -> httpx.AsyncClient:
    """A client; made in a thread, as reading certificates takes 0.1 s and more."""
    try:
        import httpx
    except ImportError as error:
        raise SourceError(
            f"{without_secrets(url)}: reading URLs needs httpx: pip install 'featurestore[http]'"
        ) from error
    logging.getLogger("httpx").addFilter(_hide_in_log)
    return httpx.AsyncClient(
        # Bytes are counted: they must be those of the file and not of a compressed form.
        headers={"Accept-Encoding": "identity", "User-Agent": "featurestore"},
        follow_redirects=True,
        max_redirects=REDIRECTS,
        timeout=httpx.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=PARALLEL, max_keepalive_connections=PARALLEL),
    )


_sending = contextvars.ContextVar("featurestore_http_sending", default=False)


def _hide_in_log(record: logging.LogRecord) -> bool:
    """httpx logs each URL as it is: ours without what is secret."""
    if _sending.get() and isinstance(record.args, tuple):
        record.args = tuple(
            without_secrets(str(arg)) if type(arg).__name__ == "URL" else arg for arg in record.args
        )
    return True


class _Passing(Exception):
    """A failure that may pass, and the seconds that the server asked to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Identity:
    """What a server says of which file it sends; empty where it doesn't."""

    etag: str
    modified: str
    size: int | None

    @classmethod
    def of(cls, response: httpx.Response) -> _Identity:
        headers = response.headers
        size = _span(response)[2]
        if response.status_code == 200 and headers.get("content-length", "").isdecimal():
            size = int(headers["content-length"])
        return cls(headers.get("etag", ""), headers.get("last-modified", ""), size)

    def may_be(self, other: _Identity) -> bool:
        """Whether nothing that both say differs."""
        pairs = ((self.etag, other.etag), (self.modified, other.modified))
        known = all(one == two for one, two in pairs if one and two)
        return known and (other.size is None or self.size == other.size)

    @property
    def condition(self) -> dict[str, str]:
        """Headers that make the server refuse another file than this."""
        return {"If-Match": self.etag} if self.etag.startswith('"') else {}


Take = Callable[["httpx.Response", asyncio.Timeout], Awaitable[T]]
"""Makes something of an answer of status 200, 206 or 416; may move the deadline."""


class HttpReader:
    """A file behind a server that gives byte ranges."""

    def __init__(self, client: httpx.AsyncClient, url: str, stack: AsyncExitStack) -> None:
        self.name = without_secrets(url)
        self.size = 0
        self._client = client
        self._stack = stack
        self._given = self._url = url
        self._identity = _Identity("", "", None)
        self._slots = asyncio.Semaphore(PARALLEL)
        self._host_slots = shared_slots(urlsplit(url).netloc.rpartition("@")[2], REQUESTS)

    async def open(self) -> RangeReader:
        """Look at the file: this reader, or one of a temporary copy."""
        # Not HEAD: links are signed for GET alone. Not the last bytes: some servers refuse that.
        reader = await self._get({"Range": "bytes=0-3"}, self._look)
        return reader if reader is not None else await self._get({}, self._copy)

    async def read(self, offset: int, length: int) -> bytes:
        return (await self.read_ranges([(offset, length)]))[offset]

    async def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        """All of ``ranges`` (offset, length), by offset; some requests at a time."""
        return await side_by_side(self._piece, ranges, PIECE)

    async def _piece(self, offset: int, length: int) -> bytes:
        async with self._slots:
            asked = {"Range": f"bytes={offset}-{offset + length - 1}"}
            take = partial(self._take_piece, offset, length)
            return await self._get(asked | self._identity.condition, take)

    async def _look(self, response: httpx.Response, until: asyncio.Timeout) -> RangeReader | None:
        """The reader for what the server can; None where only the whole file may help."""
        if response.status_code == 200:
            return await self._copy(response, until)
        first, last, size = _span(response)
        if response.status_code == 416 or size is None:
            return None
        length = min(4, size)
        if (first, last) != (0, length - 1):
            raise self._wrong(response, "bytes=0-3")
        self._check_start(await self._body(response, length), response)
        self.size, self._identity = size, _Identity.of(response)
        if response.history:  # ask there at once from now on
            self._url = str(response.url)
        return self

    async def _take_piece(
        self, offset: int, length: int, response: httpx.Response, _: asyncio.Timeout
    ) -> bytes:
        if not self._identity.may_be(_Identity.of(response)):
            raise self._changed()
        last = offset + length - 1
        if response.status_code != 206 or _span(response) != (offset, last, self.size):
            raise self._wrong(response, f"bytes={offset}-{last}")
        return await self._body(response, length)

    async def _body(self, response: httpx.Response, length: int) -> bytes:
        """All ``length`` bytes of an answer, as they were sent."""
        parts: list[bytes] = []
        missing = length
        async for chunk in response.aiter_raw():
            parts.append(chunk)
            missing -= len(chunk)
            if missing < 0:
                raise self._wrong(response, f"{length:,} bytes")
        if missing:
            raise _Passing(f"an answer was cut short by {missing:,} of {length:,} bytes")
        return await joined(parts)

    async def _copy(self, response: httpx.Response, until: asyncio.Timeout) -> RangeReader:
        """The whole answer in a temporary file; of what fails nothing stays."""
        if response.status_code != 200:
            raise self._wrong(response, "the whole file")
        blocks = self._blocks(response, until)
        return await self._stack.enter_async_context(temporary_copy(self.name, blocks))

    async def _blocks(
        self, response: httpx.Response, until: asyncio.Timeout
    ) -> AsyncGenerator[bytes]:
        first = True
        async for block in response.aiter_raw(BLOCK):
            if first:
                self._check_start(block[:4], response)
            first = False
            yield block
            until.reschedule(asyncio.get_running_loop().time() + DEADLINE)

    def _check_start(self, start: bytes, response: httpx.Response) -> None:
        """Notice a page for people before it is read to its end."""
        if start in (b"PAR1", b"PARE") or len(start) < 4:  # so short a file is named elsewhere
            return
        kind, encoding = map(response.headers.get, ("content-type", "content-encoding"))
        raise self._error(
            f"the server sends no Parquet file (Content-Type {kind}, Content-Encoding {encoding}). "
            f"It may be a page that wants a login, or explains an error: open it in a browser."
        )

    def _error(self, text: str) -> SourceError:
        return SourceError(f"{self.name}: {text}")

    def _changed(self) -> SourceError:
        return self._error("the file was changed while it was read. Load it again.")

    def _wrong(self, response: httpx.Response, asked: str) -> SourceError:
        got = f"{response.status_code}, {response.headers.get('content-range', 'no Content-Range')}"
        return self._error(
            f"asked for {asked} the server sends something else ({got}). It or a proxy before it "
            f"is at fault: download the file first."
        )

    async def _get(self, headers: Mapping[str, str], take: Take[T]) -> T:
        """Ask until ``take`` has got what it needs, within the tries and the deadline."""
        last = "nothing came"
        try:
            # The wait for a slot is not the server's, and ends with the deadlines of the others.
            async with self._host_slots, asyncio.timeout(DEADLINE) as until:
                for tried in range(1, TRIES):
                    try:
                        return await self._once(headers, take, until)
                    except _Passing as failure:
                        last = str(failure)
                        pause = self._pause(failure, tried)
                    await asyncio.sleep(pause)
                return await self._once(headers, take, until)
        except _Passing as failure:
            text = f"{failure}, at the last of {TRIES} tries. Try again later."
            raise self._error(text) from failure.__cause__
        except TimeoutError:
            text = f"no whole answer within {DEADLINE:g} s ({last}). Try again later."
            raise self._error(text) from None

    def _pause(self, failure: _Passing, tried: int) -> float:
        """Seconds until the next try: at least what the server asked for."""
        asked = failure.wait or 0.0
        if asked > RETRY_AFTER_CAP:
            raise self._error(f"{failure}, and asks to wait {asked:,.0f} s. Try again then.")
        return max(asked, random.uniform(0, min(BACKOFF_CAP, BACKOFF * 2**tried)))

    async def _once(self, headers: Mapping[str, str], take: Take[T], until: asyncio.Timeout) -> T:
        import httpx

        url, token = self._url, _sending.set(True)
        try:
            async with self._client.stream("GET", url, headers=headers) as response:
                self._check_status(response, url)
                return await take(response, until)
        except httpx.InvalidURL:  # whose message may hold what is secret
            raise self._error("this is no valid URL.") from None
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            raise self._error(
                f"a redirect leads away from http and https, or there are more than {REDIRECTS} "
                f"({error}). Name the file's own URL."
            ) from error
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):  # no other try changes that
                raise self._error(f"{error}. SSL_CERT_FILE names further authorities.") from error
            raise _Passing(f"{type(error).__name__} {error}".rstrip()) from error
        finally:
            _sending.reset(token)

    def _check_status(self, response: httpx.Response, url: str) -> None:
        status = response.status_code
        answer = f"the server answers {status} {response.reason_phrase}".rstrip()
        if status in (200, 206, 416):
            return
        if status in _PASSING:
            raise _Passing(answer, _retry_after(response.headers.get("retry-after", "")))
        if status == 412 and self._identity.condition:
            raise self._changed()
        if status in _EXPIRED and url != self._given:
            self._url = self._given  # where we were redirected to has expired: ask for the way anew
            raise _Passing(f"where it redirects to, {answer}")
        raise self._error(f"{answer}. {_ADVICE.get(status, 'Trying again would not help.')}")


def _span(response: httpx.Response) -> tuple[int | None, int | None, int | None]:
    """First and last byte of an answer and the file's size; None where it does not say."""
    said = response.headers.get("content-range", "").strip()
    found = re.fullmatch(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)", said)
    first, last, size = (int(n) if n else None for n in found.groups()) if found else (None,) * 3
    return first, last, size


def _retry_after(value: str) -> float | None:
    """Seconds that a ``Retry-After`` asks for, given as such or as a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return max(0.0, (aware - dt.datetime.now(dt.UTC)).total_seconds())
