"""How long callers wait, and how many may: what a store promises under load."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.errors import DefinitionError


@dataclass(frozen=True)
class Limits:
    """Bounds on waiting, for each store; beyond them calls end with :class:`OverloadedError`.

    ``max_waiting`` callers of reads wait at most, and as many of pushes. A call waits up to
    ``wait_seconds`` for its turn: for a free connection, for the statement that it is gathered
    into, for SQLite's writer. An online read that was sent is given up after ``answer_seconds``
    and a millisecond for each row that it asks for (:class:`StoreUnavailableError`), and its
    connection with it. ``connections`` to the database are open at the most, where the store makes
    its engine itself.
    """

    max_waiting: int = 10_000
    wait_seconds: float = 5.0
    answer_seconds: float = 10.0
    connections: int = 10

    def __post_init__(self) -> None:
        for name, least in (("max_waiting", 0), ("connections", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DefinitionError(f"{name}={value!r}: it is a whole number, {least} or more.")
        for name in ("wait_seconds", "answer_seconds"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < float("inf"):
                raise DefinitionError(f"{name}={value!r}: it is a number of seconds above 0.")


DEFAULT_LIMITS = Limits()
