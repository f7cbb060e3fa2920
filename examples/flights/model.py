"""A small model of late arrivals that is saved as JSON: nothing has to be unpickled to serve it.

A logistic regression over standardised numbers and one weight per category. Features may be null:
a missing number counts as an average one. To predict takes microseconds and nothing but the
standard library; pandas and scikit-learn are imported where a model is fitted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

LATE = 15  # minutes after the scheduled arrival; the usual definition of a late flight
CLIP = 4.0  # standard deviations: no single wild value decides

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


@dataclass(frozen=True)
class LateModel:
    """The probability that a flight arrives more than 15 minutes late."""

    intercept: float
    means: dict[str, float]
    scales: dict[str, float]
    weights: dict[str, float]  # of "wind_speed", "carrier=UA" …

    def probability(self, flight: Mapping[str, Any]) -> float:
        """For one flight; a category that was not seen in training has no weight."""
        score = self.intercept
        for name, mean in self.means.items():
            if (value := flight.get(name)) is not None:
                deviation = (value - mean) / self.scales[name]
                score += self.weights[name] * min(max(deviation, -CLIP), CLIP)
        for name in CATEGORIES:
            score += self.weights.get(f"{name}={flight[name]}", 0.0)
        return 1 / (1 + math.exp(-score))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    @classmethod
    def fit(cls, flights: Any, numbers: Sequence[str]) -> Self:
        """From a pandas frame of flights that arrived: their numbers, categories, `arr_delay`."""
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        means = flights[numbers].mean().fillna(0.0)
        scales = flights[numbers].std().fillna(1.0).replace(0.0, 1.0)
        matrix = _matrix(flights, means, scales)
        regression = LogisticRegression(solver="newton-cholesky")
        with threadpool_limits(1):  # at this size threads would wait for each other
            regression.fit(matrix, flights["arr_delay"] > LATE)
        return cls(
            intercept=float(regression.intercept_[0]),
            means=means.to_dict(),
            scales=scales.to_dict(),
            weights=dict(zip(matrix.columns, regression.coef_[0].tolist(), strict=True)),
        )

    def probabilities(self, flights: Any) -> Any:
        """The same as :meth:`probability`, for a pandas frame at once."""
        import pandas as pd

        weights = pd.Series(self.weights)
        matrix = _matrix(flights, pd.Series(self.means), pd.Series(self.scales))
        scores = self.intercept + matrix.reindex(columns=weights.index, fill_value=0.0) @ weights
        return 1 / (1 + (-scores).map(math.exp))


class Score(NamedTuple):
    """How good a model is at telling late flights from others."""

    auc: float  # 0.5: as good as tossing a coin, 1: never wrong
    top_tenth: float  # share of late ones among the tenth of flights called most at risk


def evaluate(model: LateModel, flights: Any) -> Score:
    from sklearn.metrics import roc_auc_score

    risk, late = model.probabilities(flights), flights["arr_delay"] > LATE
    return Score(
        auc=float(roc_auc_score(late, risk)),
        top_tenth=float(late[risk >= risk.quantile(0.9)].mean()),
    )


def departure_features(departure: datetime) -> dict[str, float]:
    """What the model wants to know of a departure, given in the airport's local time."""
    return {
        "day_of_week": departure.weekday(),
        "departure_hour": departure.hour + departure.minute / 60,
    }


def _matrix(flights: Any, means: Any, scales: Any) -> Any:
    import pandas as pd

    deviations = ((flights[means.index] - means) / scales).clip(-CLIP, CLIP)
    columns = [
        deviations.fillna(0.0),
        pd.get_dummies(flights[CATEGORIES], prefix_sep="="),
    ]
    return pd.concat(columns, axis=1).astype("float32")
