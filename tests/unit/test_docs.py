"""The documents cannot drift: their code runs, and what they name is there.

In a page, a block of Python runs as it would in ``python -m asyncio``, and one of console as it
would in a shell; the blocks of a page run in order, in one folder. A block whose first line is a
comment with a file's name is that file. A ``text`` block after Python is what it prints. Times,
dates and speeds may differ from what is printed; a line of ``…`` stands for any lines.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from sqlalchemy.dialects import postgresql

import featurestore as fs
from featurestore.cli.commands import COMMANDS
from featurestore.storage.postgresql import PostgreSQL
from featurestore.types import FeatureType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fs.__file__).resolve().parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/**/*.md"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the line that it begins at."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        found = re.match(r"# ([\w-]+\.\w+)$", self.text.partition("\n")[0])
        return found[1] if found else None


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 2)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]


def code_in(path: Path) -> str:
    """What stands in code spans and in blocks other than Python's, a line each."""
    text = path.read_text(encoding="utf-8")
    fenced = [block.text for block in blocks_of(path) if block.language != "python"]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    return "\n".join([*fenced, *spans])


# --- running ----------------------------------------------------------------------------------

CHANGING = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?"), "<time>"),
    (re.compile(r"\b\d+\.\d+ ?s\b"), "<seconds>"),
    (re.compile(r"(\.parquet( +\S+){4} +)\d+\.\d\d\b"), r"\1<seconds>"),  # in a table of loads
    (re.compile(r"[\d,]+ rows/s"), "<speed>"),
    (re.compile(r"-{4,}|─{4,}|={4,}"), "<line>"),
    (re.compile(r"[ \t]+"), " "),
]


def unchanging(text: str) -> str:
    """``text`` without what differs from run to run."""
    for pattern, instead in CHANGING:
        text = pattern.sub(instead, text)
    return "".join(f"{line.strip()}\n" for line in text.strip().splitlines())


def agrees(expected: str, found: str) -> bool:
    pattern = re.escape(unchanging(expected)).replace(re.escape("…\n"), r"(?:.*\n)*?")
    return re.fullmatch(pattern, unchanging(found)) is not None


class Reader:
    """Somebody who follows a page to the letter, in an empty folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, path: Path) -> None:
        blocks = blocks_of(path)
        with asyncio.Runner() as runner:
            for block, after in zip(blocks, [*blocks[1:], Block("", "", 0)], strict=True):
                where = f"{name_of(path)}:{block.line}"
                if block.file is not None:
                    (self.folder / block.file).write_text(block.text, encoding="utf-8")
                elif block.language == "python":
                    printed = self._python(block, where, runner)
                    expected = after.text if after.language == "text" else ""
                    assert agrees(expected, printed), f"{where} prints\n{printed}"
                elif block.language == "console":
                    self._console(block, where)

    def _python(self, block: Block, where: str, runner: asyncio.Runner) -> str:
        """Run a block, with ``await`` allowed at its top, and return what it prints."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(block.text, where, "exec", flags=flags, dont_inherit=True)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, self._names))
            else:
                exec(code, self._names)
        return output.getvalue()

    def _console(self, block: Block, where: str) -> None:
        """Run each line that begins with ``$``; what stands below it is its output."""
        for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
            command = re.match(r"(.*\\\n)*.*\n", part)[0]
            expected = part.removeprefix(command)
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
                check=False,
            )
            assert agrees(expected, done.stdout), f"{where}: $ {command}prints\n{done.stdout}"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("FEATURESTORE_URL", "FORCE_COLOR", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    shown = {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "PATH": programs}
    before = set(sys.modules)
    yield Reader(tmp_path, {**os.environ, **shown})
    for started in tmp_path.glob("*.pid"):  # where a page that starts something was not followed
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.read_text()), signal.SIGTERM)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def has_code(path: Path) -> bool:
    return any(block.language in ("python", "console") for block in blocks_of(path))


BY_THEMSELVES = ("README.md", "testing.md", "torch.md")
RUN = [path for path in PAGES if has_code(path) and path.name not in BY_THEMSELVES]


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_the_code_of_a_page_runs_and_prints_what_stands_below_it(path: Path, reader: Reader):
    reader.follow(path)


