"""`featurestore demo`, on all the flights."""

from __future__ import annotations

import asyncio
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flights_example import Demo
from rich.console import Console

import featurestore as fs
from featurestore import demo as demo_module
from featurestore.demo import DemoUnavailableError, run_demo

pytestmark = pytest.mark.slow

VIEWS = {
    "weather": ("origin", "airport", "observed_at"),
    "aircraft_delays": ("tailnum", "tailnum", "last_arrival_at"),
    "carrier_delays": ("carrier", "carrier", "last_report_at"),
}


def test_it_does_the_whole_job(demo: Demo) -> None:
    result = demo.result
    assert result.flights == 336_776
    assert result.rows_loaded == 26_115 + 327_346 + 336_776
    assert result.match_rate["weather"] > 0.98
    assert result.match_rate["aircraft_delays"] > 0.98
    assert result.match_rate["carrier_delays"] > 0.999
    assert result.auc_without < 0.65 < 0.70 < result.auc_with
    assert result.risk_after > result.risk_before + 0.1
    assert (demo.folder / "model.json").exists()
    assert (demo.folder / "train.py").exists()


def test_its_output_is_plain_where_it_is_no_terminal(demo: Demo) -> None:
    assert "\x1b" not in demo.output
    assert re.search(r"336,776 flights in .* s with duckdb; all kept, in their order", demo.output)
    assert "OUTSIDE_MAX_AGE" in demo.output
    for command in demo.result.commands:
        assert command in demo.output


async def test_the_push_was_undone(demo: Demo) -> None:
    async with fs.FeatureStore(demo.url) as store:
        pushes = [load for load in await store.loads() if load.kind == "push"]
        answer = await store.get_online_features("arrival_delay", [demo_module.FLIGHT])
    assert len(pushes) == 2
    assert all(load.undone_at is not None for load in pushes)
    vector, statuses = answer.to_dicts()[0], answer.statuses[0]
    assert vector["last_arr_delay"] == 8  # its last flight of 2013
    assert vector["temperature"] is None
    assert statuses["temperature"] == fs.Status.OUTSIDE_MAX_AGE


@pytest.mark.parametrize("view", VIEWS)
def test_the_training_set_agrees_with_a_search_of_the_files(demo: Demo, view: str) -> None:
    """One flight in a thousand, the last row known before each found by comparing all."""
    key, view_key, known_at = VIEWS[view]
    flights = _table(demo, "flights").take(pa.array(range(0, 336_776, 1_009)))
    rows = dict(iter(_table(demo, view).to_pandas().groupby(view_key)))
    with fs.sync.FeatureStore(demo.url) as store:
        training = store.get_historical_features(flights, "arrival_delay").to_pandas()

    features = [name for name in pq.read_schema(_path(demo, view)).names if name in training]
    features.remove("event_timestamp")
    max_age = pd.Timedelta(hours=3) if view == "weather" else pd.Timedelta.max
    for flight in training.to_dict("records"):
        candidates = rows.get(flight[key], pd.DataFrame({"event_timestamp": []}))
        ages = flight["event_timestamp"] - candidates["event_timestamp"]
        known = candidates[(ages >= pd.Timedelta(0)) & (ages <= max_age)]
        if known.empty:
            assert pd.isna([flight[name] for name in features if name != key]).all()
        else:
            best = known[known["event_timestamp"] == known["event_timestamp"].max()].iloc[-1]
            for name in features:
                assert flight[name] == best[name] or pd.isna([flight[name], best[name]]).all()
            assert flight[known_at] <= flight["event_timestamp"]


def test_a_second_run_loads_nothing(demo: Demo) -> None:
    output = io.StringIO()
    own = demo.folder / "features.py"
    own.write_text(own.read_text() + "# changed by its reader\n")
    again = asyncio.run(run_demo(folder=demo.folder, console=Console(file=output, width=100)))
    assert again.rows_loaded == 0
    assert "skipped" in output.getvalue()
    assert again.auc_with == pytest.approx(demo.result.auc_with)
    assert again.risk_after == pytest.approx(demo.result.risk_after)
    assert own.read_text().endswith("# changed by its reader\n")


def test_the_commands_that_it_prints_work(demo: Demo) -> None:
    """As pasted, but for the runner before `featurestore`: tests run without uv."""
    change, *commands = demo.result.commands
    assert change == f"cd {demo.folder.as_posix()}"
    for command in commands:
        arguments = shlex.split(command[command.index("featurestore ") :])[1:]
        done = subprocess.run(
            [sys.executable, "-m", "featurestore.cli", *arguments],
            cwd=demo.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout or done.stderr
    training, again = (
        pq.read_table(demo.folder / f"{name}.parquet") for name in ("training", "again")
    )
    assert again.equals(training)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(demo_module.PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(DemoUnavailableError, match=r"no-such-package.*featurestore\[demo\]"):
        asyncio.run(run_demo(folder=tmp_path / "flights_demo"))
    assert not (tmp_path / "flights_demo").exists()


@pytest.mark.parametrize(
    ("url", "environment", "export"),
    [
        pytest.param(None, None, (), id="the folder's own"),
        pytest.param(None, "postgresql://me:pw@host/db", (), id="known to the shell"),
        pytest.param(
            "postgresql://me:pw@host/db",
            None,
            ("export FEATURESTORE_URL='postgresql://me:***@host/db'",),
            id="no password is shown",
        ),
        pytest.param(
            None,
            "sqlite:///some.db",
            ("export FEATURESTORE_URL=sqlite:///{here}/some.db",),
            id="a file that is relative",
        ),
    ],
)
def test_the_commands_find_the_database(
    url: str | None,
    environment: str | None,
    export: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATURESTORE_URL", raising=False)
    if environment is not None:
        monkeypatch.setenv("FEATURESTORE_URL", environment)
    commands = demo_module._what_next(Path("flights_demo"), url, "default")
    assert commands[0] == "cd flights_demo"
    assert commands[1:-4] == tuple(line.format(here=tmp_path) for line in export)
    for command in demo_module._what_next(Path("flights_demo"), url, "flights")[-4:]:
        assert "featurestore --project flights " in command


def test_the_commands_are_run_as_the_demo_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here by a uv that is not on the path, as in the README's quick start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("UV", str(tmp_path / ".uv" / "bin" / "uv"))
    assert demo_module._runner(Path("flights_demo")) == "../.uv/bin/uv run "
    monkeypatch.delenv("UV")
    assert demo_module._runner(Path("flights_demo")).endswith("/bin/")


def _path(demo: Demo, name: str) -> Path:
    return demo.folder / "data" / f"{name}.parquet"


def _table(demo: Demo, name: str) -> pa.Table:
    return pq.read_table(_path(demo, name))
