"""What the tests of the web frameworks' integrations share: a service of drivers."""

from __future__ import annotations

import datetime as dt
import os
import socket
import subprocess
import sys
from pathlib import Path

import featurestore as fs

driver = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
rates = fs.FeatureView(
    "rates",
    entities=[driver],
    fields=[fs.Field("conv_rate", fs.Float64)],
    timestamp_field="known_at",
)
eta = fs.FeatureService("eta", features=[rates])

BOTH = ["sqlite", "postgresql"]
NOT_READY = "The feature store is not ready."


def row(driver_id: object, rate: float) -> dict[str, object]:
    return {"driver_id": driver_id, "known_at": dt.datetime.now(dt.UTC), "conv_rate": rate}


async def fill(url: str, rate: float = 0.5, project: str = "default") -> None:
    """Make the tables of the service, and a driver numbered 1."""
    async with fs.FeatureStore(url, project=project) as store:
        await store.apply([rates, eta])
        await store.push("rates", [row(1, rate)])


def nowhere() -> str:
    """The URL of a PostgreSQL server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"postgresql://somebody:secret@127.0.0.1:{probe.getsockname()[1]}/private"


def run_service(arguments: list[str], folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    """A service as a process of its own, which has to end by itself."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "FEATURESTORE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
