"""Train a model of late arrivals on features from the store, and save it as model.json.

A data scientist's script: no await, pandas and scikit-learn as ever. The model learns January to
October and is scored on November and December. In a folder with featurestore.db, or with
FEATURESTORE_URL set:

    python train.py
"""

import sys
from pathlib import Path

import pandas as pd
from model import FEATURES, FLIGHT, LateModel, evaluate

import featurestore as fs

NOVEMBER = pd.Timestamp("2013-11-01", tz="America/New_York")


def main(flights: str | Path = "data/flights.parquet", model: str | Path = "model.json") -> None:
    with fs.sync.FeatureStore() as store:
        training = store.get_historical_features(flights, "arrival_delay")
    for view, share in training.match_rate.items():
        print(f"{view:<16} found for {share:.1%} of the flights")

    frame = training.to_pandas()
    arrived = frame[frame["arr_delay"].notna()]  # cancelled and diverted ones never do
    past = arrived["event_timestamp"] < NOVEMBER

    for name, numbers in {"without features": FLIGHT, "with features": FLIGHT + FEATURES}.items():
        fitted = LateModel.fit(arrived[past], numbers)
        score = evaluate(fitted, arrived[~past])
        print(f"{name:<16} ROC AUC {score.auc:.3f}, late in the top tenth {score.top_tenth:.0%}")

    fitted.save(model)
    print(f"{model} saved")


if __name__ == "__main__":
    main(*sys.argv[1:3])
