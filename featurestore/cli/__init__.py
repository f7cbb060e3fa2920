"""The command line: ``featurestore …``, from definitions to features online.

Exit status: 0 done (also where the reader of the output left), 1 failed, 2 used wrongly,
130 interrupted. Standard output has results alone; everything else is on standard error.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click
from click.exceptions import NoArgsIsHelpError

from featurestore.cli import output
from featurestore.cli.commands import COMMANDS
from featurestore.cli.definitions import line_in
from featurestore.cli.options import Group, ReaderLeft, Settings
from featurestore.cli.session import Interrupted, leave
from featurestore.cli.words import as_options
from featurestore.errors import FeatureStoreError

__all__ = ["main"]

DONE, FAILED = 0, 1


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own --help.",
)
@click.version_option(package_name="featurestore", message="%(prog)s %(version)s")
def cli() -> None:
    """A feature store in PostgreSQL or SQLite.

    \b
    From a Parquet file to features online:
      featurestore init --from driver_stats.parquet
      featurestore apply
      featurestore ingest driver_stats
      featurestore online "driver_stats:*" driver_id=1001
    """


for command in COMMANDS:
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; ``args`` is the command line's by default."""
    settings = Settings()
    output.prepare_streams()
    try:
        status = cli.main(args, prog_name="featurestore", standalone_mode=False, obj=settings)
        sys.stdout.flush()  # here, where a reader that left can still be told from a failure
    except (ReaderLeft, BrokenPipeError):
        _leave_stdout()
        return DONE
    except click.Abort:  # Ctrl-C outside the event loop, or at a question
        output.say("Interrupted.")
        if args is None:
            leave(Interrupted.exit_code)
        return Interrupted.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where nothing may get past
        failed = _report(error, settings)
        if isinstance(error, Interrupted) and args is None:  # as a program, not called by one
            leave(failed)
        return failed
    return int(status or DONE)


def _leave_stdout() -> None:
    """``featurestore … | head``: what is still buffered must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception, settings: Settings) -> int:
    """Say what went wrong, in a line or two, and return the exit status."""
    if settings.debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        _say_clicks_error(error)
        return error.exit_code
    output.fail(_in_words(error, settings))
    return FAILED


def _say_clicks_error(error: click.ClickException) -> None:
    message = error.format_message()
    if isinstance(error, Interrupted | NoArgsIsHelpError):  # the latter's message is the help
        output.say(message)
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = f"{message} See {error.ctx.command_path} --help."
    output.fail(message)


def _in_words(error: Exception, settings: Settings) -> str:
    if line := line_in(settings.definitions, error):
        where = f"{settings.definitions}:{line}: "
        if isinstance(error, FeatureStoreError):
            return f"{where}{error}"
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        return f"{where}{type(error).__name__}: {text}"
    if isinstance(error, FeatureStoreError):
        return as_options(str(error), settings.command, cli.commands)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    hint = "" if settings.debug else " (unexpected; --debug shows where it comes from)"
    return f"{type(error).__name__}: {error}{hint}"
