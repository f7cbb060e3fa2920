"""Parquet in object stores (``s3://``, ``gs://``, ``az://`` …): what is there, and byte ranges.

obstore does the talking, signing and trying again; it comes with the extra ``object-store`` and
is imported at the first such URL, in a thread. Credentials and endpoints are those that it finds
in the environment. What comes after the bucket is the object's name as it is, percent signs and
all, as the stores' own tools have it.
"""

from __future__ import annotations

import asyncio
import atexit
import datetime as dt
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from featurestore.errors import SourceError
from featurestore.ingest.names import SUFFIXES, in_folder, is_glob, matches
from featurestore.ingest.object_faults import fault
from featurestore.ingest.ranges import RangeReader, shared_slots, side_by_side
from featurestore.urls import without_secrets

if TYPE_CHECKING:
    from obstore import Bytes, GetOptions, ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")

PARALLEL = 8
"""Requests at a time for one file: a store gives each some 50 MB/s, and has room for many."""

REQUESTS = 16  # at a time to one bucket, for all files together

PIECE = 4 * 1024 * 1024
"""Bytes per request at most: large against a round trip, and soon copied."""

COPY_INLINE = 256 * 1024  # bytes that are copied on the loop

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 20.0
REQUEST_SECONDS = 60.0  # one request, with its body

RETRIES = 5
BACKOFF = 0.25
BACKOFF_CAP = 8.0
RETRY_SECONDS = 60.0
"""obstore tries again what may pass (broken connections, timeouts, answers cut short, status 429
and 5xx), after random pauses that grow from BACKOFF seconds, and no more after RETRY_SECONDS."""

LOOK_SECONDS = 30.0
"""For the first answer of a store, credentials, tries and all: what takes longer is not there."""

DEADLINE = 180.0
"""Seconds for one piece, or one page of a listing, with all its tries."""

PAGE = 500  # names of a listing per turn of the loop

SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class _Place:
    """A URL taken apart: obstore opens the ``bucket`` (``s3://name``), ``key`` is what is in it."""

    url: str
    bucket: str
    key: str

    @classmethod
    def of(cls, url: str) -> _Place:
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        name = without_secrets(url)
        if not bucket.rpartition("@")[2]:
            raise SourceError(f"{name} names no bucket: {scheme}://bucket/folder/x.parquet does.")
        if ":" in bucket or ("@" in bucket and not scheme.lower().startswith(("abfs", "az"))):
            raise SourceError(
                f"{name}: the credentials of an object store come from the environment, not from "
                f"the URL."
            )
        if is_glob(bucket):
            raise SourceError(f"{name}: a glob stands in an object's name, not in the bucket's.")
        known = "gs" if scheme.lower() == "gcs" else scheme.lower()
        return cls(url, f"{known}://{bucket}", key)

    @property
    def name(self) -> str:
        return without_secrets(self.url)

    def url_of(self, key: str) -> str:
        """The URL of another object of the bucket, in the words of this one."""
        return f"{self.url[: len(self.url) - len(self.key)].rstrip('/')}/{key}"


# --- what is there --------------------------------------------------------------------------


async def find_objects(urls: Sequence[str]) -> list[list[str]]:
    """The URLs of the objects that each of ``urls`` names, in the order of their names.

    A URL names an object; or a folder (all Parquet files below it), with or without a slash at
    its end; or with ``*``, ``?``, ``[…]`` and ``**`` a glob. :class:`SourceError` where there is
    none of these.
    """
    places = [_Place.of(url) for url in urls]
    stores: dict[str, ObjectStore] = {}
    for place in places:
        if place.bucket not in stores:
            stores[place.bucket] = await _connect(place)

    async def find(place: _Place) -> list[str]:
        async with shared_slots(place.bucket, REQUESTS):
            return await _Finder(stores[place.bucket], place).find()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(find(place)) for place in places]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [task.result() for task in tasks]


