"""Parquet in an object store: a real S3 peer, with a server before it that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from yarl import URL

import featurestore as fs
from featurestore.ingest import objects
from featurestore.ingest.objects import open_object
from featurestore.ingest.sources import resolve_sources
from featurestore.testing import allow_blocking
from featurestore.urls import without_secrets

ROWS = 20_000
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
COLUMNS = ["sensor_id", "event_timestamp", "value", "label"]
TAIL = 64 * 1024  # how much of a file's end is read at first

view = fs.FeatureView(
    "readings",
    entities=[fs.Entity("sensor", join_keys={"sensor_id": fs.Int64})],
    fields=[fs.Field("value", fs.Float64), fs.Field("label", fs.String)],
    timestamp_field="event_timestamp",
)

pytestmark = pytest.mark.parametrize("featurestore_url", ["sqlite"], indirect=True)

# A process of its own: what it imports and logs is none of our tests' business.
SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The URL of an S3 server; it ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def readings(start: int = 0, rows: int = ROWS) -> pa.Table:
    """Needed columns with columns between them that nobody needs, and that don't compress."""
    noise = [pa.array(np.random.default_rng(n).random(rows)) for n in range(3)]
    return pa.table(
        {
            "sensor_id": pa.array(range(start, start + rows), pa.int64()),
            "noise_1": noise[0],
            "event_timestamp": pa.array([NOON] * rows, pa.timestamp("us", tz="UTC")),
            "noise_2": noise[1],
            "value": pa.array([n / 3 for n in range(rows)]),
            "noise_3": noise[2],
            "label": pa.array([f"label {n % 7}" for n in range(rows)]),
        }
    )


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROWS // 2)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def content() -> bytes:
    return parquet(readings())


@pytest.fixture(scope="module")
def small() -> bytes:
    """Two rows with what the view names, no more."""
    return parquet(readings(rows=2).select(COLUMNS))


# Whoever signs may do all; the signature itself is looked at where a test asks for that.
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=test/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=0"
)

Answer = Callable[[web.Request, int], Awaitable[web.StreamResponse | None]]


class Key(NamedTuple):
    """An access key."""

    name: str
    secret: str


