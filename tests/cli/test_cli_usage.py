"""Help, wrong use, and what every command has in common."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from cli_helpers import Run

from featurestore import FeatureStore
from featurestore.cli.amounts import size_in_full
from featurestore.cli.commands.export import MAX_BUCKETS
from featurestore.cli.commands.training import LEAST_MEMORY
from featurestore.export import run as export
from featurestore.training.memory import LEAST

COMMANDS = (
    *("init", "migrate", "plan", "apply", "ingest", "push", "materialize", "online"),
    *("training-set", "replay", "mark", "explain", "loads", "undo", "status", "demo"),
)

TRAINING_SET = ("training-set", "a.parquet", "v:x", "-o", "x.parquet")


def test_help_has_the_commands_in_the_order_of_their_use(run: Run) -> None:
    done = run("--help")
    found = [
        line.split()[0] for line in done.out.splitlines() if line[:2] == "  " and line[2:3] != " "
    ]
    assert [name for name in found if name in COMMANDS] == [*COMMANDS]
    assert "..." not in done.out.partition("Commands:")[2].partition("Options:")[0]
    assert done.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_the_common_options(run: Run, command: str) -> None:
    done = run(command, "--help")
    for option in ("--url", "--project", "--definitions", "--json", "--debug"):
        assert option in done.out.partition("Options of every command:")[2]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Usage: featurestore"),
        (["ingst"], "Did you mean"),
        (["ingest"], "Missing argument 'VIEW'"),
        (["ingest", "v", "--on-invalid", "ignore"], "'ignore' is not one of"),
        (["apply", "--allow", "everything"], "'everything' is not one of"),
        (["undo", "seven"], "'seven' is not a valid integer"),
        (["ingest", "v", "--commit-every", "0"], "'0' is no count such as 500000, 500_000 or 500k"),
        (["ingest", "v", "--commit-every", "1.5"], "'1.5' is no count"),
        (["ingest", "v", "--commit-every", "1,5"], "'1,5' is no count"),
        (["ingest", "v", "--files-at-once", "two"], "'--files-at-once': 'two' is no count"),
        (["ingest", "v", "--max-memory", "a lot"], "'a lot' is no size such as 256MB or 1GiB"),
        (["ingest", "v", "--max-memory", "256"], "less than 1MB. A size has a unit: 256MB, 1GiB"),
        (["ingest", "v", "--max-decoded", "-1GB"], "'-1GB' is no size"),
        (["ingest", "v", "--max-decoded"], "requires an argument"),
        (["materialize", "--start", "yesterday"], "'yesterday' is no time such as"),
        (["online"], "Missing argument"),
        (["online", "driver_id=1"], "Name features"),
        (["online", "a:x", "b"], "b: give either features"),
        (["training-set", "a.parquet", "v:x"], "Missing option"),
        (["training-set", "a.parquet", "v:x", "-o", "x.csv"], "written as Parquet"),
        (["training-set", "a.parquet", "v:x", "-o", "no/x.parquet"], "there is no folder no"),
        (["training-set", "a.parquet", "v:x", "id=1", "-o", "x"], "takes its keys from ENTITIES"),
        ([*TRAINING_SET, "--engine", "warp"], "'warp' is not one of"),
        ([*TRAINING_SET, "--as-of", "yesterday"], "'yesterday' is no time such as"),
        ([*TRAINING_SET, "--as-of", "17@noon"], "'17@noon' is no mark as featurestore mark prints"),
        ([*TRAINING_SET, "--known-by", "loading"], "'loading' is not 'created_timestamp'"),
        ([*TRAINING_SET, "--read-from", "cache"], "'cache' is not one of"),
        ([*TRAINING_SET, "--memory-limit", "64MB"], "'64MB' is less than 128MiB"),
        ([*TRAINING_SET, "--memory-limit", "much"], "'much' is no size such as 256MB"),
        (["replay", "set.parquet"], "Missing option"),
        (["replay", "set.parquet", "-o", "x.json"], "written as Parquet"),
        (["replay", "set.parquet", "-o", "x", "--engine", "warp"], "'warp' is not one of"),
        (["mark", "now"], "unexpected extra argument"),
        (["explain"], "Missing argument 'VIEW'"),
        (["explain", "v", "--at", "noon"], "'noon' is no time such as"),
        (["explain", "v", "--known-by", "loading"], "'loading' is not 'created_timestamp'"),
        (["explain", "v", "--limit", "0"], "0 is not in the range 1<=x<=1000"),
        (["export", "v", "copy", "--buckets", "0"], "0 is not in the range 1<=x<=512"),
        (["export", "v", "copy", "--buckets", "many"], "'many' is not a valid integer"),
        (["plan", "--nonsense"], "No such option"),
    ],
)
def test_wrong_use_is_status_2_and_says_how(run: Run, args: list[str], words: str) -> None:
    done = run(*args, status=2)
    assert words in done.err
    assert done.out == ""
    if args:  # else it is the help
        assert re.fullmatch("error: .*\n", done.err)


def test_wrong_use_names_the_help_that_tells_more(run: Run) -> None:
    assert run("ingest", status=2).err == (
        "error: Missing argument 'VIEW'. See featurestore ingest --help.\n"
    )


def test_the_defaults_of_an_ingest_are_those_of_the_store(run: Run) -> None:
    text = " ".join(run("ingest", "--help").out.split())
    given = inspect.signature(FeatureStore.ingest).parameters
    defaults = [
        f"{given['files_at_once'].default}",
        *(size_in_full(given[name].default) for name in ("max_bytes_in_flight",)),
        *(size_in_full(given[name].default) for name in ("max_decoded_bytes",)),
    ]
    assert re.findall(r"\[default: ([^]]*)\]", text)[1:] == defaults


def test_the_least_memory_of_a_training_set_is_the_librarys() -> None:
    assert LEAST_MEMORY == LEAST


def test_the_most_buckets_of_a_copy_are_the_librarys() -> None:
    assert MAX_BUCKETS == export.MAX_BUCKETS


def test_the_demo_is_of_the_project_that_is_named(run: Run) -> None:
    done = run("demo", "--project", "No", status=1)
    assert done.err.startswith("error: 'No' cannot name a project")


def test_common_options_stand_before_or_after_the_command(run: Run) -> None:
    for project in "ab":
        run("migrate", "--project", project)
    before = run("--project", "a", "--json", "status").json
    after = run("status", "--project", "a", "--json").json
    assert before == after
    assert before["project"] == "a"
    assert run("--project", "a", "status", "--project", "b", "--json").json["project"] == "b"


def test_help_imports_nothing_heavy_beyond_the_package_itself() -> None:
    code = (
        "import sys, featurestore\n"
        "before = set(sys.modules)\n"
        "from featurestore.cli import main\n"
        "main(['--help'])\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added & {'sqlalchemy', 'pyarrow', 'alembic', 'rich', 'asyncpg', 'pandas'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
