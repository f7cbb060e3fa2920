"""Parquet by URL, from a real server that keeps to the rules or breaks them, one at a time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import email.utils
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

import featurestore as fs
from featurestore.ingest import http
from featurestore.ingest.sources import SourceFile, resolve_sources
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


def readings() -> pa.Table:
    """Needed columns with columns between them that nobody needs, and that don't compress."""
    noise = [pa.array(np.random.default_rng(n).random(ROWS)) for n in range(3)]
    return pa.table(
        {
            "sensor_id": pa.array(range(ROWS), pa.int64()),
            "noise_1": noise[0],
            "event_timestamp": pa.array([NOON] * ROWS, pa.timestamp("us", tz="UTC")),
            "noise_2": noise[1],
            "value": pa.array([n / 3 for n in range(ROWS)]),
            "noise_3": noise[2],
            "label": pa.array([f"label {n % 7}" for n in range(ROWS)]),
        }
    )


@pytest.fixture(scope="module")
def content() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(readings(), sink, row_group_size=ROWS // 2)
    return sink.getvalue().to_pybytes()


Answer = Callable[[web.Request, int], Awaitable[web.StreamResponse | None]]


class Server:
    """A server of one file. ``answer`` may answer request number n (from 0) in its own way."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag = '"one"'
        self.modified = "Mon, 01 Jan 2024 12:00:00 GMT"
        self.ranges = True
        self.answer: Answer | None = None
        self.requests: list[web.Request] = []
        self.times: list[float] = []
        self.bytes_served = 0
        self.most_at_once = 0
        self.pause = 0.0
        self.url = ""
        self.runner: web.ServerRunner | None = None
        self._now = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        number = len(self.requests)
        self.requests.append(request)  # type: ignore[arg-type]
        self.times.append(time.monotonic())
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.pause)
            answer = await self.answer(request, number) if self.answer else None  # type: ignore[arg-type]
            return answer if answer is not None else self.plain(request)
        finally:
            self._now -= 1

    def plain(self, request: web.BaseRequest) -> web.Response:
        headers = {"ETag": self.etag, "Last-Modified": self.modified}
        if request.headers.get("If-Match", self.etag) != self.etag:
            return web.Response(status=412, headers=headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if not self.ranges or asked is None:
            self.bytes_served += len(self.content)
            return web.Response(body=self.content, headers=headers | {"Accept-Ranges": "none"})
        first, last = int(asked[1]), min(int(asked[2]), len(self.content) - 1)
        if first > last:
            headers["Content-Range"] = f"bytes */{len(self.content)}"
            return web.Response(status=416, headers=headers)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(self.content)}"
        body = self.content[first : last + 1]
        self.bytes_served += len(body)
        return web.Response(status=206, body=body, headers=headers)

    async def cut(self, request: web.Request) -> web.StreamResponse:
        """The plain answer, cut off in the middle."""
        whole = self.plain(request)
        cut = web.StreamResponse(status=whole.status, headers=whole.headers)
        await cut.prepare(request)
        assert isinstance(whole.body, bytes)
        await cut.write(whole.body[: len(whole.body) // 2])
        assert request.transport is not None
        request.transport.close()
        return cut


@pytest.fixture
async def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "BACKOFF", 0.001)
    it = Server(content)
    it.runner = web.ServerRunner(web.Server(it), shutdown_timeout=0.1)
    await it.runner.setup()
    site = web.TCPSite(it.runner, "127.0.0.1", 0)
    await site.start()
    it.url = f"http://127.0.0.1:{it.runner.addresses[0][1]}/data/x.parquet"
    yield it
    await it.runner.cleanup()


def first(count: int, *statuses: web.Response | int, **headers: str) -> Answer:
    """Answer the first ``count`` requests with these statuses in turn, the others plainly."""

    async def answer(_: web.Request, number: int) -> web.Response | None:
        if number >= count:
            return None
        status = statuses[number % len(statuses)]
        assert isinstance(status, int)
        return web.Response(status=status, headers=headers)

    return answer


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
    assert without_secrets(source) in str(caught.value)
    assert await store.loads() == []
    assert await store.repository(view).count() == 0
    return caught.value


# --- servers that keep to the rules -------------------------------------------------------


async def test_only_the_needed_bytes_are_asked_for(feature_store: fs.FeatureStore, server: Server):
    server.pause = 0.05
    report = await loads_whole(feature_store, server.url)
    assert [load.source for load in report.loads] == [server.url]

    metadata = await asyncio.to_thread(
        lambda: pq.ParquetFile(pa.BufferReader(server.content)).metadata
    )
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    needed = {
        (chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size)
        for chunk in chunks
        if chunk.path_in_schema in COLUMNS
    }
    size = len(server.content)
    wanted = {(0, 4), (size - TAIL, TAIL)} | needed
    assert [one.headers["Range"] for one in server.requests][:2] == [
        "bytes=0-3",
        f"bytes={size - TAIL}-{size - 1}",
    ]
    asked = [re.findall(r"\d+", one.headers["Range"]) for one in server.requests]
    assert {(int(a), int(b) - int(a) + 1) for a, b in asked} == wanted
    assert server.bytes_served == 4 + TAIL + sum(length for _, length in needed)
    assert server.bytes_served < size * 0.75
    assert server.most_at_once == http.PARALLEL == 4
    assert {one.headers["Accept-Encoding"] for one in server.requests} == {"identity"}
    assert {one.headers.get("If-Match") for one in server.requests[1:]} == {'"one"'}


async def test_the_same_content_is_skipped(feature_store: fs.FeatureStore, server: Server):
    await loads_whole(feature_store, server.url)
    again = await feature_store.ingest(view, server.url + "?other=name")
    assert [load.skipped for load in again.loads] == [True]


async def test_large_ranges_come_in_pieces(
    feature_store: fs.FeatureStore, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http, "PIECE", 10_000)
    await loads_whole(feature_store, server.url)
    assert len(server.requests) > 25
    assert server.most_at_once <= http.PARALLEL


async def test_a_hosts_files_have_one_limit_together(
    featurestore_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http, "PIECE", 10_000)
    server.pause = 0.01
    async with contextlib.AsyncExitStack() as stack:
        urls = [f"{server.url}?{n}" for n in range(4)]
        readers = [await stack.enter_async_context(http.open_url(url)) for url in urls]
        reading = (reader.read(0, reader.size) for reader in readers)
        assert await asyncio.gather(*reading) == [server.content] * 4
    assert server.most_at_once == http.REQUESTS < 4 * http.PARALLEL


async def test_a_view_may_have_a_url_as_its_source(feature_store: fs.FeatureStore, server: Server):
    await feature_store.apply(
        fs.FeatureView(
            "noisy",
            entities=view.entities,
            fields=[fs.Field("renamed", fs.Float64)],
            timestamp_field="event_timestamp",
            source=fs.ParquetSource(server.url, field_mapping={"noise_2": "renamed"}),
        )
    )
    report = await feature_store.ingest("noisy")
    assert report.rows_written == ROWS


async def test_files_and_urls_in_one_list(
    feature_store: fs.FeatureStore, server: Server, tmp_path: Path
):
    await feature_store.apply(view)
    local = tmp_path / "local.parquet"
    await asyncio.to_thread(pq.write_table, readings().slice(0, 10), local)
    server.answer = first(99, 404)
    secret = server.url.replace("http://", "http://me:secret@") + "?token=secret"
    with pytest.raises(fs.SourceError) as caught:
        await feature_store.ingest(view, [local, secret])
    assert "File 2 of 2 failed" in caught.value.__notes__[0]
    assert "secret" not in str(caught.value) + caught.value.__notes__[0]
    assert [load.source for load in await feature_store.loads()] == [str(local)]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
async def test_a_server_without_strong_etags_is_asked_without_conditions(
    feature_store: fs.FeatureStore, server: Server, etag: str
):
    server.etag = etag
    await loads_whole(feature_store, server.url)
    assert not any("If-Match" in one.headers for one in server.requests)


# --- servers without ranges ---------------------------------------------------------------


async def test_without_ranges_the_file_is_copied_for_the_load(
    feature_store: fs.FeatureStore,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    server.ranges = False
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(http, "BLOCK", 10_000)
    report = await loads_whole(feature_store, server.url)
    assert [load.source for load in report.loads] == [server.url]
    assert len(server.requests) == 1
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_a_copy_that_is_cut_off_begins_anew(feature_store: fs.FeatureStore, server: Server):
    server.ranges = False

    async def answer(request: web.Request, number: int) -> web.StreamResponse | None:
        return await server.cut(request) if number == 0 else None

    server.answer = answer
    await loads_whole(feature_store, server.url)
    assert len(server.requests) == 2


async def test_a_copy_without_room_is_named(
    feature_store: fs.FeatureStore,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    server.ranges = False
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    await fails(feature_store, server.url, "temporary copy cannot be written.*TMPDIR")


async def test_an_unknown_length_needs_the_whole_file(
    feature_store: fs.FeatureStore, server: Server
):
    async def answer(request: web.Request, _: int) -> web.Response | None:
        if "Range" not in request.headers:
            return None
        headers = {"Content-Range": "bytes 0-3/*"}
        return web.Response(status=206, body=b"PAR1", headers=headers)

    server.answer = answer
    await loads_whole(feature_store, server.url)
    assert len(server.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
async def test_an_empty_file_is_named(feature_store: fs.FeatureStore, server: Server, ranges: bool):
    server.content, server.ranges = b"", ranges
    await fails(feature_store, server.url, "empty")


@pytest.mark.parametrize("ranges", [True, False])
async def test_cancelling_ends_connections_and_the_copy(
    feature_store: fs.FeatureStore,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranges: bool,
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(http, "BLOCK", 10_000)
    server.ranges = ranges
    under_way = asyncio.Event()
    open_now: list[web.Request] = []

    async def answer(request: web.Request, number: int) -> web.StreamResponse | None:
        if ranges and number < 2:
            return None
        whole = server.plain(request)
        part = web.StreamResponse(status=whole.status, headers=whole.headers)
        await part.prepare(request)
        assert isinstance(whole.body, bytes)
        await part.write(whole.body[: len(whole.body) // 2])
        open_now.append(request)
        under_way.set()
        while request.transport is not None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        open_now.remove(request)
        return part

    server.answer = answer
    await feature_store.apply(view)
    load = asyncio.create_task(feature_store.ingest(view, server.url))
    await asyncio.wait_for(under_way.wait(), 10)
    await asyncio.sleep(0.1)
    assert len(open_now) == (http.PARALLEL if ranges else 1)
    load.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert time.monotonic() - started < 3
    async with asyncio.timeout(3):
        while open_now:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(os.listdir, tmp_path) == []
    assert await feature_store.loads() == []


# --- what may pass ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(
    feature_store: fs.FeatureStore, server: Server, status: int
):
    server.answer = first(http.TRIES - 1, status)
    await loads_whole(feature_store, server.url)


@pytest.mark.parametrize("status", [429, 503])
async def test_tries_are_bounded(feature_store: fs.FeatureStore, server: Server, status: int):
    server.answer = first(99, status)
    await fails(feature_store, server.url, f"answers {status} .* tries. Try again later")
    assert len(server.requests) == http.TRIES


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_obeyed(feature_store: fs.FeatureStore, server: Server, status: int):
    server.answer = first(1, status, **{"Retry-After": "1"})
    await loads_whole(feature_store, server.url)
    assert 1 <= server.times[1] - server.times[0] < 5


async def test_nobody_waits_longer_than_the_cap(feature_store: fs.FeatureStore, server: Server):
    server.answer = first(99, 503, **{"Retry-After": "3600"})
    await fails(feature_store, server.url, r"503 .*asks to wait 3,600 s")
    assert len(server.requests) == 1


def test_retry_after_in_seconds_or_as_a_date(featurestore_url: str):
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20)
    assert http._retry_after("7") == 7
    assert http._retry_after(email.utils.format_datetime(soon, usegmt=True)) == pytest.approx(
        20, abs=2
    )
    assert http._retry_after("Mon, 01 Jan 2024 12:00:00 GMT") == 0
    assert http._retry_after("Mon, 01 Jan 2024 12:00:00 -0000") == 0
    assert [http._retry_after(odd) for odd in ("", "soon", "-1", "1.5")] == [None] * 4


async def test_bodies_cut_short_are_asked_for_again(feature_store: fs.FeatureStore, server: Server):
    async def answer(request: web.Request, number: int) -> web.StreamResponse | None:
        return await server.cut(request) if number % 2 else None

    server.answer = answer
    await loads_whole(feature_store, server.url)
    assert len(server.requests) > 10


async def test_bodies_always_cut_short_are_an_error(feature_store: fs.FeatureStore, server: Server):
    async def answer(request: web.Request, number: int) -> web.StreamResponse | None:
        return await server.cut(request) if number > 2 else None

    server.answer = answer
    await fails(feature_store, server.url, "Try again later")


@pytest.mark.parametrize("stalled", [0, 1, 4], ids=["probe", "footer", "columns"])
async def test_a_stall_ends_in_time(
    feature_store: fs.FeatureStore,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    stalled: int,
):
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(http, "TRIES", 2)

    async def answer(_: web.Request, number: int) -> None:
        if number >= stalled:
            await asyncio.sleep(60)

    server.answer = answer
    started = time.monotonic()
    await fails(feature_store, server.url, "ReadTimeout.* 2 tries")
    assert time.monotonic() - started < 10


async def test_a_stall_that_passes_does_no_harm(
    feature_store: fs.FeatureStore, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.3)

    async def answer(_: web.Request, number: int) -> None:
        if number in (0, 3):
            await asyncio.sleep(60)

    server.answer = answer
    await loads_whole(feature_store, server.url)


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_trickle_ends_at_the_deadline(
    feature_store: fs.FeatureStore, server: Server, monkeypatch: pytest.MonkeyPatch, ranges: bool
):
    """Each byte comes before the read times out: only the deadline ends this."""
    monkeypatch.setattr(http, "DEADLINE", 0.5)
    server.ranges = ranges

    async def answer(request: web.Request, _: int) -> web.StreamResponse:
        whole = server.plain(request)
        drops = web.StreamResponse(status=whole.status, headers=whole.headers)
        await drops.prepare(request)
        for _second in range(600):
            await drops.write(b"P")
            await asyncio.sleep(0.2)
        return drops

    server.answer = answer
    await fails(feature_store, server.url, r"no whole answer within 0\.5 s")


async def test_nobody_listening(feature_store: fs.FeatureStore, server: Server):
    assert server.runner is not None
    await server.runner.cleanup()
    error = await fails(feature_store, server.url, "ConnectError.* tries")
    assert error.__cause__ is not None


# --- what does not pass -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "would not help"),
        (401, "credentials"),
        (403, "signed link may have expired"),
        (404, "check the URL"),
        (408, "would not help"),
        (410, "gone"),
    ],
)
async def test_other_refusals_are_final(
    feature_store: fs.FeatureStore, server: Server, status: int, advice: str
):
    server.answer = first(99, status)
    await fails(feature_store, server.url, f"answers {status} .*{advice}")
    assert len(server.requests) == 1


@pytest.mark.parametrize("at", [1, 3], ids=["footer", "columns"])
@pytest.mark.parametrize("obedient", [True, False], ids=["412", "206"])
@pytest.mark.parametrize("what", ["etag", "modified", "content"])
async def test_a_file_that_changes_is_an_error(
    feature_store: fs.FeatureStore, server: Server, at: int, obedient: bool, what: str
):
    if what != "etag":
        server.etag = ""

    async def answer(request: web.Request, number: int) -> web.Response | None:
        if number >= at:
            changed = {
                "etag": '"two"',
                "modified": "Mon, 01 Jan 2024 12:00:01 GMT",
                "content": server.content + b" ",
            }[what]
            if number == at:
                setattr(server, what, changed)
            if not obedient:
                asked = request.clone(headers={"Range": request.headers["Range"]})
                return server.plain(asked)
        return None

    server.answer = answer
    await fails(feature_store, server.url, "changed while it was read")


@pytest.mark.parametrize(
    "claim", ["bytes 1-4/{size}", "bytes 0-9/{size}", "bytes */{size}", "octets", ""]
)
@pytest.mark.parametrize("at", [0, 1, 3], ids=["probe", "footer", "columns"])
async def test_a_wrong_content_range_is_named(
    feature_store: fs.FeatureStore, server: Server, claim: str, at: int
):
    async def answer(request: web.Request, number: int) -> web.Response | None:
        if number < at:
            return None
        response = server.plain(request)
        response.headers.pop("Content-Range", None)  # the whole file has none
        if claim and "Range" in request.headers:
            response.headers["Content-Range"] = claim.format(size=len(server.content))
        return response

    server.answer = answer
    if at == 0 and "{size}" not in claim:  # the length is not known: as without ranges
        await loads_whole(feature_store, server.url)
    else:
        await fails(feature_store, server.url, "asked for .* the server sends something else")


async def test_more_bytes_than_asked_for_are_refused(
    feature_store: fs.FeatureStore, server: Server
):
    async def answer(request: web.Request, number: int) -> web.Response | None:
        if number == 0:
            return None
        response = server.plain(request)
        assert isinstance(response.body, bytes)
        return web.Response(
            status=206,
            body=response.body + b"more",
            headers={"Content-Range": response.headers["Content-Range"]},
        )

    server.answer = answer
    await fails(feature_store, server.url, "sends something else")


async def test_ranges_that_end_midway_are_named(feature_store: fs.FeatureStore, server: Server):
    async def answer(_: web.Request, number: int) -> None:
        server.ranges = number < 3

    server.answer = answer
    await fails(feature_store, server.url, r"sends something else \(200, no Content-Range\)")


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_page_for_people_is_no_file(
    feature_store: fs.FeatureStore, server: Server, ranges: bool
):
    server.ranges = ranges

    async def answer(request: web.Request, _: int) -> web.Response:
        server.content = b"<!doctype html><title>Sign in</title>" * 10
        response = server.plain(request)
        response.content_type = "text/html"
        return response

    server.answer = answer
    await fails(feature_store, server.url, "no Parquet file .*text/html.*login")
    assert len(server.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
async def test_content_encoding_is_not_applied(
    feature_store: fs.FeatureStore, server: Server, ranges: bool
):
    """Storage keeps such a header with the file, whether it is true or not."""
    server.ranges = ranges

    async def answer(request: web.Request, _: int) -> web.Response:
        response = server.plain(request)
        response.headers["Content-Encoding"] = "gzip"
        return response

    server.answer = answer
    await loads_whole(feature_store, server.url)


# --- redirects, proxies and secrets ---------------------------------------------------------


async def test_redirects_are_followed_once(feature_store: fs.FeatureStore, server: Server):
    async def answer(request: web.Request, _: int) -> web.Response | None:
        if request.path == "/data/x.parquet":
            return web.Response(status=302, headers={"Location": "/elsewhere?signature=1"})
        return None

    server.answer = answer
    report = await loads_whole(feature_store, server.url)
    assert [load.source for load in report.loads] == [server.url]
    paths = [one.path for one in server.requests]
    assert paths.count("/data/x.parquet") == 1


async def test_an_expired_redirect_is_asked_for_anew(
    feature_store: fs.FeatureStore, server: Server
):
    async def answer(request: web.Request, number: int) -> web.Response | None:
        if request.path == "/data/x.parquet":
            place = f"/signed/{number}"
            return web.Response(status=302, headers={"Location": place})
        return web.Response(status=403) if request.path == "/signed/0" and number > 2 else None

    server.answer = answer
    await loads_whole(feature_store, server.url)


@pytest.mark.parametrize(
    "place", ["/data/x.parquet", "ftp://127.0.0.1/x", "file:///etc/passwd"], ids=str
)
async def test_redirects_are_limited(feature_store: fs.FeatureStore, server: Server, place: str):
    async def answer(_: web.Request, __: int) -> web.Response:
        return web.Response(status=302, headers={"Location": place})

    server.answer = answer
    await fails(feature_store, server.url, "redirect leads away .* more than 5")
    assert len(server.requests) <= http.REDIRECTS + 1


async def test_secrets_stay_secret(
    feature_store: fs.FeatureStore, server: Server, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    url = server.url.replace("http://", "http://me:hush%40@") + "?token=hush&v=hush#hush"
    shown = server.url + "?token=***&v=***"
    report = await loads_whole(feature_store, url)
    assert [load.source for load in report.loads] == [shown]
    assert [load.source for load in await feature_store.loads()] == [shown]
    wanted = "Basic " + base64.b64encode(b"me:hush@").decode()
    assert {one.headers["Authorization"] for one in server.requests} == {wanted}
    assert {one.query_string for one in server.requests} == {"token=hush&v=hush"}
    logged = [one.getMessage() for one in caplog.records if not one.name.startswith("aiohttp")]
    assert any(shown in message for message in logged)
    assert not any("hush" in message for message in logged)
    server.answer = first(99, 403)
    with pytest.raises(fs.SourceError) as caught:
        await feature_store.ingest(view, url)
    assert shown in str(caught.value)
    assert "hush" not in repr(caught.value)


async def test_progress_shows_no_secrets(feature_store: fs.FeatureStore, server: Server):
    await feature_store.apply(view)
    told: list[fs.Progress] = []
    await feature_store.ingest(view, server.url + "?token=hush", progress=told.append)
    assert {one.file for one in told} == {server.url + "?token=***"}
    assert told[-1].bytes_done == told[-1].bytes_total


async def test_the_proxy_of_the_environment_is_asked(
    feature_store: fs.FeatureStore, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/data/x.parquet"))
    monkeypatch.setenv("NO_PROXY", "")
    await loads_whole(feature_store, "http://data.invalid/x.parquet")
    assert {one.headers["Host"] for one in server.requests} == {"data.invalid"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/x.parquet", "https://host/x.parquet"),
        ("https://u:p@host:8/a@b/x?k=v&l=w&raw#f", "https://host:8/a@b/x?k=***&l=***&***"),
        ("https://u:p@[::1]:8/x?", "https://[::1]:8/x?"),
        ("https://u@host", "https://host"),
        ("data/what?.parquet", "data/what?.parquet"),
    ],
)
def test_what_is_shown_of_a_url(featurestore_url: str, url: str, shown: str):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    "url", ["http://", "https:///x", "http://u:hush/hush@host/x", "http://u:hush@host:99999/x"]
)
async def test_what_is_no_url(feature_store: fs.FeatureStore, url: str):
    await feature_store.apply(view)
    with pytest.raises(fs.SourceError, match="no valid URL") as caught:
        await feature_store.ingest(view, url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://key:hush@host/x.parquet?v=hush", "file:///x", "://"])
async def test_other_schemes_are_named(featurestore_url: str, url: str):
    with pytest.raises(fs.SourceError, match=r"cannot be read.*http://, https://") as caught:
        await resolve_sources([url])
    assert "hush" not in str(caught.value)
    url = "HTTPS://host/*.parquet?x"
    assert await resolve_sources([url]) == [SourceFile(url)]


async def test_a_missing_httpx_is_named(
    feature_store: fs.FeatureStore, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "httpx", None)
    await fails(feature_store, server.url, r"pip install 'featurestore\[http\]'")


async def test_the_sync_store_reads_urls(featurestore_url: str, server: Server):
    def load() -> int:
        with allow_blocking(), fs.sync.FeatureStore(featurestore_url) as store:
            store.apply(view)
            return store.ingest(view, server.url).rows_written

    assert await asyncio.to_thread(load) == ROWS
