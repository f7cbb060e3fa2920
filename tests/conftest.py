"""What every test has: pytest's own tester, and Hypothesis without a clock.

The databases, the stores on them and the loop guard come from the package's pytest plugin
(``featurestore/testing/plugin.py``). Folders of tests are no packages: their files need names
of their own, and what they share is imported by its bare name (``import oracle``).
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from pgbouncer import PgBouncer, program_or_skip

from featurestore.testing import PostgresServer

pytest_plugins = ["pytester"]

settings.register_profile(
    "featurestore",
    max_examples=50,
    deadline=None,  # examples talk to databases
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # one database serves all examples of a test
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
    phases=[phase for phase in Phase if phase is not Phase.explain],  # minutes, with a database
    report_multiple_bugs=False,
    print_blob=True,
)
settings.register_profile(
    "thorough",  # pytest --hypothesis-profile=thorough, before a release: minutes
    parent=settings.get_profile("featurestore"),
    max_examples=1000,
)
settings.load_profile("featurestore")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pgbouncer",
        action="store_true",
        help="run tests/conformance behind PgBouncer in transaction mode, which must be there",
    )
    parser.addoption(
        "--all-points",
        action="store_true",
        help="break loads off at three times as many points",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Tests start many programs. Where Python is told to keep no bytecode, each would compile all
    # that it imports: 1.9 s of CPU for the library alone in place of 0.8.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ["PYTHONPYCACHEPREFIX"] = folder = tempfile.mkdtemp(prefix="bytecode-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def pgbouncer(
    request: pytest.FixtureRequest, featurestore_postgres: PostgresServer
) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode in front of the run's PostgreSQL server."""
    with PgBouncer(program_or_skip(request.config), featurestore_postgres) as bouncer:
        yield bouncer


@pytest.fixture(autouse=True, scope="module")
def _settled_heap() -> None:
    """What earlier modules have left is not looked through again by the garbage collector, whose
    pauses of 0.1 s and more the guard of the loop would put down to the test."""
    gc.collect()
    gc.freeze()
