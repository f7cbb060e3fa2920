"""A program that reads a Parquet file and says what came of it, and the memory that it took.

In a process of its own: what it takes at most can be measured, and a crash would show.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from parquet_files import table_of

from featurestore.errors import FeatureStoreError
from featurestore.ingest.parquet import Limits, plan_chunks, read_batches, read_footer
from featurestore.ingest.ranges import open_file


def peak() -> float:
    """Megabytes that the process had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


async def consume(path: str, limits: Limits) -> tuple[int, int]:
    """Read all batches and let go of each; rows, and the largest batch."""
    rows = largest = 0
    async with open_file(path) as reader:
        footer = await read_footer(reader)
        names = list(dict.fromkeys(footer.schema.names))
        plan = plan_chunks(footer, names, reader.name, reader.size)
        async for batch, _ in read_batches(reader, footer, plan, names, None, limits):
            rows += batch.num_rows
            largest = max(largest, batch.nbytes)
    return rows, largest


async def main(path: str, warm: str) -> None:
    await table_of(Path(warm))  # so that what is loaded once does not count
    before = peak()
    said: dict[str, object] = {}
    try:
        said["rows"], said["largest"] = await consume(path, Limits())
    except FeatureStoreError as error:
        said["error"] = f"{type(error).__name__}: {error}"
    said["megabytes"] = peak() - before
    print(json.dumps(said))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    asyncio.run(main(sys.argv[1], sys.argv[2]))