class Front:
    """What stands before the S3 server: it hands requests on, counts them, and may answer
    request number n (from 0) in its own way."""

    def __init__(self, behind: str, session: aiohttp.ClientSession) -> None:
        self.behind = behind
        self.session = session
        self.bucket = ""
        self.answer: Answer | None = None
        self.requests: list[web.Request] = []
        self.bytes_served = 0
        self.most_at_once = 0
        self.pause = 0.0
        self.url = ""
        self.runner: web.ServerRunner | None = None
        self.errors: list[Exception] = []
        self._now = 0

    async def put(self, key: str, body: bytes) -> str:
        """Put an object into the test's bucket and give its URL."""
        url = URL(f"{self.behind}/{self.bucket}/{quote(key)}", encoded=True)
        headers = {"Content-Type": "application/octet-stream", "Authorization": SIGNED}
        async with self.session.put(url, data=body, headers=headers) as answer:
            assert answer.status == 200
        return f"s3://{self.bucket}/{key}"

    async def make_key(self) -> Key:
        """An access key of a user who may do everything."""
        policy = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        await self._iam(Action="CreateUser")
        await self._iam(Action="PutUserPolicy", PolicyName="all", PolicyDocument=document)
        made = await self._iam(Action="CreateAccessKey")
        found = [
            re.search(f"<{tag}>(.*)</{tag}>", made) for tag in ("AccessKeyId", "SecretAccessKey")
        ]
        assert found[0] is not None
        assert found[1] is not None
        return Key(found[0][1], found[1][1])

    async def _iam(self, **asked: str) -> str:
        data = {"Version": "2010-05-08", "UserName": self.bucket} | asked
        headers = {"Authorization": SIGNED.replace("/s3/", "/iam/")}
        async with self.session.post(self.behind, data=data, headers=headers) as answer:
            assert answer.status == 200
            return await answer.text()

    @contextlib.asynccontextmanager
    async def checking(self) -> AsyncIterator[None]:
        """Let the S3 server look at keys, signatures and rights."""

        async def start_after(requests: str) -> None:
            headers = {"Content-Type": "application/octet-stream"}
            url = f"{self.behind}/moto-api/reset-auth"
            async with self.session.post(url, data=requests, headers=headers) as answer:
                assert answer.status == 200

        await start_after("0")
        try:
            yield
        finally:
            await start_after("inf")

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        number = len(self.requests)
        self.requests.append(request)  # type: ignore[arg-type]
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.pause)
            answer = await self.answer(request, number) if self.answer else None  # type: ignore[arg-type]
            return answer if answer is not None else await self.plain(request)
        except ConnectionError:  # whoever asked has gone
            raise
        except Exception as error:
            self.errors.append(error)
            raise
        finally:
            self._now -= 1

    async def plain(self, request: web.BaseRequest) -> web.Response:
        """What the S3 server answers."""
        url = URL(self.behind + request.raw_path, encoded=True)
        headers = {"Content-Type": "application/octet-stream", **request.headers}
        async with self.session.request(request.method, url, headers=headers) as answer:
            body = await answer.read()
            kept = ("Content-Type", "Content-Range", "ETag", "Last-Modified", "Accept-Ranges")
            headers = {name: answer.headers[name] for name in kept if name in answer.headers}
            if request.method == "HEAD":
                headers["Content-Length"] = answer.headers["Content-Length"]
            self.bytes_served += len(body)
            return web.Response(status=answer.status, body=body, headers=headers)

    async def half(self, request: web.Request) -> web.StreamResponse:
        """The plain answer, of whose body only the first half was sent."""
        whole = await self.plain(request)
        half = web.StreamResponse(status=whole.status, headers=whole.headers)
        assert isinstance(whole.body, bytes)
        half.content_length = len(whole.body)
        await half.prepare(request)
        await half.write(whole.body[: len(whole.body) // 2])
        return half

    async def cut(self, request: web.Request) -> web.StreamResponse:
        """The plain answer, cut off in the middle."""
        half = await self.half(request)
        assert request.transport is not None
        request.transport.close()
        return half

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges (offset, length) that were asked for."""
        asked = [re.findall(r"\d+", one.headers.get("Range", "")) for one in self.requests]
        return [(int(pair[0]), int(pair[1]) - int(pair[0]) + 1) for pair in asked if pair]

    async def close(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()


BUCKETS = itertools.count(1)

CLEARED = re.compile("AWS_|GOOGLE_|AZURE_|GCE_|IDENTITY_|MSI_|.*_proxy$", re.IGNORECASE)
NOWHERE = "http://127.0.0.1:9"  # where nobody listens


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's credentials: neither files nor variables nor services give any."""
    for name in list(os.environ):
        if CLEARED.match(name) and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", NOWHERE)
    monkeypatch.setenv("GCE_METADATA_HOST", NOWHERE.removeprefix("http://"))
    monkeypatch.setenv("GCE_METADATA_IP", NOWHERE.removeprefix("http://"))
    monkeypatch.setenv("IDENTITY_ENDPOINT", NOWHERE)
    monkeypatch.setattr(objects, "BACKOFF", 0.01)
    monkeypatch.setattr(objects, "BACKOFF_CAP", 0.05)


@pytest.fixture
async def front(moto: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    """A bucket of the test's own, with a server before it that the environment names."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        it = Front(moto, session)
        it.bucket = f"bucket-{next(BUCKETS)}"
        async with session.put(f"{moto}/{it.bucket}") as made:
            assert made.status == 200
        it.runner = web.ServerRunner(web.Server(it), shutdown_timeout=0.1)
        await it.runner.setup()
        await web.TCPSite(it.runner, "127.0.0.1", 0).start()
        it.url = f"http://127.0.0.1:{it.runner.addresses[0][1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", it.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUSH")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush/hush")
        yield it
        await it.close()
        assert it.errors == []


async def loads_whole(store: fs.FeatureStore, source: object) -> fs.IngestReport:
    await store.apply(view)
    report = await store.ingest(view, source)
    assert (report.rows_read, report.rows_written) == (ROWS, ROWS)
    stored = await store.repository(view).history()
    wanted = await asyncio.to_thread(readings)
    assert await asyncio.to_thread(stored.equals, wanted.select(COLUMNS).cast(stored.schema))
    return report


async def fails(store: fs.FeatureStore, source: str, message: str) -> fs.SourceError:
    await store.apply(view)
    with pytest.raises(fs.SourceError, match=message) as caught:
        await store.ingest(view, source)
    assert str(caught.value).startswith(without_secrets(source))
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value).lower()
    assert await store.loads() == []
    assert await store.repository(view).count() == 0
    return caught.value


async def found(source: str) -> list[str]:
    """The names within their bucket of what a source stands for."""
    return [file.path.split("/", 3)[3] for file in await resolve_sources([source])]


# --- reading ------------------------------------------------------------------------------


async def test_only_the_needed_bytes_are_asked_for(
    feature_store: fs.FeatureStore, front: Front, content: bytes
):
    url = await front.put("data/x.parquet", content)
    front.pause = 0.05
    report = await loads_whole(feature_store, url)
    assert [load.source for load in report.loads] == [url]
    metadata = await asyncio.to_thread(lambda: pq.ParquetFile(pa.BufferReader(content)).metadata)
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    needed = {
        (chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size)
        for chunk in chunks
        if chunk.path_in_schema in COLUMNS
    }
    size = len(content)
    assert [one.method for one in front.requests][:3] == ["HEAD", "HEAD", "GET"]
    assert set(front.ranges) == {(size - TAIL, TAIL)} | needed
    assert front.bytes_served == TAIL + sum(length for _, length in needed) < size * 0.75
    gets = [one for one in front.requests if one.method == "GET"]
    assert len({one.headers["If-Match"] for one in gets}) == 1
    assert all("Credential=AKIAHUSH" in one.headers["Authorization"] for one in front.requests)
    assert front.most_at_once > 1


async def test_large_ranges_come_in_pieces_some_at_a_time(
    feature_store: fs.FeatureStore, front: Front, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(objects, "PIECE", 10_000)
    front.pause = 0.01
    await loads_whole(feature_store, await front.put("x.parquet", content))
    assert len(front.requests) > 25
    assert front.most_at_once == objects.PARALLEL


async def test_a_buckets_files_have_one_limit_together(
    featurestore_url: str, front: Front, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(objects, "PIECE", 10_000)
    front.pause = 0.01
    urls = [await front.put(f"{n}.parquet", content) for n in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(open_object(url)) for url in urls]
        reading = (reader.read(0, reader.size) for reader in readers)
        assert await asyncio.gather(*reading) == [content] * 4
    assert front.most_at_once == objects.REQUESTS < 4 * objects.PARALLEL


async def test_the_same_content_is_skipped(
    feature_store: fs.FeatureStore, front: Front, content: bytes, tmp_path: Path
):
    await loads_whole(feature_store, await front.put("x.parquet", content))
    again = await feature_store.ingest(view, await front.put("other/y.parquet", content))
    assert [load.skipped for load in again.loads] == [True]
    local = tmp_path / "x.parquet"
    await asyncio.to_thread(local.write_bytes, content)
    assert (await feature_store.ingest(view, local)).loads[0].skipped


async def test_a_view_may_have_an_object_as_its_source(
    feature_store: fs.FeatureStore, front: Front, content: bytes
):
    url = await front.put("x.parquet", content)
    await feature_store.apply(
        fs.FeatureView(
            "noisy",
            entities=view.entities,
            fields=[fs.Field("renamed", fs.Float64)],
            timestamp_field="event_timestamp",
            source=fs.ParquetSource(url, field_mapping={"noise_2": "renamed"}),
        )
    )
    assert (await feature_store.ingest("noisy")).rows_written == ROWS


async def test_the_sync_store_reads_objects(featurestore_url: str, front: Front, content: bytes):
    url = await front.put("x.parquet", content)

    def load() -> int:
        with allow_blocking(), fs.sync.FeatureStore(featurestore_url) as store:
            store.apply(view)
            return store.ingest(view, url).rows_written

    assert await asyncio.to_thread(load) == ROWS


# --- what is there ------------------------------------------------------------------------

KEYS = [
    "data/b.parquet",
    "data/a.parquet",
    "data/a.parquet.bak",
    "data/c.PQ",
    "data/deep/er/z.parq",
    "data/_tmp/x.parquet",
    "data/.hidden.parquet",
    "data/_SUCCESS",
    "data-2/x.parquet",
    "part-0.parquet/one.parquet",
    "part-0.parquet/two.parquet",
]
DATA = ["data/a.parquet", "data/b.parquet", "data/c.PQ", "data/deep/er/z.parq"]

SOURCES = {
    "data": DATA,
    "data/": DATA,
    "data/a.parquet": DATA[:1],
    "data/a.parquet.bak": ["data/a.parquet.bak"],
    "data/_tmp/": ["data/_tmp/x.parquet"],
    "data/_tmp/x.parquet": ["data/_tmp/x.parquet"],
    "data/*.parquet": DATA[:2],
    "data/[ab].*": [*DATA[:1], "data/a.parquet.bak", *DATA[1:2]],
    "data/?.parquet": DATA[:2],
    "dat*/*.parquet": ["data-2/x.parquet", *DATA[:2]],
    "**/*.parq*": sorted(
        [*DATA[:2], DATA[3], "data/a.parquet.bak", "data-2/x.parquet", *KEYS[-2:]]
    ),
    "data/**/z.parq": DATA[3:],
    "data/**/[abz].parq*": sorted([*DATA[:2], DATA[3], "data/a.parquet.bak"]),
    "data/_*/*": [],
    "data*/": ["data-2/x.parquet", *DATA],
    "data/*/*/": DATA[3:],
    "part-0.parquet": KEYS[-2:],
    "": sorted([*DATA, "data-2/x.parquet", *KEYS[-2:]]),
}


async def test_folders_and_globs(featurestore_url: str, front: Front, small: bytes):
    for key in KEYS:
        await front.put(key, small)
    for folder in ("data/", "data/deep/", "part-0.parquet/"):  # as consoles make them
        await front.put(folder, b"")
    bucket = f"s3://{front.bucket}"
    for source, wanted in SOURCES.items():
        if wanted:
            assert (source, await found(f"{bucket}/{source}")) == (source, wanted)
        else:
            with pytest.raises(fs.SourceError, match="matches no object"):
                await found(f"{bucket}/{source}")
    assert await found(bucket) == SOURCES[""]
    assert await found(f"s3a://{front.bucket}/data") == DATA


async def test_the_same_as_in_a_folder_here(
    featurestore_url: str, front: Front, small: bytes, tmp_path: Path
):
    for key in KEYS:
        await front.put(key, small)
        path = tmp_path / key
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(path.write_bytes, small)
    for source, wanted in SOURCES.items():
        if wanted:
            files = await resolve_sources([f"{tmp_path}/{source}"])
            names = [Path(file.path).relative_to(tmp_path).as_posix() for file in files]
            assert (source, names) == (source, wanted)


async def test_many_objects_are_listed_page_by_page(
    featurestore_url: str, front: Front, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(objects, "PAGE", 7)
    wanted = [f"many/{n:03}.parquet" for n in range(50)]
    await asyncio.gather(*(front.put(key, b"x") for key in wanted))
    assert await found(f"s3://{front.bucket}/many") == wanted


async def test_objects_of_any_name(feature_store: fs.FeatureStore, front: Front, small: bytes):
    await feature_store.apply(view)
    names = ["a b+c&d=é%41.parquet", "x#y.parquet", "what?.parquet", "[1].parquet", "~{}'.parquet"]
    for name in names:
        url = await front.put(f"odd/{name}", small)
        assert await found(url) == [f"odd/{name}"]
        report = await feature_store.ingest(view, url, force=True)
        assert report.rows_written == 2
    report = await feature_store.ingest(view, f"s3://{front.bucket}/odd/", force=True)
    assert [load.source.split("/odd/")[1] for load in report.loads] == sorted(names)


async def test_partitions(feature_store: fs.FeatureStore, front: Front):
    daily = fs.FeatureView(
        "daily",
        entities=[fs.Entity("shop", join_keys={"shop_id": fs.Int64, "region": fs.String})],
        fields=[fs.Field("sales", fs.Int64)],
        timestamp_field="at",
    )
    await feature_store.apply(daily)
    body = parquet(pa.table({"shop_id": [1], "sales": [5]}))
    for hour in (1, 2):
        for region in ("eu", "a%2Fb"):
            at = f"at=2024-01-01 0{hour}%3A00%3A00"
            await front.put(f"sales/{at}/region={region}/part-0.parquet", body)
    report = await feature_store.ingest("daily", f"s3://{front.bucket}/sales")
    assert report.rows_written == 4
    stored = await feature_store.repository("daily").history()
    rows = [(row["at"].hour, row["region"], row["sales"]) for row in stored.to_pylist()]
    assert sorted(rows) == [(1, "a/b", 5), (1, "eu", 5), (2, "a/b", 5), (2, "eu", 5)]
    again = await feature_store.ingest("daily", f"s3://{front.bucket}/sales/at=*/region=eu/*")
    assert [load.skipped for load in again.loads] == [True, True]


async def test_objects_urls_and_files_in_one_list(
    feature_store: fs.FeatureStore, front: Front, content: bytes, small: bytes, tmp_path: Path
):
    await feature_store.apply(view)
    local = tmp_path / "local.parquet"
    await asyncio.to_thread(local.write_bytes, small)
    one, two = await front.put("b/1.parquet", content), await front.put("a/2.parquet", small)
    signed = f"{front.url}/{front.bucket}/a/2.parquet"
    files = await resolve_sources([one, str(local), f"s3://{front.bucket}/a/", signed])
    assert [file.path for file in files] == [one, str(local), two, signed]


# --- what may pass ------------------------------------------------------------------------


def first(count: int, status: int, method: str = "") -> Answer:
    """Answer the first ``count`` requests of a method with this status, the others plainly."""
    left = count

    async def answer(request: web.Request, _: int) -> web.Response | None:
        nonlocal left
        if method not in ("", request.method) or left == 0:
            return None
        left -= 1
        return web.Response(status=status)

    return answer


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_pass_is_tried_again(
    feature_store: fs.FeatureStore, front: Front, content: bytes, status: int, method: str
):
    url = await front.put("x.parquet", content)
    front.answer = first(objects.RETRIES, status, method)
    await loads_whole(feature_store, url)


async def test_tries_are_bounded(feature_store: fs.FeatureStore, front: Front, content: bytes):
    url = await front.put("x.parquet", content)
    front.answer = first(99, 503, "GET")
    await fails(feature_store, url, "answers 503, at the last of several tries. Try again later")
    assert [one.method for one in front.requests].count("GET") == objects.RETRIES + 1


async def test_bodies_cut_short_are_asked_for_again(
    feature_store: fs.FeatureStore, front: Front, content: bytes
):
    url = await front.put("x.parquet", content)

    async def answer(request: web.Request, number: int) -> web.StreamResponse | None:
        return await front.cut(request) if number % 2 and request.method == "GET" else None

    front.answer = answer
    await loads_whole(feature_store, url)


async def test_bodies_always_cut_short_are_an_error(
    feature_store: fs.FeatureStore, front: Front, content: bytes
):
    url = await front.put("x.parquet", content)

    async def answer(request: web.Request, _: int) -> web.StreamResponse | None:
        return await front.cut(request) if request.method == "GET" else None

    front.answer = answer
    await fails(feature_store, url, "the store broke off, .*AWS_ENDPOINT_URL")


@pytest.mark.parametrize("stalled", [0, 2, 5], ids=["look", "footer", "columns"])
async def test_a_stall_ends_in_time(
    feature_store: fs.FeatureStore,
    front: Front,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    stalled: int,
):
    monkeypatch.setattr(objects, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(objects, "RETRIES", 1)
    url = await front.put("x.parquet", content)

    async def answer(_: web.Request, number: int) -> None:
        if number >= stalled:
            await asyncio.sleep(60)

    front.answer = answer
    started = time.monotonic()
    await fails(feature_store, url, "did not answer in time")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("what", ["LOOK_SECONDS", "DEADLINE"])
async def test_a_trickle_ends_at_the_deadline(
    feature_store: fs.FeatureStore,
    front: Front,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
):
    monkeypatch.setattr(objects, what, 0.5)
    url = await front.put("x.parquet", content)

    async def answer(request: web.Request, _: int) -> web.StreamResponse | None:
        if what == "LOOK_SECONDS":
            await asyncio.sleep(60)
        if request.method == "HEAD":
            return None
        drops = await front.half(request)
        for _second in range(600):
            await drops.write(b"P")
            await asyncio.sleep(0.1)
        return drops

    front.answer = answer
    await fails(feature_store, url, r"no whole answer within 0\.5 s")


@pytest.mark.parametrize("at", [0, 2, 5], ids=["look", "footer", "columns"])
async def test_a_server_that_is_gone(
    feature_store: fs.FeatureStore, front: Front, content: bytes, at: int
):
    url = await front.put("x.parquet", content)
    gone: list[asyncio.Task[None]] = []

    async def answer(request: web.Request, number: int) -> None:
        if number >= at and not gone:
            gone.append(asyncio.create_task(front.close()))
        if gone:
            assert request.transport is not None
            request.transport.abort()

    front.answer = answer
    error = await fails(feature_store, url, "cannot be reached.*AWS_ENDPOINT_URL")
    assert error.__cause__ is not None
    await asyncio.gather(*gone)


# --- what does not pass -------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 4], ids=["footer", "columns"])
async def test_an_object_that_is_overwritten_is_an_error(
    feature_store: fs.FeatureStore, front: Front, content: bytes, at: int
):
    url = await front.put("x.parquet", content)
    other = await asyncio.to_thread(lambda: parquet(readings(start=1)))

    async def answer(_: web.Request, number: int) -> None:
        if number == at:
            await front.put("x.parquet", other)

    front.answer = answer
    await fails(feature_store, url, "changed while it was read. Load it again")
    front.answer = None
    assert (await feature_store.ingest(view, url)).rows_written == ROWS


@pytest.mark.parametrize("etag", ['W/"one"', "", None])
async def test_without_a_condition_the_answers_are_compared(
    feature_store: fs.FeatureStore, front: Front, content: bytes, etag: str | None
):
    """Not every store of this protocol has ETags, or obeys conditions."""
    url = await front.put("x.parquet", content)
    changed = False

    async def answer(request: web.Request, number: int) -> web.Response:
        plain = await front.plain(request.clone(headers=_without_condition(request)))
        plain.headers.popall("ETag", None)
        if etag is None:
            plain.headers["ETag"] = '"two"' if changed and number > 3 else '"one"'
        elif etag:
            plain.headers["ETag"] = etag.replace("one", "two") if changed and number > 3 else etag
        elif changed and number > 3:
            plain.headers["Last-Modified"] = "Mon, 01 Jan 2024 12:00:01 GMT"
        return plain

    front.answer = answer
    await loads_whole(feature_store, url)
    front.requests.clear()
    changed = True
    with pytest.raises(fs.SourceError, match="changed while it was read"):
        await feature_store.ingest(view, url, force=True)
    assert await feature_store.repository(view).count() == ROWS


def _without_condition(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name != "If-Match"}


async def test_what_is_missing(feature_store: fs.FeatureStore, front: Front, small: bytes):
    await front.put("data/x.csv", small)
    bucket = f"s3://{front.bucket}"
    await fails(feature_store, f"{bucket}/data/x.parquet", "no such object, and no such folder")
    await fails(feature_store, f"{bucket}/dat", "no such object, and no such folder")
    await fails(feature_store, f"{bucket}/data/", "holds no Parquet file")
    await fails(feature_store, f"{bucket}/data/*.parquet", "matches no object")
    await fails(feature_store, f"{bucket}/d*/", "matches no folder with a Parquet file")
    for key in ("x.parquet", "x/", "*", ""):
        await fails(feature_store, f"s3://no-such-bucket-here/{key}", "no such bucket")


async def test_a_name_that_cannot_be_read(featurestore_url: str, front: Front, small: bytes):
    await front.put("data//x.parquet", small)
    with pytest.raises(fs.SourceError, match="name has empty parts"):
        await found(f"s3://{front.bucket}/data/")


async def test_an_object_that_is_gone_when_it_is_opened(featurestore_url: str, front: Front):
    with pytest.raises(fs.SourceError, match="there is no such object"):
        async with open_object(f"s3://{front.bucket}/x.parquet"):
            pass


async def test_empty_and_strange_objects_are_named(feature_store: fs.FeatureStore, front: Front):
    await fails(feature_store, await front.put("x.parquet", b""), "empty")
    await fails(feature_store, await front.put("y.parquet", b"a,b\n" * 99), "no Parquet file")


async def test_access_that_is_denied(
    feature_store: fs.FeatureStore, front: Front, small: bytes, monkeypatch: pytest.MonkeyPatch
):
    url = await front.put("x.parquet", small)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")  # the object is not public
    await fails(feature_store, url, "access is refused .*403.*AWS_ACCESS_KEY_ID")


async def test_signatures_are_right(
    feature_store: fs.FeatureStore, front: Front, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    url = await front.put("signed/x.parquet", content)
    key = await front.make_key()
    monkeypatch.setenv("AWS_ENDPOINT_URL", front.behind)  # the host is part of what is signed
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key.name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret)
    async with front.checking():
        await loads_whole(feature_store, url.rpartition("/")[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush/hush")
        with pytest.raises(fs.SourceError, match=r"refused .*403 SignatureDoesNotMatch"):
            await resolve_sources([f"s3://{front.bucket}/"])


async def test_credentials_that_are_wrong(
    feature_store: fs.FeatureStore, front: Front, small: bytes
):
    url = await front.put("x.parquet", small)
    async with front.checking():
        await fails(feature_store, url, "access is refused .*403")
        message = "access is refused .*403 InvalidAccessKeyId"
        await fails(feature_store, f"s3://{front.bucket}/folder/", message)


async def test_a_bucket_in_another_region(feature_store: fs.FeatureStore, front: Front):
    front.answer = first(99, 301)
    await fails(feature_store, f"s3://{front.bucket}/x.parquet", "another region: set .*AWS_REGION")


async def test_a_store_without_ranges(feature_store: fs.FeatureStore, front: Front, content: bytes):
    url = await front.put("x.parquet", content)

    async def answer(request: web.Request, _: int) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name != "Range"}
        return await front.plain(request.clone(headers=headers))

    front.answer = answer
    await fails(feature_store, url, "gives no byte ranges: download")


async def test_cancelling_ends_the_requests(
    feature_store: fs.FeatureStore, front: Front, content: bytes
):
    url = await front.put("x.parquet", content)
    open_now: list[web.Request] = []

    async def answer(request: web.Request, number: int) -> web.StreamResponse | None:
        if number < 3:
            return None
        part = await front.half(request)
        open_now.append(request)
        while request.transport is not None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        open_now.remove(request)
        return part

    front.answer = answer
    await feature_store.apply(view)
    load = asyncio.create_task(feature_store.ingest(view, url))
    async with asyncio.timeout(10):
        while len(open_now) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    load.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await load
    async with asyncio.timeout(3):
        while open_now:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert time.monotonic() - started < 3
    assert await feature_store.loads() == []


# --- stores, credentials and URLs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "variables", "message"),
    [
        ("s3://bucket/x.parquet", {}, "no credentials .*AWS_ACCESS_KEY_ID"),
        ("s3a://bucket/folder/", {}, "no credentials .*AWS_ACCESS_KEY_ID"),
        ("gs://bucket/x.parquet", {}, "no credentials .*GOOGLE_APPLICATION_CREDENTIALS"),
        ("gcs://bucket/*.parquet", {}, "no credentials .*GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://container/x.parquet", {}, "set AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "az://container/x.parquet",
            {"AZURE_STORAGE_ACCOUNT_NAME": "account"},
            "no credentials .*AZURE_STORAGE_ACCOUNT_KEY",
        ),
        (
            "abfss://container@account.dfs.core.windows.net/x.parquet",
            {},
            "no credentials .*AZURE_STORAGE_ACCOUNT_KEY",
        ),
        (
            "az://container/x.parquet",
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=hush",
                "AZURE_STORAGE_ENDPOINT": f"{NOWHERE}/account",
            },
            "cannot be reached",
        ),
        (
            "s3://bucket/x.parquet",
            {"AWS_SKIP_SIGNATURE": "true", "AWS_ENDPOINT_URL": NOWHERE},
            "cannot be reached.*AWS_ENDPOINT_URL",
        ),
        ("s3://bucket/x.parquet", {"AWS_ENDPOINT_URL": "host:9000"}, "AWS_ENDPOINT_URL is no URL"),
        (
            "gs://bucket/x.parquet",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"},
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
    ],
    ids=str,
)
async def test_without_credentials_or_network_it_fails_in_seconds(
    feature_store: fs.FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    variables: dict[str, str],
    message: str,
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    error = await fails(feature_store, url, message)
    assert time.monotonic() - started < 10
    assert "sig=hush" not in repr(error.__cause__)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a=b/x?.parquet", "s3://bucket/a=b/x?.parquet"),
        ("s3://bucket/x#1/me@host.parquet", "s3://bucket/x#1/me@host.parquet"),
        ("s3://key:hu/sh@bucket/x", "s3://bucket/x"),
        ("s3://key@bucket/x", "s3://bucket/x"),
        ("abfss://box@a.dfs.core.windows.net/x", "abfss://box@a.dfs.core.windows.net/x"),
        ("abfss://box:hush@a.dfs.core.windows.net/x", "abfss://a.dfs.core.windows.net/x"),
        ("az://box/x?sv=1&sig=hush", "az://box/x?sv=***&sig=***"),
    ],
)
def test_what_is_shown_of_an_objects_url(featurestore_url: str, url: str, shown: str):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://key:hush@bucket/x", "come from the environment"),
        ("s3://key:hu/sh@bucket/x", "come from the environment"),
        ("gs://key@bucket/x", "come from the environment"),
        ("s3://buck*/x", "not in the bucket's"),
        ("s3://buck et/x", "no URL of an object store"),
        ("abfss://box@host.example/x", "no URL of an object store"),
    ],
)
async def test_what_is_no_objects_url(feature_store: fs.FeatureStore, url: str, message: str):
    await fails(feature_store, url, message)


async def test_a_missing_obstore_is_named(
    feature_store: fs.FeatureStore, front: Front, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    for url in (f"s3://{front.bucket}/x.parquet", f"s3://{front.bucket}/*"):
        await fails(feature_store, url, r"pip install 'featurestore\[object-store\]'")


async def test_obstore_is_imported_when_it_is_needed(featurestore_url: str):
    code = "import sys, featurestore.cli; sys.exit('obstore' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await asyncio.wait_for(process.wait(), 30) == 0
