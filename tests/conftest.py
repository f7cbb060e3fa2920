"""What every test has: pytest's own tester, and Hypothesis without a clock.

The databases, the stores on them and the loop guard come from the package's pytest plugin
(``featurestore/testing/plugin.py``). Folders of tests are no packages: their files need names
of their own, and what they share is imported by its bare name (``import oracle``).
"""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, Phase, settings

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


@pytest.fixture(autouse=True, scope="module")
def _settled_heap() -> None:
    """What earlier modules have left is not looked through again by the garbage collector, whose
    pauses of 0.1 s and more the guard of the loop would put down to the test."""
    gc.collect()
    gc.freeze()
