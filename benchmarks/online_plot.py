"""The plot of `online.py`: latency at fixed rates of arrival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from online_load import Measured

COLORS = ("#0b6e4f", "#c44900", "#5b4b9a")
GREY = "#555555"


def plot(ways: Mapping[str, Mapping[int, Measured | None]], path: Path) -> None:
    """Draw each way's median and 99th percentile over the rate, as far as it keeps up."""
    style: Any = {
        "font.size": 11,
        "svg.fonttype": "path",  # the same letters everywhere
        "svg.hashsalt": "featurestore",  # the same data make the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        for found, color in zip(ways.values(), COLORS, strict=True):
            _draw(axes, found, color)
        _label(axes, sorted({rate for found in ways.values() for rate in found}))
        _legend(axes, list(ways))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(axes: Axes, found: Mapping[int, Measured | None], color: str) -> None:
    kept = {rate: one for rate, one in sorted(found.items()) if one is not None}
    if kept:
        rates = list(kept)
        for figure, dashes in (("p50", "-"), ("p99", "--")):
            times = [getattr(one, figure) * 1e3 for one in kept.values()]
            axes.plot(rates, times, dashes, color=color, marker="o", markersize=4, linewidth=1.8)
    behind = [rate for rate, one in found.items() if one is None]
    # At the upper edge, whatever the scale: there is no latency to show.
    axes.plot(
        behind,
        [1.0] * len(behind),
        "x",
        color=color,
        markersize=9,
        markeredgewidth=2.5,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )


def _label(axes: Axes, rates: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arrivals per second, thousands")
    axes.set_ylabel("latency, ms")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate / 1_000:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:g}"))
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes, titles: Sequence[str]) -> None:
    handles = [
        *(
            Line2D([], [], color=color, linewidth=3)
            for _, color in zip(titles, COLORS, strict=True)
        ),
        Line2D([], [], color=GREY, marker="o", markersize=4),
        Line2D([], [], color=GREY, linestyle="--", marker="o", markersize=4),
        Line2D([], [], color=GREY, linestyle="", marker="x", markersize=8, markeredgewidth=2.5),
    ]
    names = [*titles, "median", "99th percentile", "falls behind"]
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # In columns: each way above a kind of line.
    order = [index for pair in zip(range(3), range(3, 6), strict=True) for index in pair]
    figure.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