@pytest.mark.slow
def test_the_code_of_the_readme_runs_and_its_service_answers(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
):
    reader.follow(ROOT / "README.md")
    monkeypatch.setenv("FEATURESTORE_URL", "sqlite:///drivers.db")
    import service  # the file that the page has just made

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            return await client.get("/drivers/1001")

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    assert f"answers `{answer.text}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.allow_blocking  # the page shows what its own guard says of blocking
def test_the_tests_of_the_page_on_testing_run(reader: Reader, featurestore_postgres: Any):
    reader.environment["FEATURESTORE_TEST_URL"] = featurestore_postgres.url()
    reader.follow(ROOT / "docs" / "testing.md")


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of forks, from 3.12 on
def test_the_code_of_the_page_on_torch_runs(reader: Reader):
    pytest.importorskip("torch", reason="docs/torch.md is run by `pytest -m torch`: bash .ci/run")
    reader.follow(ROOT / "docs" / "torch.md")


def test_what_is_printed_is_compared():
    assert agrees("took 1.2 s\n…\nend", "took 33.45 s\nand\nmore\nend\n")
    assert agrees("at 2024-01-01 10:00Z", "at 2026-11-22 20:11:39Z\n")
    assert not agrees("1 row", "2 rows")
    assert not agrees("a\n…\nend", "a\nb\n")
    assert not agrees("", "something")


# --- naming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, *EXAMPLES], ids=name_of)
def test_commands_and_their_options_are_there(path: Path):
    commands: dict[str, click.Command] = {str(command.name): command for command in COMMANDS}
    for name, rest in re.findall(r"\bfeaturestore ([a-z][a-z-]*)\b([^\n|>&]*)", code_in(path)):
        assert name in commands, f"featurestore {name}"
        parts = [commands[name], *getattr(commands[name], "commands", {}).values()]
        known = {option for part in parts for one in part.params for option in one.opts}
        unknown = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)) - known - {"--help"}
        assert not unknown, f"featurestore {name}{rest}"


@pytest.mark.parametrize("path", [*PAGES, *EXAMPLES], ids=name_of)
def test_names_of_the_library_are_there(path: Path):
    text = path.read_text(encoding="utf-8")
    for dotted in re.findall(r"\bfs\.(\w+(?:\.\w+)*)", text):
        reduce(getattr, dotted.split("."), fs)
    for name in re.findall(r"\bstore\.(\w+)\(", text):
        assert hasattr(fs.FeatureStore, name), f"store.{name}"
    for name in re.findall(r"\btx\.(\w+)\(", text):
        assert hasattr(fs.Transaction, name), f"tx.{name}"
    source = "".join(one.read_text(encoding="utf-8") for one in PACKAGE.rglob("*.py"))
    for name in re.findall(r"\bFEATURESTORE_[A-Z_]+\b", text):
        assert name in source, name


@pytest.mark.parametrize("path", [*PAGES, *EXAMPLES], ids=name_of)
def test_links_lead_somewhere(path: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


# --- what single pages promise ----------------------------------------------------------------

QUICK_START = """\
python3 -m venv .uv && .uv/bin/pip install -q uv && .uv/bin/uv run featurestore demo
python3 -m venv .uv && .uv/bin/pip install -q uv && .uv/bin/uv run pytest
"""


def test_the_quick_start_is_two_commands():
    assert blocks_of(ROOT / "README.md")[0].text == QUICK_START


def test_the_checks_take_the_steps_of_the_quick_start():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for line in QUICK_START.splitlines():
        install, _, command = line.rpartition(" && .uv/bin/uv ")
        assert install in script
        assert f'"$uv" {command}' in script.replace(' --project "$checkout"', "")


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == fs.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == fs.__version__


def test_every_room_is_on_the_map():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in PACKAGE.iterdir() if not path.name.startswith(("_", "."))]
    for path in rooms:
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in page, path.name


TYPES: list[FeatureType] = [
    *(fs.Bool, fs.Int32, fs.Int64, fs.Float32, fs.Float64, fs.String, fs.Bytes),
    *(fs.Timestamp, fs.Date, fs.Decimal(12, 2), fs.Json, fs.Array(fs.Float64)),
]


def test_the_table_of_types_is_the_one_of_the_code():
    page = (ROOT / "docs" / "types.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `fs\.(.+?)` \| `(.+?)` \| `(.+?)` \|", page, re.M)
    named = {f"fs.{name}": (arrow, sql) for name, arrow, sql in rows}
    expected = {}
    for kind in TYPES:
        sql = (
            PostgreSQL(postgresql.dialect())
            .column_type(kind)
            .compile(dialect=postgresql.dialect())
            .lower()
        )
        expected[repr(kind)] = (str(kind.arrow), sql)
    assert named == expected
