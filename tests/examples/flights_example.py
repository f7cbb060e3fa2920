"""What the tests of the flights example share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featurestore.demo import DemoResult

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "flights"


@dataclass(frozen=True)
class Demo:
    """One run of `featurestore demo`, and the folder that it left."""

    folder: Path
    url: str
    result: DemoResult
    output: str
