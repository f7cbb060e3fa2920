"""Sets blockbuster up for a guard: what more it watches, and what it lets pass."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from featurestore.testing._watch import is_standard_library
from featurestore.testing.loop_guard import blocking_is_allowed

try:
    import blockbuster
except ImportError as error:
    raise ImportError(
        "the guard finds blocking calls with blockbuster: pip install 'featurestore[testing]', "
        "or measure CPU time alone with blocking=False"
    ) from error

# Blocking calls that blockbuster leaves out.
_WATCHED = (
    "builtins:open",
    "os:fsync",
    "os:open",
    "os:system",
    "pathlib:Path.open",
    "socket:getaddrinfo",
    "sqlite3:connect",
    "subprocess:Popen.__init__",
    "subprocess:Popen.communicate",
    "subprocess:Popen.wait",
)

# What blockbuster watches without need: nothing is read from a disk here.
_HARMLESS = ("os.getcwd", "os.path.abspath", "os.path.samestat")

# Below these functions anything may be called: what they read is small, local and mostly read
# once, and none of it is in the hands of the code under test.
_ALLOWED = (
    # The interpreter: imports, source lines for tracebacks and warnings, time zones, logs.
    "<frozen importlib._bootstrap>:_find_and_load",
    "<frozen linecache>:checkcache,updatecache",
    "/linecache.py:checkcache,updatecache",
    "/inspect.py:findsource,getmodule,getsourcefile",
    "/zoneinfo/_tzpath.py:find_tzfile",
    "/zoneinfo/_common.py:load_data,load_tzdata",
    "/logging/__init__.py:__init__,_open,emit,flush",
    # asyncio starts processes and ends its threads on the loop.
    "/asyncio/base_events.py:shutdown_default_executor,subprocess_exec,subprocess_shell",
    # The tools that run tests.
    "/_pytest/capture.py:readouterr,snap",
    "/coverage/control.py:_should_trace",
    "/hypothesis/internal/conjecture/data.py:draw",
    # asyncpg looks for password and certificate files.
    "/asyncpg/connect_utils.py:_parse_connect_arguments,_parse_connect_dsn_and_args",
)

_DETECTOR = (__file__, str(Path(blockbuster.__file__).parent))

# pytest then shows the line that made the call and not how blockbuster judged it.
vars(sys.modules[blockbuster.BlockingError.__module__])["__tracebackhide__"] = True

Report = Callable[[str, str], None]


class BlockingDetector:
    """Makes blocking calls raise `blockbuster.BlockingError` between `start` and `stop`.

    Of several at a time the one started last decides, and all are told.
    """

    def __init__(self, *, forbid: Iterable[str] = (), allow: Iterable[str] = ()) -> None:
        self._blockbuster = blockbuster.BlockBuster()
        functions = self._blockbuster.functions
        for name in _HARMLESS:
            functions.pop(name, None)
        for name in (*_WATCHED, *forbid):
            functions[name] = _watched(name)
        places = [_place(allowed) for allowed in (*_ALLOWED, *allow)]
        for function in functions.values():
            function.can_block_predicate = _or_allowed(function.can_block_predicate)
            for path, names in places:
                function.can_block_in(path, names)

    def start(self, report: Report) -> None:
        """Raise at each blocking call, and tell `report` its name and where it was made."""
        self._blockbuster.activate()
        _reports.add(report)

    def stop(self) -> None:
        """Put the functions back as they were."""
        self._blockbuster.deactivate()
        _reports.remove_last()


class _Reports:
    """Who hears of a blocking call: code that catches the error must not hide the finding."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._plain_init = blockbuster.BlockingError.__init__

    def add(self, report: Report) -> None:
        if not self._reports:
            # blockbuster has no hook of its own: its error is made where a call was found.
            self._replace_init(lambda error, function: self._tell(error, function))
        self._reports.append(report)

    def remove_last(self) -> None:
        self._reports.pop()
        if not self._reports:
            self._replace_init(self._plain_init)

    def _tell(self, error: blockbuster.BlockingError, function: str) -> None:
        self._plain_init(error, function)
        where = _caller()
        for report in tuple(self._reports):
            report(function, where)

    @staticmethod
    def _replace_init(init: Callable[[Any, str], None]) -> None:
        type.__setattr__(blockbuster.BlockingError, "__init__", init)


_reports = _Reports()


def _watched(name: str) -> blockbuster.BlockBusterFunction:
    """The function of that name (`module:name` or `module:Class.name`), ready to be replaced."""
    module, _, path = name.partition(":")
    try:
        owner: Any = importlib.import_module(module)
        *parents, last = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        getattr(owner, last)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the loop guard cannot forbid {name!r}: {error}; "
            "write module:function or module:Class.method"
        ) from error
    function = blockbuster.BlockBusterFunction(owner, last)
    function.full_name = f"{module}.{path}"
    return function


def _place(allowed: str) -> tuple[str, frozenset[str]]:
    path, _, names = allowed.rpartition(":")
    if not path or not names:
        raise ValueError(
            f"the loop guard cannot allow {allowed!r}: write end/of/path.py:function,function"
        )
    return path, frozenset(name.strip() for name in names.split(","))


def _or_allowed(predicate: Callable[..., bool]) -> Callable[..., bool]:
    def can_block(*args: Any, **kwargs: Any) -> bool:
        return blocking_is_allowed.get() or predicate(*args, **kwargs)

    return can_block


def _caller() -> str:
    """Where the blocking call was made: the innermost code that is not the standard library's."""
    frame = inspect.currentframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if not is_standard_library(path) and not path.startswith(_DETECTOR):
            return f"in {frame.f_code.co_qualname} ({path}:{frame.f_lineno})"
        frame = frame.f_back
    return "in the standard library"
