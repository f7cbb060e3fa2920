"""The HTTP server against its own OpenAPI document: whatever comes, an answer that it documents."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_serving import DAY, DRIVERS, Program

import featurestore as fs

pytestmark = pytest.mark.slow

SEED = "20240101"


@pytest.fixture
def program(featurestore_url: str) -> Iterator[Program]:
    async def apply() -> None:
        async with fs.FeatureStore(featurestore_url) as store:
            await store.apply([DRIVERS, fs.FeatureService("eta", features=[DRIVERS])])
            await store.push("drivers", [{"driver_id": 1, "at": DAY, "rate": 0.5, "city": "Oslo"}])

    asyncio.run(apply())
    with Program(featurestore_url) as program:
        yield program
        program.signal()
        status, said = program.ended()
        assert status == 0
        assert "ERROR" not in said


def schemathesis(program: Program, document: Any, folder: Path, *args: str) -> str:
    """Let schemathesis ask what it likes; what it reports."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("st")), "run", str(file), "--url", program.url]
    command += ["--max-examples", "40", "--seed", SEED, "--generation-deterministic", *args]
    command += ["--phases", "coverage,fuzzing", "--no-color"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_server_does_as_it_documents(program: Program, tmp_path: Path):
    document = httpx.get(f"{program.url}/openapi.json").json()
    said = schemathesis(program, document, tmp_path)
    assert "Tested: 13" in said


def test_requests_that_name_what_is_there(program: Program, tmp_path: Path):
    """Left to itself, schemathesis asks for features that nobody has registered."""
    document = httpx.get(f"{program.url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    features = ["drivers:rate", "drivers:city", "drivers:*"]
    for name in ("OnlineRequest", "HistoricalRequest"):
        properties = schemas[name]["properties"]
        properties["features"] = {
            "anyOf": [
                {"type": "array", "items": {"enum": features}, "minItems": 1},
                {"const": "eta"},
            ]
        }
        entity = properties["entities"]["items"] = {**properties["entities"]["items"]}
        entity["properties"] = {"driver_id": {"type": ["integer", "null"]}}
    schemas["Rows"]["properties"]["rows"]["items"] = {
        "type": "object",
        "properties": {
            "driver_id": {"type": "integer"},
            "at": {"type": "string", "format": "date-time"},
            "rate": {"type": ["number", "null"]},
            "city": {"type": ["string", "null"]},
        },
        "required": ["driver_id", "at", "rate", "city"],
        "additionalProperties": False,
    }
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = {"enum": ["drivers", "driver", "eta"]}
    # Rows that lack a key, say, fit this document and not the view.
    schemathesis(program, document, tmp_path, "--exclude-checks", "positive_data_acceptance")
