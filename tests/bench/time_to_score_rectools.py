"""RecTools' SASRec until a score, for time_to_score.py: runs in an environment of its own, which has no xrec.

python time_to_score_rectools.py '{"log": "log.csv.gz", "seed": 0, "score": 0.045, "most_seconds": 600, "threads": 2, "model": {}}'

Trains epoch by epoch on all but each user's last two items, judges the last but one after each, and prints the seconds of the
epochs until the score, or, once these are more than "most_seconds", that it gave up; "model" are arguments of SASRecModel.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

K = 10
SECONDS: list[float] = []
"""Of every epoch. The trainer, and what it calls back, is copied when a model is fitted."""


class Clock(Callback):
    """Times the epochs, without what is prepared before and after them."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        SECONDS.append(-time.perf_counter())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop it."""
        SECONDS[-1] += time.perf_counter()


def make_trainer() -> Trainer:
    """RecTools' own trainer of one epoch, quiet, with the clock."""
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Clock()],
    )


def main() -> None:
    """Train, judge, print."""
    told = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(told["threads"])
    seed_everything(told["seed"])
    log = pd.read_csv(told["log"], dtype={"user_id": str, "item_id": str})
    from_end = log.groupby("user_id")["position"].rank(ascending=False, method="first")
    train, targets = log[from_end > 2], log[from_end == 2]
    targets = targets[targets["user_id"].isin(train["user_id"])]
    day = pd.Timestamp("2000-01-01") + pd.to_timedelta(train["position"], unit="D")
    rows = train[[Columns.User, Columns.Item]].assign(**{Columns.Weight: 1.0, Columns.Datetime: day})
    dataset = Dataset.construct(rows)
    model = SASRecModel(
        **told["model"],
        get_trainer_func=make_trainer,
        recommend_torch_device="cpu",
    )
    for epoch in itertools.count(1):
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        ndcg = judge(model, dataset, targets)
        print(f"epoch {epoch}: {SECONDS[-1]:.1f} s, NDCG@{K} of all users {ndcg:.4f}", flush=True)
        if ndcg >= told["score"]:
            print(f"reached: {sum(SECONDS):.2f}", flush=True)
            return
        if sum(SECONDS) > told["most_seconds"]:
            print(f"gave up: {sum(SECONDS):.2f}", flush=True)
            return


def judge(model: SASRecModel, dataset: Dataset, targets: pd.DataFrame) -> float:
    """NDCG@10: of each user the target among all items that he did not have."""
    lists = model.recommend(users=targets[Columns.User].to_numpy(), dataset=dataset, k=K, filter_viewed=True)
    hits = lists.merge(targets, on=[Columns.User, Columns.Item])
    return float((1 / np.log2(hits[Columns.Rank] + 1)).sum() / len(targets))


if __name__ == "__main__":
    main()
