"""Stream the weather APIs into a view, with httpx:  python with_httpx.py http://localhost:8090"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from polling import Answer, Get, Limits, Passing, main


@asynccontextmanager
async def client(limits: Limits) -> AsyncIterator[Get]:
    """One client for all requests: it keeps connections open from one to the next."""
    # httpx's timeouts are for single steps; the deadline of a whole request is the poll's.
    async with httpx.AsyncClient(
        timeout=limits.request_seconds,
        limits=httpx.Limits(max_connections=limits.requests_at_once),
    ) as http:

        async def get(url: str) -> Answer:
            try:
                response = await http.get(url)
            except httpx.TransportError as error:
                raise Passing(str(error) or type(error).__name__) from error
            retry_after = response.headers.get("Retry-After")
            return Answer(response.status_code, retry_after, response.content)

        yield get


if __name__ == "__main__":
    sys.exit(main(client))
