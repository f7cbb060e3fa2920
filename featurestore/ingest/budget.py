"""How much memory an ingest may take, and which stage of a load takes how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.ingest.parquet import Limits

MAX_BYTES_IN_FLIGHT = 256 * 1024 * 1024
"""Bytes of files that are read, decoded or written at any moment of an ingest, by default."""

MAX_DECODED_BYTES = 2 * 1024 * 1024 * 1024
"""Bytes that a row group may decode to, by default: writers make them of some 0.1 to 1 GB."""


@dataclass(frozen=True)
class Budget:
    """What one load may hold, in bytes: while its file is read and decoded (``limits``), in a
    chunk of rows that are sorted together, and in the newest rows of its keys."""

    limits: Limits
    chunk_bytes: int
    newest_bytes: int

    @classmethod
    def of(cls, in_flight: int = MAX_BYTES_IN_FLIGHT, decoded: int = MAX_DECODED_BYTES) -> Budget:
        """Divide ``in_flight`` among the stages that hold rows at the same time.

        Of 24 parts 9 are for reading and decoding, 4 for batches of one part each that are
        checked or wait, 6 for three chunks (one gathered, one sorted, one written), 3 for the
        newest rows; 2 are spare.
        """
        part = max(in_flight // 24, 1)
        return cls(Limits(9 * part, part, decoded), 2 * part, 3 * part)
