"""The notebook of the examples, run in a kernel as Jupyter would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "training_set.ipynb"

# In a process of its own: it runs loops of its own, and warns of what is not ours.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
client = NotebookClient(notebook, timeout=120, kernel_name="python3",
                        resources={"metadata": {"path": sys.argv[3]}})
client.execute()
nbformat.write(notebook, sys.argv[2])
"""


def outputs_of(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("notebook")
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK, folder / "out.ipynb", work],
        # Whatever is set up on this machine for Jupyter has no say.
        env={**os.environ, "HOME": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []  # nothing is left behind
    return outputs_of(json.loads((folder / "out.ipynb").read_text()))


def test_it_is_kept_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert outputs_of(notebook) == []
    assert all(cell.get("execution_count") is None for cell in notebook["cells"])


@pytest.mark.slow
def test_it_runs_without_errors_or_warnings(outputs: list[dict[str, Any]]):
    assert {output["output_type"] for output in outputs} <= {"execute_result", "stream"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_training_set_is_shown(outputs: list[dict[str, Any]]):
    (shown,) = (
        output["data"]
        for output in outputs
        if "Training set" in "".join(output.get("data", {}).get("text/html", ""))
    )
    page = "".join(shown["text/html"])
    assert "2,200 rows × 6 columns" in page
    assert re.search(r"9\d\.\d% of rows found a value", page)
    assert "driver_stats · 3 features" in re.sub(r"<[^>]+>", "", page)
    assert page.count('<svg width="190"') == 6
    assert page.count("Boston") > 1
    plain = "".join(shown["text/plain"])
    assert plain.startswith("<TrainingSet: 2,200 rows, 6 columns; found driver_stats 9")


@pytest.mark.slow
def test_what_was_learned_and_what_was_read_with_await(outputs: list[dict[str, Any]]):
    printed = "".join("".join(output["text"]) for output in outputs if "text" in output)
    (auc,) = re.findall(r"ROC AUC of the days after: (0\.\d\d)", printed)
    assert float(auc) > 0.6
    new = {"driver_id": 3, "conv_rate": 0.9, "trips": 12, "city": "Boston"}
    assert f"{new} PRESENT" in printed
    old = {"driver_id": 4, "conv_rate": None, "trips": None, "city": None}
    assert f"{old} OUTSIDE_MAX_AGE" in printed
