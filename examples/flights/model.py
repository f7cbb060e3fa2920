"""A model of late arrivals: gradient-boosted trees, learned with scikit-learn, saved as JSON.

What serves the model needs numpy alone, and unpickles nothing: a file of numbers can be read,
compared and sent around, and cannot run code. Features may be null: each split of a tree has
learned which way those go. pandas and scikit-learn are imported where a model is fitted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

LATE = 15  # minutes after the scheduled arrival; the usual definition of a late flight

# What the timetable says; the distance stands for the destination.
CATEGORIES = ["carrier", "origin"]
FLIGHT = ["distance", "day_of_week", "departure_hour"]

# What the service `arrival_delay` adds.
FEATURES = [
    *["temperature", "humidity", "wind_speed", "wind_gust"],
    *["precipitation", "pressure", "visibility"],
    *["last_dep_delay", "last_arr_delay", "mean_arr_delay_3", "mean_arr_delay_10"],
    *["mean_arr_delay_20", "late_share_20", "cancelled_share_20"],
]

ROWS_AT_ONCE = 8_192  # what a step down all trees holds in memory: 2 MB

Floats = npt.NDArray[np.float64]


class Trees(NamedTuple):
    """The nodes of all trees as columns: a leaf leads to itself, so that all rows can take the
    same number of steps."""

    feature: npt.NDArray[np.intp]
    threshold: Floats  # up to here to the left
    null_left: npt.NDArray[np.bool_]
    left: npt.NDArray[np.intp]
    right: npt.NDArray[np.intp]
    value: Floats  # of a leaf, in log odds


@dataclass(frozen=True)
class LateModel:
    """The probability that a flight arrives more than 15 minutes late."""

    numbers: list[str]  # the columns that trees split on: these, as they are …
    categories: list[str]  # … then "carrier=UA" and others, 1 or 0
    baseline: float  # log odds of an average flight
    roots: list[int]  # where in `nodes` each tree begins
    depth: int  # steps from a root to the farthest leaf
    nodes: dict[str, list[float]]  # the columns of Trees

    def predict(self, flights: Sequence[Mapping[str, Any]]) -> list[float]:
        """For many flights at once, which costs little more than for one: 64 take 0.5 ms, one
        takes 0.1 ms. A category that was not seen in training is none."""
        places = self._places
        matrix = np.zeros((len(flights), len(places)))
        matrix[:, : len(self.numbers)] = np.array(
            [[flight.get(name) for name in self.numbers] for flight in flights], dtype=float
        ).reshape(len(flights), len(self.numbers))
        for row, flight in enumerate(flights):
            for name in CATEGORIES:
                if (place := places.get(f"{name}={flight[name]}")) is not None:
                    matrix[row, place] = 1.0
        risks: list[float] = self.risks(matrix).tolist()
        return risks

    def probability(self, flight: Mapping[str, Any]) -> float:
        """For one flight."""
        return self.predict([flight])[0]

    def probabilities(self, flights: Any) -> Floats:
        """For a pandas frame."""
        columns = [*self.numbers, *self.categories]
        return self.risks(_matrix(flights, self.numbers).reindex(columns=columns).to_numpy())

    def risks(self, matrix: Floats) -> Floats:
        """For rows of `numbers` and `categories`; NaN is null."""
        parts = [
            self._risks(matrix[first : first + ROWS_AT_ONCE])
            for first in range(0, len(matrix), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def _risks(self, matrix: Floats) -> Floats:
        """All rows go down all trees side by side, a level at a time."""
        trees = self._trees
        row = np.arange(len(matrix))[:, np.newaxis]
        node = np.tile(np.array(self.roots, dtype=np.intp), (len(matrix), 1))
        for _ in range(self.depth):
            value = matrix[row, trees.feature[node]]
            left = np.where(np.isnan(value), trees.null_left[node], value <= trees.threshold[node])
            node = np.where(left, trees.left[node], trees.right[node])
        risks: Floats = 1 / (1 + np.exp(-self.baseline - trees.value[node].sum(axis=1)))
        return risks

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate([*self.numbers, *self.categories])}

    @cached_property
    def _trees(self) -> Trees:
        types = {"threshold": np.float64, "value": np.float64, "null_left": np.bool_}
        return Trees(
            **{name: np.array(self.nodes[name], types.get(name, np.intp)) for name in Trees._fields}
        )

    # --- a file, and back ---------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a file that holds no such model."""
        try:
            model = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            model._check()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} holds no model of late flights; run train.py.") from error
        return model

    def _check(self) -> None:
        trees, columns = self._trees, len(self._places)
        count = len(trees.value)
        for name, limit in {"left": count, "right": count, "feature": columns}.items():
            places = getattr(trees, name)
            if len(places) != count or np.any((places < 0) | (places >= limit)):
                raise ValueError(f"{name} leads nowhere")
        if {len(column) for column in trees} != {count} or not set(self.roots) <= set(range(count)):
            raise ValueError("nodes are missing")
        numbers = np.array([self.baseline, *trees.threshold, *trees.value])
        if not 0 <= self.depth <= count or not np.isfinite(numbers).all():
            raise ValueError("numbers that cannot be")

    # --- learning -----------------------------------------------------------------------------

    @classmethod
    def fit(cls, flights: Any, numbers: Sequence[str]) -> Self:
        """From a pandas frame of flights that arrived: their numbers, categories, `arr_delay`."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        frame = _matrix(flights, numbers)
        matrix = frame.to_numpy()
        # Few large steps: 50 of 0.15 take half as long again for an AUC that is better by 0.003.
        learner = HistGradientBoostingClassifier(
            max_iter=30,
            learning_rate=0.25,
            max_leaf_nodes=15,
            max_bins=63,
            early_stopping=False,
            random_state=0,
        )
        with threadpool_limits(1):  # at this size threads would wait for each other
            learner.fit(matrix, flights["arr_delay"] > LATE)
            expected = learner.predict_proba(matrix[:1_000])[:, 1]
        model = cls(
            numbers=list(numbers),
            categories=list(frame.columns[len(numbers) :]),
            **_exported(learner),
        )
        # How scikit-learn keeps its trees is its own affair: had that changed, this would tell.
        if not np.allclose(model.risks(matrix[:1_000]), expected):
            raise RuntimeError("this scikit-learn keeps its trees in another form")
        return model


class Score(NamedTuple):
    """How good a model is at telling late flights from others."""

    auc: float  # 0.5: as good as tossing a coin, 1: never wrong
    top_tenth: float  # share of late ones among the tenth of flights called most at risk


def evaluate(model: LateModel, flights: Any) -> Score:
    from sklearn.metrics import roc_auc_score

    risk, late = model.probabilities(flights), flights["arr_delay"] > LATE
    return Score(
        auc=float(roc_auc_score(late, risk)),
        top_tenth=float(late[risk >= np.quantile(risk, 0.9)].mean()),
    )


def departure_features(departure: datetime) -> dict[str, float]:
    """What the model wants to know of a departure, given in the airport's local time."""
    return {
        "day_of_week": departure.weekday(),
        "departure_hour": departure.hour + departure.minute / 60,
    }


