"""Errors of the library, said in the words of the command line."""

from __future__ import annotations

import pytest

from featurestore.cli import cli
from featurestore.cli.words import as_options


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        (
            "online",
            "read with full_feature_names=True, which",
            "read with --full-feature-names, which",
        ),
        ("online", "Set online=True and apply it", "Set online=True and apply it"),
        ("training-set", "engine='sql' does without.", "--engine sql does without."),
        (
            "training-set",
            "engine='duckdb' joins it; with read_from='source' not",
            "--engine duckdb joins it; with --read-from source not",
        ),
        (
            "training-set",
            "or allow more memory by memory_limit.",
            "or allow more memory by --memory-limit.",
        ),
        ("training-set", "memory_limit=5.", "--memory-limit 5."),
        ("training-set", "The column 'engine' is null", "The column 'engine' is null"),
        ("training-set", "The column memory_limit is null", "The column memory_limit is null"),
        ("training-set", "my_engine='sql'", "my_engine='sql'"),
        ("mark", "engine='sql' does without.", "engine='sql' does without."),
        (
            "training-set",
            "Run store.export_history('a', path) first.",
            "Run featurestore export a FOLDER first.",
        ),
        (
            "training-set",
            "Run store.export_history('a', '/x y').",
            "Run featurestore export a '/x y'.",
        ),
        ("training-set", "a mark (store.mark()), or", "a mark (featurestore mark), or"),
        ("training-set", "store.transaction() does", "store.transaction() does"),
        (
            "undo",
            "`featurestore loads` (store.loads()) lists them.",
            "`featurestore loads` (store.loads()) lists them.",
        ),
        (
            "apply",
            "Apply with allow={'drop'} (--allow drop).",
            "Apply with allow={'drop'} (--allow drop).",
        ),
    ],
)
def test_arguments_are_options_of_the_command_and_calls_are_commands(
    command: str, text: str, said: str
) -> None:
    assert as_options(text, cli.commands[command], cli.commands) == said


def test_without_a_command_nothing_is_said_otherwise() -> None:
    assert as_options("engine='sql'", None, cli.commands) == "engine='sql'"
