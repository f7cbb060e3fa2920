"""The public names of featurestore, all of them, and that importing them is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import featurestore as fs
import featurestore.sync

DEFINITIONS = ["Entity", "FeatureService", "FeatureView", "Field", "ParquetSource"]
TYPES = [
    "Array",
    "Bool",
    "Bytes",
    "Date",
    "Decimal",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "Json",
    "String",
    "Timestamp",
]
STORE = ["FeatureRepository", "FeatureStore", "OnlineFeatures", "Plan", "Status", "TrainingSet"]
REPORTS = ["IngestReport", "MaterializeReport", "PushReport"]
ERRORS = [
    "DefinitionError",
    "FeatureStoreError",
    "InvalidRowsError",
    "MigrationRequiredError",
    "NotFoundError",
    "OverloadedError",
    "SchemaMismatchError",
    "SourceError",
    "StoreUnavailableError",
]
CONTRACT = {*DEFINITIONS, *TYPES, *STORE, *REPORTS, *ERRORS, "sync"}
MORE = {
    "TrainingProgress",
    "TrainingPlan",
    "Mark",
    "Manifest",
    "HistoricalFeatures",
    "Cache",
    "CacheStats",
    "Candidate",
    "Change",
    "Explanation",
    "ExportProgress",
    "ExportReport",
    "FeatureSelection",
    "FeatureType",
    "Features",
    "GatherStats",
    "InvalidRow",
    "Limits",
    "Load",
    "LoadReport",
    "OnlineAnswer",
    "Progress",
    "QuarantinedRow",
    "StoreStats",
    "StreamReport",
    "Transaction",
    "UndoReport",
    "Verdict",
}
"""Public without standing in the contract. A new name belongs here, and in the CHANGELOG."""

CALLS = [
    "apply",
    "explain",
    "export_history",
    "get_historical_features",
    "get_online_features",
    "get_view",
    "ingest",
    "list_entities",
    "list_services",
    "list_views",
    "loads",
    "materialize",
    "plan",
    "push",
    "push_stream",
    "rejected",
    "repository",
    "stream_historical_features",
    "transaction",
    "undo_load",
]


def test_the_public_names_are_these():
    assert set(fs.__all__) == CONTRACT | MORE
    assert len(fs.__all__) == len(set(fs.__all__))


def test_every_public_name_is_there_and_nothing_else_is():
    for name in fs.__all__:
        assert getattr(fs, name) is not None
    found = {
        name
        for name, value in vars(fs).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert found - {"annotations"} <= set(fs.__all__)


def test_public_classes_and_functions_say_what_they_are():
    for name in fs.__all__:
        value = getattr(fs, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"fs.{name} has no docstring"
            if name in CONTRACT:
                assert not (inspect.getdoc(value) or "").startswith(f"{name}("), name


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_of_the_one_tree(name: str):
    assert issubclass(getattr(fs, name), fs.FeatureStoreError)
    assert issubclass(fs.FeatureStoreError, Exception)


def test_a_status_is_text():
    assert {status.name for status in fs.Status} == {
        "PRESENT",
        "NULL_VALUE",
        "NOT_FOUND",
        "OUTSIDE_MAX_AGE",
    }
    assert all(isinstance(status, str) for status in fs.Status)


@pytest.mark.parametrize("name", CALLS)
def test_the_store_and_its_twin_without_await_have_the_same_calls(name: str):
    method = getattr(fs.FeatureStore, name)
    twin = getattr(featurestore.sync.FeatureStore, name)
    assert inspect.getdoc(method)
    parameters = [
        (one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()
    ]
    assert parameters == [
        (one.name, one.kind, one.default) for one in inspect.signature(twin).parameters.values()
    ]
    assert not inspect.iscoroutinefunction(twin)


def test_the_calls_have_the_parameters_of_the_contract():
    wanted = {
        "plan": "(self, definitions)",
        "apply": "(self, definitions, *, allow=())",
        "ingest": (
            "(self, view, source=None, *, on_invalid='raise', force=False, progress=None, "
            "commit_every=None, files_at_once=2, max_bytes_in_flight=268435456, "
            "max_decoded_bytes=2147483648)"
        ),
        "push": "(self, view, rows)",
        "materialize": "(self, views=None, *, start=None, end=None)",
        "get_online_features": "(self, features, entity_rows, *, full_feature_names=False)",
        "get_historical_features": (
            "(self, entity_df, features, *, timestamp_column='event_timestamp', "
            "engine='auto', full_feature_names=False, as_of=None, known_by=None, "
            "read_from='history', memory_limit=None, progress=None)"
        ),
        "replay": (
            "(self, manifest, entity_df=None, *, engine='auto', memory_limit=None, progress=None)"
        ),
        "mark": "(self)",
        "explain": "(self, view, keys, at=None, *, known_by=None, limit=10)",
        "repository": "(self, view)",
        "loads": "(self, view=None, *, load_id=None, limit=None)",
        "undo_load": "(self, load_id)",
    }
    found = {}
    for name in wanted:
        signature = inspect.signature(getattr(fs.FeatureStore, name))
        plain = [
            one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()
        ]
        found[name] = str(
            signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
        )
    assert found == wanted


def test_making_a_store_does_no_io(tmp_path):
    fs.FeatureStore(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")
    fs.FeatureStore("postgresql://nobody@nowhere.invalid/nothing")
    assert list(tmp_path.iterdir()) == []


# --- importing --------------------------------------------------------------------------------

HEAVY = [
    "duckdb",
    "pandas",
    "polars",
    "alembic",
    "click",
    "rich",
    "typer",
    "fastapi",
    "aiohttp",
    "httpx",
    "starlette",
    "sklearn",
    "pyarrow.dataset",
    "pytest",
    "hypothesis",
    "blockbuster",
    "numpy",
]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_is_light():
    """numpy is pyarrow's own affair: it counts only if featurestore brings it in."""
    loaded = set(
        run("import pyarrow, sys; before = set(sys.modules); import featurestore; "
            "print(*sorted(set(sys.modules) - before))").split()
    )  # fmt: skip
    assert loaded & set(HEAVY) == set()
    assert "featurestore.definitions" in loaded


def test_importing_it_starts_no_loop_thread_or_file(tmp_path):
    out = run(
        "import os, threading; "
        f"os.chdir({str(tmp_path)!r}); "
        "import featurestore; "
        "print(threading.active_count(), os.listdir('.'))"
    )
    assert out.split(maxsplit=1) == ["1", "[]\n"]


def test_every_public_name_can_be_imported_by_itself():
    run("from featurestore import *; FeatureStore, Entity, Status, TrainingSet")
