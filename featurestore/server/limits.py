"""How much one server takes on: figures, and what is said beyond them."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class ServerLimits:
    """What a server (one worker of it) takes on at most.

    ``body_bytes``: of one request. ``values``: entities × features of one read, and rows × columns
    of one push. ``requests``: under way at a time, and ``bytes_in_flight`` what their bodies take
    together. ``training_reads``: historical reads at a time, which are long and take a connection
    each. ``seconds``: from the first byte of a request to its answer, and again for sending that.
    """

    body_bytes: int = 16 * MIB
    values: int = 1_000_000
    requests: int = 1_000
    bytes_in_flight: int = 256 * MIB
    training_reads: int = 2
    seconds: float = 30.0


RETRY_AFTER_SECONDS = 1
"""When to come again after a 503: overload passes within a second or is there to stay."""

INLINE_BYTES = 32_768
"""Bodies up to this size are parsed on the loop, in about 0.1 ms; larger ones in a thread."""

INLINE_VALUES = 1_000
"""Up to so many values are read from JSON's, or made into them, on the loop: in about 1 ms."""

MAX_FEATURES = 10_000
"""What a request may name: more than any service has, and each is looked up."""
