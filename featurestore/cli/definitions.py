"""The definitions that a Python file holds: what plan and apply work on."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from featurestore.cli.options import WrongUse
from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from featurestore.definitions import Definition

MODULE = "_featurestore_definitions"


def load_definitions(path: Path) -> list[Definition]:
    """Every entity, view and service at the top of the file ``path``, in order.

    Those in lists, tuples and dicts at the top are found too. Whatever the file raises comes out as
    it is: :func:`line_in` tells where in the file it came from.
    """
    if not path.is_file():
        raise WrongUse(
            f"There is no {path}. Write one with 'featurestore init' (or 'featurestore init "
            f"--from FILE.parquet' for a file that you have), or name another by --definitions."
        )
    # What the file prints is no result of the command.
    with contextlib.redirect_stdout(sys.stderr):
        module = _import(path)
    values = (value for name, value in vars(module).items() if not name.startswith("__"))
    # One definition under two names, or imported twice, is one.
    found = list(dict.fromkeys(one for value in values for one in _definitions_in(value)))
    if not found:
        raise DefinitionError(
            f"{path} holds no definition: assign entities, feature views and services to names "
            f"at its top level."
        )
    return found


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles each time: a .pyc is told from its source by second and size alone."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import(path: Path) -> ModuleType:
    loader = _FreshLoader(MODULE, str(path))
    spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[MODULE] = module  # dataclasses and pickle look their module up
    try:
        loader.exec_module(module)
    except SystemExit as error:
        raise DefinitionError(f"{path} ended the program (sys.exit) as it was read.") from error
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed sys.path itself
            sys.path.remove(folder)
        del sys.modules[MODULE]
    return module


def _definitions_in(value: Any) -> list[Definition]:
    from featurestore.definitions import Entity, FeatureService, FeatureView

    if isinstance(value, list | tuple):
        several = list(value)
    else:
        several = list(value.values()) if isinstance(value, dict) else [value]
    return [one for one in several if isinstance(one, Entity | FeatureView | FeatureService)]


def line_in(path: Path, error: BaseException) -> int | None:
    """The line of the file ``path`` that ``error`` came from, if it came from there."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    line = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
