"""How values, answers, definitions and errors travel between the server and its clients.

Everything here makes plain Python structures (dicts, lists, text, numbers) that JSON has a form
for, or Arrow tables, and reads them back; :mod:`featurestore.wire.text` makes JSON text of them.
Both ends use these functions, so each thing is written down once, in both directions.

========================  ==========================================================
a value of type           is in JSON
========================  ==========================================================
Bool, Int32, Int64        ``true``, a number
Float32, Float64          a number; ``"NaN"``, ``"Infinity"``, ``"-Infinity"``
String                    text
Bytes                     text in base64
Timestamp                 ``"2024-03-31T01:30:00.000001Z"``
Date                      ``"2024-03-31"``
Decimal                   text: ``"12.50"``
Json                      the value itself
Array                     an array of these
null                      ``null``
========================  ==========================================================
"""

from __future__ import annotations

from featurestore.wire.answers import (
    decode_online,
    decode_push,
    encode_online,
    encode_push,
    encode_training,
    online_from_table,
    online_table,
    training_from_table,
    training_table,
)
from featurestore.wire.arrow import ARROW_STREAM, read_stream, write_stream
from featurestore.wire.definitions import (
    decode_entity,
    decode_service,
    decode_view,
    encode_entity,
    encode_service,
    encode_view,
)
from featurestore.wire.errors import NotOurs, decode_error, encode_error, status_of
from featurestore.wire.values import (
    decode,
    decode_rows,
    decoder,
    encode,
    encode_untyped,
    encoder,
    view_types,
)

__all__ = [
    "ARROW_STREAM",
    "NotOurs",
    "decode",
    "decode_entity",
    "decode_error",
    "decode_online",
    "decode_push",
    "decode_rows",
    "decode_service",
    "decode_view",
    "decoder",
    "encode",
    "encode_entity",
    "encode_error",
    "encode_online",
    "encode_push",
    "encode_service",
    "encode_training",
    "encode_untyped",
    "encode_view",
    "encoder",
    "online_from_table",
    "online_table",
    "read_stream",
    "status_of",
    "training_from_table",
    "training_table",
    "view_types",
    "write_stream",
]
