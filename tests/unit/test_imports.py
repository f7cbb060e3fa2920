"""Imports point downward only; deferred ones, inside functions, are read as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import featurestore

PACKAGE = Path(featurestore.__file__).resolve().parent
VERSIONS = PACKAGE.parent / "alembic" / "versions"

# From low to high. A room imports from rooms of earlier lines and from itself; rooms of one line
# know nothing of each other. A new module or folder of featurestore/ needs a place here.
LAYERS = [
    ["errors", "twins", "urls"],
    ["types"],
    ["definitions", "reports"],
    ["storage"],
    ["context", "selection"],
    ["export", "ingest", "online"],
    ["portal", "training"],
    ["repository", "wire"],
    ["historical"],
    ["calls"],
    ["store"],
    ["client", "integrations", "sync"],
    ["featurestore"],  # the page of public names
    ["demo_screen", "server"],
    ["demo", "testing"],
    ["cli"],
]
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# Two halves of one thing, each of which imports the other while it runs.
CYCLES_WITHIN_A_ROOM = {("featurestore.testing.loop_guard", "featurestore.testing._blocking")}


@dataclass(frozen=True)
class Import:
    """One import of one of our modules by another, and where it stands."""

    module: str
    target: str
    line: int
    for_types: bool  # below `if TYPE_CHECKING:`, so that it never runs

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Module → its file, for all of featurestore/."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The folder or module of featurestore/ that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def imports(module: str) -> Iterator[Import]:
    """All imports of our own modules in a module, wherever in its code they stand."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for target in _targets(module, node):
            if target.split(".")[0] == "featurestore":
                yield Import(module, target, node.lineno, node in for_types)  # type: ignore[attr-defined]


def _targets(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = MODULES[module].parent.relative_to(PACKAGE.parent).parts
            kept = package[: len(package) - node.level + 1]
            base = ".".join([*kept, *([base] if base else [])])
        for alias in node.names:  # `from featurestore import sync` names a module
            full = f"{base}.{alias.name}"
            yield full if full in MODULES else base


IMPORTS = [found for module in MODULES for found in imports(module)]


def test_every_room_has_a_place():
    assert {room(module) for module in MODULES} == set(RANKS), "LAYERS above has the rooms"


def test_imports_point_downward():
    upward = [
        str(one)
        for one in IMPORTS
        if room(one.module) != room(one.target)
        and RANKS[room(one.module)] <= RANKS[room(one.target)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        allowed = (one.module, one.target) in CYCLES_WITHIN_A_ROOM
        if not one.for_types and not allowed and one.module != one.target:
            graph.setdefault(one.module, set()).add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(reversed(error.args[1]))) from None


def test_the_exceptions_are_still_needed():
    run = {(one.module, one.target) for one in IMPORTS if not one.for_types}
    assert run >= CYCLES_WITHIN_A_ROOM


def test_revisions_do_not_lean_on_the_library():
    """A revision that imports the library would change as the library does."""
    for path in VERSIONS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names]
                named.append(getattr(node, "module", None) or "")
                assert not [name for name in named if name.startswith("featurestore")], path.name


def test_the_reader_of_imports_sees_deferred_ones():
    found = {(one.target, one.for_types) for one in IMPORTS if one.module.endswith(".engine")}
    assert ("featurestore.storage.sqlite", False) in found  # inside a function
    assert ("featurestore.storage.dialect", True) in found  # below TYPE_CHECKING
