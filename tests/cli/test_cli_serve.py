"""serve and keys on the command line: what is refused, what is printed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cli_helpers import Run

from featurestore.cli.commands import serving
from featurestore.cli.commands.keys import SCOPES as SCOPES_OF_KEYS
from featurestore.server import ServerLimits
from featurestore.storage.api_keys import SCOPES


def test_a_key_is_shown_once(run: Run, loaded: Path):
    done = run("keys", "create", "checkout service", "--scope", "write")
    token = done.out.strip()
    assert token.startswith("fs_")
    assert len(token.rpartition("_")[2]) == 64
    assert done.err == (
        "Key checkout service of project default may write. It is shown this once:\n"
    )
    listed = run("keys", "list")
    assert token.split("_")[1] in listed.out
    assert token.rpartition("_")[2] not in listed.out
    assert listed.out.splitlines()[0].split() == ["name", "scope", "id", "created", "state"]
    assert listed.out.splitlines()[1].startswith("checkout service  write  ")


def test_keys_as_json(run: Run, loaded: Path):
    made = run("keys", "create", "a", "--json").json
    (listed,) = run("keys", "list", "--json").json
    token = made.pop("key")
    assert made == listed
    assert (listed["name"], listed["scope"], listed["revoked_at"]) == ("a", "read", None)
    assert token == f"fs_{listed['id']}_{token.rpartition('_')[2]}"
    revoked = run("keys", "revoke", "a", "--json").json
    assert revoked["revoked_at"] is not None
    assert run("keys", "list", "--json").json == [revoked]


def test_a_key_is_revoked_by_name_or_id(run: Run, loaded: Path):
    first = run("keys", "create", "a", "--json").json
    run("keys", "create", "b")
    assert run("keys", "revoke", first["id"]).err == (
        "Key a of project default opens nothing any more.\n"
    )
    again = run("keys", "revoke", "a", "--json").json
    assert again == run("keys", "revoke", "a", "--json").json
    states = {
        line.split()[0]: line.split()[-1] for line in run("keys", "list").out.splitlines()[1:]
    }
    assert states["a"] == "revoked"
    assert states["b"] != "revoked"
    assert "Did you mean 'b'" in run("keys", "revoke", "bb", status=1).err
    assert "'a'" in run("keys", "create", "a", status=1).err  # its name stays taken


def test_there_are_no_keys(run: Run, loaded: Path):
    done = run("keys", "list")
    assert (done.out, done.err) == (
        "",
        "No keys in project default: see featurestore keys create.\n",
    )
    assert "has none that counts" in run("keys", "revoke", "a", status=1).err


@pytest.mark.parametrize("name", ["", " a", "a\nb", "-", "x" * 101])
def test_a_name_that_cannot_be(run: Run, loaded: Path, name: str):
    assert "cannot name a key" in run("keys", "create", "--", name, status=1).err


def test_keys_need_tables(run: Run, folder: Path):
    for args in (["keys", "list"], ["keys", "create", "a"], ["serve"]):
        assert "featurestore migrate" in run(*args, status=1).err


def test_beyond_loopback_a_key_is_needed(run: Run, loaded: Path):
    for host in ("0.0.0.0", "::"):
        done = run("serve", "--host", host, "--port", "0", status=2)
        assert "featurestore keys create" in done.err
        assert "--no-auth" in done.err
    run("keys", "create", "a")
    run("keys", "revoke", "a")
    assert "has no key" in run("serve", "--host", "0.0.0.0", status=2).err


def test_a_port_that_is_taken(run: Run, loaded: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", port, status=2)
    assert (
        done.err == f"error: 127.0.0.1 port {port} cannot be listened on: Address already in use.\n"
    )


def test_a_host_that_is_not_there(run: Run, loaded: Path):
    assert "--host nowhere.invalid:" in run("serve", "--host", "nowhere.invalid", status=2).err


def test_figures_are_those_of_the_server():
    limits = ServerLimits()
    assert limits.body_bytes == serving.BODY
    assert limits.values == serving.VALUES
    assert limits.requests == serving.REQUESTS
    assert limits.seconds == serving.SECONDS
    assert SCOPES_OF_KEYS == SCOPES
