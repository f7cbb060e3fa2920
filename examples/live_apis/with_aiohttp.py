"""Stream the weather APIs into a view, with aiohttp:  python with_aiohttp.py http://localhost:8090"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from polling import Answer, Get, Limits, Passing, main


@asynccontextmanager
async def client(limits: Limits) -> AsyncIterator[Get]:
    """One session for all requests: it keeps connections open from one to the next."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=limits.request_seconds),
        connector=aiohttp.TCPConnector(limit=limits.requests_at_once),
    ) as http:

        async def get(url: str) -> Answer:
            try:
                async with http.get(url) as response:
                    retry_after = response.headers.get("Retry-After")
                    return Answer(response.status, retry_after, await response.read())
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                raise Passing(str(error) or type(error).__name__) from error

        yield get


if __name__ == "__main__":
    sys.exit(main(client))