class _Finder:
    """Finds what one URL names."""

    def __init__(self, store: ObjectStore, place: _Place) -> None:
        self._store = store
        self._place = place
        self._empty: set[str] = set()
        self._folders: set[str] = set()

    async def find(self) -> list[str]:
        place = self._place
        if is_glob(place.key):
            keys = await self._glob(place.key)
        elif place.key and not place.key.endswith("/") and await self._is_object():
            return [place.url]
        else:
            keys = await self._folder(place.key.strip("/"))
        # What stands for a folder is an empty object with a slash at its end, of which obstore
        # tells the name without it.
        keys = [key for key in keys if key not in self._empty or key not in self._folders]
        return await asyncio.to_thread(lambda: [place.url_of(key) for key in sorted(keys)])

    async def _is_object(self) -> bool:
        from obstore import head_async

        asking = partial(head_async, self._store, self._place.key)
        try:
            await _ask(self._place.name, LOOK_SECONDS, asking)
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        return True

    async def _folder(self, folder: str) -> list[str]:
        depth = len(_parts(folder))
        found, any_there = [], False
        async for keys in self._list(folder):
            any_there = True
            found += [key for key in keys if in_folder(_parts(key)[depth:])]
        if found:
            return found
        if any_there:
            raise SourceError(
                f"{self._place.name}: the folder holds no Parquet file ({', '.join(SUFFIXES)})."
            )
        raise SourceError(f"{self._place.name}: there is no such object, and no such folder.")

    async def _glob(self, pattern: str) -> list[str]:
        parts = _parts(pattern)
        fixed = next(index for index, part in enumerate(parts) if is_glob(part))
        folders = pattern.endswith("/")
        found = []
        async for keys in self._list("/".join(parts[:fixed])):
            if pattern in keys:  # it is no glob, but the name of an object
                return [pattern]
            found += [key for key in keys if _taken(parts, _parts(key), folders)]
        if not found:
            what = "folder with a Parquet file in it" if folders else "object"
            raise SourceError(f"{self._place.name}: the glob matches no {what}.")
        return found

    async def _list(self, folder: str) -> AsyncIterator[list[str]]:
        """The names of all objects below a folder, some at a time."""
        import obstore

        pages = obstore.list(self._store, folder or None, chunk_size=PAGE)
        seconds = LOOK_SECONDS
        while True:
            try:
                page = await _ask(self._place.name, seconds, pages.__anext__)
            except StopAsyncIteration:
                return
            inside = f"{folder}/" if folder else ""
            keys = [one["path"] for one in page if one["path"].startswith(inside)]
            self._empty.update(one["path"] for one in page if not one["size"])
            self._folders.update(key.rpartition("/")[0] for key in keys)
            if keys:
                yield keys
            seconds = DEADLINE


def _parts(key: str) -> list[str]:
    return [part for part in key.split("/") if part]


def _taken(pattern: list[str], parts: list[str], folders: bool) -> bool:
    if not folders:
        return matches(pattern, parts)
    return any(
        matches(pattern, parts[:depth]) and in_folder(parts[depth:])
        for depth in range(1, len(parts))
    )


# --- reading --------------------------------------------------------------------------------


@asynccontextmanager
async def open_object(url: str) -> AsyncIterator[RangeReader]:
    """Open an object for reading ranges; :class:`SourceError` where it cannot be."""
    from obstore import head_async

    place = _Place.of(url)
    store = await _connect(place)
    meta = await _ask(place.name, LOOK_SECONDS, partial(head_async, store, place.key))
    yield ObjectReader(store, place, meta)


