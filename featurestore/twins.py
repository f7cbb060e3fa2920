"""Documentation of what has a twin: written once, and found on both."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_REFERENCE = re.compile(r"See :(?:meth|attr):`[\w.]+`\.\s*")
_EXAMPLE = "\n\nExample::"


def documented_by(twin: type) -> Callable[[type[T]], type[T]]:
    """A class decorator: what only refers to its like of ``twin`` has the documentation itself.

    A docstring that begins with ``See :meth:`…`.`` becomes that of the member of the same name,
    with the rest of it, which says what is different here, as its last paragraph. The class's own
    stays, and is followed by what the twin's says of parameters; the twin's example, and its first
    paragraph, which says what it is, are left out.
    """

    def decorate(kind: type[T]) -> type[T]:
        for name, member in vars(kind).items():
            own = getattr(member, "__doc__", None)
            # Without any where Python leaves docstrings out (-OO).
            if not name.startswith("_") and own and (found := _REFERENCE.match(own)):
                whole = inspect.getdoc(getattr(twin, name)) or ""
                note = inspect.cleandoc(own[found.end() :])
                member.__doc__ = f"{whole}\n\n{note}" if note else whole
        kind.__doc__ = _of_class(inspect.getdoc(kind) or "", inspect.getdoc(twin) or "")
        return kind

    return decorate


def _of_class(own: str, twin: str) -> str:
    parameters = twin.partition(_EXAMPLE)[0].partition("\n\n")[2]
    first, mark, example = own.partition(_EXAMPLE)
    return "\n\n".join(part for part in (first, parameters) if part) + mark + example
