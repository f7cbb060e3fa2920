"""The definitions that plan and apply find in a Python file, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import Run

from featurestore.cli.definitions import load_definitions

VIEW = """
def view(name):
    return fs.FeatureView(
        name, entities=[], fields=[fs.Field("x", fs.Int64)], timestamp_field="at"
    )
"""


def write(text: str, path: str = "features.py") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"import featurestore as fs\n{text}")
    return file


def names(path: Path) -> list[str]:
    return [one.name for one in load_definitions(path)]


def test_all_at_the_top_are_found_in_order() -> None:
    file = write(
        VIEW
        + """
b = view("b")
a = fs.Entity("a", join_keys={"a_id": fs.Int64})
again = b
several = [view("c"), (view("hidden"),), 7]
by_name = {"d": view("d")}
service = fs.FeatureService("s", features=[b])
selection = b[["x"]]
"""
    )
    assert names(file) == ["b", "a", "c", "d", "s"]


def test_the_files_own_folder_can_be_imported_from() -> None:
    write("shared = fs.Entity('shared', join_keys={'a': fs.Int64})", "project/common_parts.py")
    assert names(write("from common_parts import shared", "project/features.py")) == ["shared"]


def test_a_file_that_changed_within_the_second_is_read_anew() -> None:
    for name in "abc":
        file = write(f"x = fs.Entity('{name}', join_keys={{'a': fs.Int64}})")
        assert names(file) == [name]


def test_dataclasses_work_in_it() -> None:
    file = write(
        """
from dataclasses import dataclass

@dataclass
class Settings:
    name: "str" = "a"

x = fs.Entity(Settings().name, join_keys={"a": fs.Int64})
"""
    )
    assert names(file) == ["a"]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_no_file_is_wrong_use_with_the_way_out(run: Run, command: str) -> None:
    done = run(command, status=2)
    assert done.err.startswith("error: There is no features.py.")
    assert "featurestore init" in done.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = fs.Entity('A', join_keys={})", "error: features.py:2: 'A' cannot name"),
        ("\n\nimport nothing_of_the_kind", "error: features.py:4: ModuleNotFoundError: No module"),
        ("x = 1 +", "error: features.py:2: SyntaxError: invalid syntax"),
        ("def f():\n    return 1 / 0\nf()", "error: features.py:3: ZeroDivisionError: division"),
        ("x = 1", "error: features.py holds no definition"),
        ("import sys; sys.exit(0)", "error: features.py ended the program (sys.exit)"),
    ],
)
def test_a_bad_file_is_named_with_its_line(run: Run, text: str, words: str) -> None:
    write(text)
    done = run("plan", status=1)
    assert done.err.startswith(words)
    assert "Traceback" not in done.err


def test_two_definitions_of_one_name_are_an_error(run: Run) -> None:
    write("x = [fs.Entity('a', join_keys={'a': kind}) for kind in (fs.Int64, fs.String)]")
    done = run("apply", status=1)
    assert "two different definitions of entity 'a'" in done.err


def test_debug_shows_the_traceback(run: Run) -> None:
    write("1 / 0")
    done = run("plan", "--debug", status=1)
    assert "Traceback (most recent call last)" in done.err
    assert "error: features.py:2: ZeroDivisionError" in done.err


def test_what_the_file_prints_is_no_result(run: Run) -> None:
    write("print('hello'); x = fs.Entity('a', join_keys={'a': fs.Int64})")
    done = run("plan", "--json")
    assert done.json["changes"]
    assert "hello" in done.err
