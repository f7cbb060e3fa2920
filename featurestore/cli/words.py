"""What an error says to do, in the words of the command line: the library's own are Python's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import click

_COMMANDS = {
    "export_history": "export",
    "get_historical_features": "training-set",
    "undo_load": "undo",
}
"""The commands of methods that have another name."""

_VALUE = r"True|'[^'\n]*'|[\w.]+"
_CALL = re.compile(r"\bstore\.(\w+)\(([^()\n]*)\)")
_SPOKEN = re.compile(r"`featurestore |--\w")


def as_options(
    text: str, command: click.Command | None, commands: Mapping[str, click.Command]
) -> str:
    """``text`` with arguments (``engine='sql'``) as options of ``command``, which was run, and
    calls (``store.mark()``) as commands. Texts that speak to both stay as they are."""
    if command is None or _SPOKEN.search(text):
        return text
    for option in command.params:
        if isinstance(option, click.Option) and option.name is not None:
            text = _with_option(text, option)
    return _CALL.sub(lambda call: _command(call, commands), text)


def _with_option(text: str, option: click.Option) -> str:
    name, spelled = re.escape(str(option.name)), max(option.opts, key=len)

    def given(found: re.Match[str]) -> str:
        value = found[1]
        return spelled if value == "True" else f"{spelled} {shlex.quote(value.strip(chr(39)))}"

    text = re.sub(rf"\b{name}=({_VALUE}(?!\w))", given, text)
    return re.sub(rf"\bby {name}\b", f"by {spelled}", text)


def _command(call: re.Match[str], commands: Mapping[str, click.Command]) -> str:
    name = _COMMANDS.get(call[1], call[1].replace("_", "-"))
    command = commands.get(name)
    if command is None:
        return call[0]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    given = [one.strip() for one in call[2].split(",") if one.strip()]
    words = [
        shlex.quote(value.strip("'")) if value.startswith("'") else str(argument.name).upper()
        for argument, value in zip(arguments, given, strict=False)
    ]
    return " ".join(["featurestore", name, *words])
