"""What every command has in common: its options, and the classes that add them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click import HelpFormatter


@dataclass
class Settings:
    """The common options, as given before or after the command's name; the latter wins."""

    url: str | None = field(default=None, repr=False)  # it may hold a password
    project: str = "default"
    definitions: Path = Path("features.py")
    json: bool = False
    debug: bool = False
    command: click.Command | None = field(default=None, repr=False)  # what is run


FULL_NAMES = click.option(
    "--full-feature-names", is_flag=True, help="Call columns view__feature, not feature."
)


class WrongUse(click.ClickException):
    """The command line was fine but cannot work here; the message has the way out."""

    exit_code = 2


class ReaderLeft(Exception):
    """Whoever read standard output has closed it: ``featurestore … | head``."""


def pass_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Call ``function`` with the :class:`Settings` first."""
    return click.make_pass_decorator(Settings)(function)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep what was given; a default must not undo what stood before the command."""
    if value is not None and value is not False:
        setattr(ctx.ensure_object(Settings), str(param.name), value)


class _CommonOption(click.Option):
    """An option that every command takes, wherever it stands."""

    def __init__(self, *names: str, **attributes: Any) -> None:
        super().__init__(names, callback=_remember, expose_value=False, **attributes)


def _common_options() -> list[click.Option]:
    return [
        _CommonOption(
            "--url",
            metavar="URL",
            help="Database, as SQLAlchemy writes it. Else $FEATURESTORE_URL, else featurestore.db "
            "in this folder.",
        ),
        _CommonOption("--project", metavar="NAME", help='Project in it. Else "default".'),
        _CommonOption(
            "--definitions",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Python file of the definitions. Else features.py.",
        ),
        _CommonOption("--json", is_flag=True, help="Result as one JSON document."),
        _CommonOption("--debug", is_flag=True, help="Tracebacks for errors."),
    ]


def _write_options(params: list[click.Parameter], ctx: click.Context, out: HelpFormatter) -> None:
    """The command's own options, then those that all have."""
    options = [param for param in params if isinstance(param, click.Option)]
    common = [param for param in options if isinstance(param, _CommonOption)]
    own = [param for param in options if param not in common]
    for title, part in (("Options", own), ("Options of every command", common)):
        records = [param.get_help_record(ctx) for param in part]
        with out.section(title):
            out.write_dl([record for record in records if record is not None])


class Command(click.Command):
    """A command that takes the common options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Settings).command = self
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(click.Group):
    """The top: commands stand in the order in which they are used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self.get_params(ctx), ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # which click would make exit status 1 of
            raise ReaderLeft from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