def _matrix(flights: Any, numbers: Sequence[str]) -> Any:
    """A frame of floats: the numbers, then a column for each category."""
    import pandas as pd

    columns = [
        flights[list(numbers)].astype("float64"),
        pd.get_dummies(flights[CATEGORIES], prefix_sep="=").astype("float64"),
    ]
    return pd.concat(columns, axis=1)


def _exported(learner: Any) -> dict[str, Any]:
    """The trees of scikit-learn's histogram gradient boosting as plain numbers."""
    trees = [predictor.nodes for (predictor,) in learner._predictors]
    sizes = [len(tree) for tree in trees]
    roots = [sum(sizes[:number]) for number in range(len(trees))]
    nodes, root = np.concatenate(trees), np.repeat(roots, sizes)
    itself, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    columns = {
        "feature": np.where(leaf, 0, nodes["feature_idx"]),
        # A split of nulls from all else has no bound, which JSON cannot say.
        "threshold": np.nan_to_num(np.where(leaf, 0.0, nodes["num_threshold"])),
        "null_left": nodes["missing_go_to_left"].astype(int),
        "left": np.where(leaf, itself, nodes["left"] + root),
        "right": np.where(leaf, itself, nodes["right"] + root),
        "value": np.where(leaf, nodes["value"], 0.0),
    }
    return {
        "baseline": float(learner._baseline_prediction[0, 0]),
        "roots": roots,
        "depth": max(int(tree["depth"].max()) for tree in trees),
        "nodes": {name: column.tolist() for name, column in columns.items()},
    }
