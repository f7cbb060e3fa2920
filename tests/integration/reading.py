"""A program that reads Parquet files and says of each what came of it, and the memory it took.

Each is read in a process of its own, so that the most that it takes can be measured, and a crash
shows. They are forks of one process: what is loaded once does not count.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path

from parquet_files import table_of

from featurestore.errors import FeatureStoreError
from featurestore.ingest.parquet import Limits, plan_chunks, read_batches, read_footer
from featurestore.ingest.ranges import open_file

MEMORY = 8 << 30
"""Bytes of addresses that a process may take: a test that fails leaves the machine usable."""


def peak() -> float:
    """Megabytes that the process had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


async def consume(path: str) -> tuple[int, int]:
    """Read all batches and let go of each; rows, and the largest batch."""
    rows = largest = 0
    async with open_file(path) as reader:
        footer = await read_footer(reader)
        names = list(dict.fromkeys(footer.schema.names))
        plan = plan_chunks(footer, names, reader.name, reader.size)
        async for batch, _ in read_batches(reader, footer, plan, names, None, Limits()):
            rows += batch.num_rows
            largest = max(largest, batch.nbytes)
    return rows, largest


def outcome(path: str) -> dict[str, object]:
    before, began = peak(), time.process_time()
    said: dict[str, object] = {}
    try:
        said["rows"], said["largest"] = asyncio.run(consume(path))
    except FeatureStoreError as error:
        said["error"] = f"{type(error).__name__}: {error}"
    said["megabytes"] = peak() - before
    said["seconds"] = time.process_time() - began
    return said


def main(warm: str, *paths: str) -> None:
    asyncio.run(table_of(Path(warm)))
    for path in paths:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            line = json.dumps(outcome(path)) + "\n"
            os.write(1, line.encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            os.write(1, (json.dumps({"crash": status}) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
