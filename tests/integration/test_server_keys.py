"""Who may call the HTTP server: keys, their scopes, and how soon a revoke counts."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from http_serving import DRIVERS, ONLINE, PUSH, asked, client_of, row

import featurestore as fs
from featurestore.server import auth
from featurestore.storage.api_keys import Scope, create_key, list_keys, revoke_key

Make = Callable[..., Awaitable[dict[str, str]]]


@pytest.fixture
async def store(feature_store: fs.FeatureStore) -> fs.FeatureStore:
    await feature_store.apply([DRIVERS])
    return feature_store


async def make(store: fs.FeatureStore, name: str, scope: Scope = Scope.READ) -> dict[str, str]:
    """A new key, as a header."""
    async with store._context.transaction() as session:
        _, token = await create_key(session, store.project, name, scope, dt.datetime.now(dt.UTC))
    return {"Authorization": f"Bearer {token}"}


async def revoke(store: fs.FeatureStore, name: str) -> None:
    async with store._context.transaction() as session:
        await revoke_key(session, store.project, name, dt.datetime.now(dt.UTC))


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert ("www-authenticate" in answer.headers) == (status == 401)
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
async def test_each_scope_includes_those_below(store: fs.FeatureStore):
    keys = {scope: await make(store, str(scope), scope) for scope in Scope}
    calls: list[tuple[Scope, str, str, Any]] = [
        (Scope.READ, "POST", ONLINE, asked(1)),
        (Scope.READ, "GET", "/v1/views", None),
        (Scope.READ, "GET", "/metrics", None),
        (Scope.WRITE, "POST", PUSH, {"rows": [row(1)]}),
    ]
    async with client_of(store, auth="required") as client:
        for needed, method, path, body in calls:
            refused(await client.request(method, path, json=body), 401)
            for scope, headers in keys.items():
                answer = await client.request(method, path, json=body, headers=headers)
                if scope >= needed:
                    assert answer.status_code == 200
                else:
                    assert f"needs one that may {needed}" in refused(answer, 403)
        for path in ("/health", "/health/live", "/health/ready", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


async def test_what_is_no_key_opens_nothing(store: fs.FeatureStore):
    good = (await make(store, "a"))["Authorization"]
    key = good.removeprefix("Bearer ")
    prefix, key_id, secret = key.split("_")
    other = (await make(store, "b"))["Authorization"].rpartition("_")[2]
    async with client_of(store, auth="required") as client:

        async def status(header: str) -> int:
            headers = {"Authorization": header}
            return (await client.post(ONLINE, json=asked(1), headers=headers)).status_code

        assert await status(good) == 200
        assert await status(f"bearer {key}") == 200
        for header in (
            *("", "Bearer", "Bearer ", f"Basic {key}", key, f"Bearer {key}x", f"Bearer {key[:-1]}"),
            *(f"Bearer {prefix}_{key_id}_{other}", f"Bearer {prefix}__{secret}", "Bearer fs__"),
            f"Bearer {prefix}_{key_id}_{hashlib.sha256(secret.encode()).hexdigest()}",
        ):
            assert await status(header) == 401, header
        headers = [("Authorization", b"Bearer fs_\xff_\xfe")]
        assert (await client.post(ONLINE, json=asked(1), headers=headers)).status_code == 401


async def test_a_key_of_another_project_opens_nothing(
    store: fs.FeatureStore, featurestore_url: str
):
    async with fs.FeatureStore(featurestore_url, project="other") as other:
        headers = await make(other, "a", Scope.ADMIN)
    async with client_of(store, auth="required") as client:
        refused(await client.post(ONLINE, json=asked(1), headers=headers), 401)


async def test_the_secret_is_nowhere(store: fs.FeatureStore):
    headers = await make(store, "a")
    secret = headers["Authorization"].rpartition("_")[2]
    async with store._context.snapshot() as session:
        (key,) = await list_keys(session, store.project)
    assert key.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in repr(vars(key))
    assert key.hash not in repr(key)


async def test_a_revoked_key_opens_nothing_soon(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(auth, "FRESH_SECONDS", 0.1)
    monkeypatch.setattr(auth, "MAX_SECONDS", 0.3)
    headers = await make(store, "a")
    async with client_of(store, auth="required") as client:
        assert (await client.post(ONLINE, json=asked(1), headers=headers)).status_code == 200
        await revoke(store, "a")
        await asyncio.sleep(0.3)  # the promise: not longer than that
        refused(await client.post(ONLINE, json=asked(1), headers=headers), 401)


async def test_a_new_key_opens_at_once(store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auth, "AGAIN_SECONDS", 0.0)
    async with client_of(store, auth="required") as client:
        refused(await client.post(ONLINE, json=asked(1)), 401)
        headers = await make(store, "a")
        assert (await client.post(ONLINE, json=asked(1), headers=headers)).status_code == 200


async def test_made_up_keys_do_not_reach_the_database(store: fs.FeatureStore):
    async with client_of(store, auth="required") as client:
        keys = client.state.keys  # type: ignore[attr-defined]
        loads, load = 0, keys._load

        async def counted() -> Any:
            nonlocal loads
            loads += 1
            return await load()

        keys._load = counted
        answers = await asyncio.gather(
            *(
                client.post(
                    ONLINE, json=asked(1), headers={"Authorization": f"Bearer fs_{n:016x}_abc"}
                )
                for n in range(200)
            )
        )
        assert {answer.status_code for answer in answers} == {401}
        assert loads <= 5  # one every half second


async def test_without_the_database_nobody_is_let_in(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    """Keys are remembered for so long and no longer: one of them may have been revoked."""
    monkeypatch.setattr(auth, "MAX_SECONDS", 0.2)
    headers = await make(store, "a")
    async with client_of(store, auth="required") as client:

        async def gone() -> Any:
            raise fs.StoreUnavailableError("The database has gone.")

        assert (await client.get("/v1/views", headers=headers)).status_code == 200
        client.state.keys._load = gone  # type: ignore[attr-defined]
        assert (await client.get("/v1/views", headers=headers)).status_code == 200
        await asyncio.sleep(0.2)
        answer = await client.get("/v1/views", headers=headers)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "StoreUnavailableError"


# --- on this machine alone --------------------------------------------------------------------


async def test_keys_are_demanded_from_the_first_one_on(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(auth, "MAX_SECONDS", 0.0)
    async with client_of(store, auth="if-keys") as client:
        assert (await client.post(PUSH, json={"rows": [row(1)]})).status_code == 200
        headers = await make(store, "a")
        refused(await client.post(ONLINE, json=asked(1)), 401)
        assert (await client.post(ONLINE, json=asked(1), headers=headers)).status_code == 200
        await revoke(store, "a")  # which must not open the door to everybody
        refused(await client.post(ONLINE, json=asked(1)), 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("10.1.2.3:8000", 200)),
        *(("evil.example", 403), ("localhost.evil.example:80", 403), ("127.0.0.1.evil", 403)),
    ],
)
async def test_without_keys_names_of_others_are_refused(
    store: fs.FeatureStore, host: str, status: int
):
    """A page in this machine's browser could have its own name lead here."""
    async with client_of(store, auth="if-keys") as client:
        answer = await client.post(ONLINE, json=asked(1), headers={"Host": host})
        assert answer.status_code == status
    async with client_of(store, auth="none") as client:
        answer = await client.post(ONLINE, json=asked(1), headers={"Host": host})
        assert answer.status_code == 200
