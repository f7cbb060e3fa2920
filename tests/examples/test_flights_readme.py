"""The README shows what the demo prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flights_example import Demo

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "README.md"


def without_measurements(text: str) -> list[str]:
    """Lines without what another machine, or another version of scikit-learn, may change."""
    text = re.sub(r"\d+\.\d+ s\b|\b0\.\d{3}\b|\b\d+%", "#", text)
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


def test_the_readme_shows_what_the_demo_prints(demo: Demo) -> None:
    shown = re.search(r"^```text\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    assert shown is not None
    lines = without_measurements(shown[1])
    assert len(lines) > 8
    assert [line for line in lines if line not in without_measurements(demo.output)] == []