class ObjectReader:
    """An object, as it was when it was opened."""

    def __init__(self, store: ObjectStore, place: _Place, meta: ObjectMeta) -> None:
        self.name = place.name
        self.size = meta["size"]
        self._store = store
        self._key = place.key
        self._meta = meta
        self._slots = asyncio.Semaphore(PARALLEL)
        self._bucket_slots = shared_slots(place.bucket, REQUESTS)

    async def read(self, offset: int, length: int) -> bytes:
        return (await self.read_ranges([(offset, length)]))[offset]

    async def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        """All of ``ranges`` (offset, length), by offset; some requests at a time."""
        return await side_by_side(self._piece, ranges, PIECE)

    async def _piece(self, offset: int, length: int) -> bytes:
        async with self._slots, self._bucket_slots:
            data = await _ask(self.name, DEADLINE, partial(self._get, offset, length))
        if len(data) != length:
            raise self._changed()
        # A piece at a time: copying out of obstore's memory holds the GIL, 0.5 ms per MB.
        return await asyncio.to_thread(bytes, data) if length > COPY_INLINE else bytes(data)

    async def _get(self, offset: int, length: int) -> Bytes:
        from obstore import get_async

        options: GetOptions = {"range": (offset, offset + length)}
        etag = self._meta["e_tag"]
        if etag and etag.startswith('"'):  # the store refuses to give another object than this
            options["if_match"] = etag
        answer = await get_async(self._store, self._key, options=options)
        if not self._may_be(answer.meta):
            raise self._changed()
        return await answer.bytes_async()

    def _may_be(self, meta: ObjectMeta) -> bool:
        """Whether nothing that is known of both differs."""
        known = self._meta
        pairs = ((known["e_tag"], meta["e_tag"]), (known["version"], meta["version"]))
        same = all(one == two for one, two in pairs if one and two)
        if not known["e_tag"]:
            same = same and known["last_modified"] == meta["last_modified"]
        return same and known["size"] == meta["size"]

    def _changed(self) -> SourceError:
        return SourceError(f"{self.name}: the object was changed while it was read. Load it again.")


# --- obstore --------------------------------------------------------------------------------


async def _connect(place: _Place) -> ObjectStore:
    """A client of the place's bucket, made in a thread: reading certificates takes its time."""
    return await asyncio.to_thread(_client, place)


def _client(place: _Place) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise SourceError(
            f"{place.name}: reading object stores needs obstore: "
            f"pip install 'featurestore[object-store]'"
        ) from error
    _settle_at_exit()
    _check_endpoint(place.name)
    try:
        return from_url(
            place.bucket,
            client_options={
                "connect_timeout": dt.timedelta(seconds=CONNECT_SECONDS),
                "read_timeout": dt.timedelta(seconds=IDLE_SECONDS),
                "timeout": dt.timedelta(seconds=REQUEST_SECONDS),
                # Only an endpoint that the environment names as http:// is spoken to so.
                "allow_http": True,
                "user_agent": "featurestore",
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": dt.timedelta(seconds=RETRY_SECONDS),
                "backoff": {
                    "init_backoff": dt.timedelta(seconds=BACKOFF),
                    "max_backoff": dt.timedelta(seconds=BACKOFF_CAP),
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError) as error:
        raise fault(place.name, error) from error


def _check_endpoint(name: str) -> None:
    """obstore panics, with a stack trace for its makers, where the endpoint is no URL."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        endpoint = os.environ.get(variable)
        if endpoint is None:
            continue
        try:
            parts = urlsplit(endpoint)
            if parts.scheme.lower() in ("http", "https") and parts.hostname and parts.port != 0:
                continue
        except ValueError:
            pass
        raise SourceError(f"{name}: {variable} is no URL such as https://host:9000.")


async def _ask(name: str, seconds: float, asking: Callable[[], Awaitable[T]]) -> T:
    """The answer of a store within ``seconds``; its errors as ours."""
    from obstore.exceptions import BaseError

    try:
        async with asyncio.timeout(seconds):
            return await asking()
    except TimeoutError:
        raise SourceError(
            f"{name}: no whole answer within {seconds:g} s. Check the network, or try again later."
        ) from None
    except (BaseError, OSError, ValueError) as error:
        raise fault(name, error) from error


@functools.cache
def _settle_at_exit() -> None:
    """Give obstore's threads a moment before the interpreter ends.

    They let go of Python's objects just after a call has its answer. A thread that does so while
    the interpreter is taken down aborts the process: 1 in 20 that ended at once did.
    """
    atexit.register(time.sleep, SETTLE_SECONDS)
