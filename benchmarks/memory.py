"""How much memory this process has taken at its peak. It stands alone: peers in environments of
their own use it, too."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def begin_peak() -> int:
    """Let the peak of this process begin anew; the bytes that it holds at the moment."""
    if not STATUS.exists():
        return peak()  # where it cannot begin anew, what importing took at its peak is idle
    Path("/proc/self/clear_refs").write_text("5")
    return _of_status("VmRSS")


def peak() -> int:
    """The greatest resident size so far, in bytes."""
    if STATUS.exists():
        return _of_status("VmHWM")  # ru_maxrss would hold what the process's parent had
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
