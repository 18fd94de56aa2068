"""SASRec by RecTools until it reaches a score, for time_to_score.py: runs in an environment of its own, which has no xrec.

python time_to_score_rectools.py INTERACTIONS SETTINGS

INTERACTIONS is a file with user_id, item_id and position; each user's last two items are left out, the last but one is asked for.
SETTINGS is JSON. Prints the seconds of training.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from functools import partial
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import SASRecModel

K = 10


class Judge(Callback):
    """Judges after every epoch, and stops when the score is reached; the clock stands while it judges."""

    def __init__(self, score: float) -> None:
        self.score, self.seconds, self.started = score, 0.0, 0.0
        self.found, self.model, self.dataset, self.targets = 0.0, None, None, None

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """The clock starts."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The clock stands."""
        self.seconds += time.perf_counter() - self.started
        model: Any = self.model
        model.is_fitted = True
        module.eval()
        users = self.targets[Columns.User].unique()  # type: ignore[index]
        lists = model.recommend(users=users, dataset=self.dataset, k=K, filter_viewed=True)
        self.found = NDCG(k=K, divide_by_achievable=True).calc(lists, self.targets)
        module.train()
        print(f"epoch {trainer.current_epoch + 1}: {self.seconds:.1f} s, NDCG@{K} {self.found:.4f}", flush=True)
        trainer.should_stop = self.found >= self.score


def make_trainer(judge: Judge, epochs: int) -> Trainer:
    """RecTools' own trainer, with the judge."""
    return Trainer(
        max_epochs=epochs,
        min_epochs=1,
        deterministic=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        devices=1,
        callbacks=[judge],
    )


def main() -> None:
    """Read, train, print."""
    warnings.simplefilter("ignore")
    settings = json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    log = pd.read_csv(sys.argv[1])
    log[Columns.Datetime] = pd.to_datetime(log["position"], unit="s")
    log[Columns.Weight] = 1.0
    from_the_end = log.groupby(Columns.User)["position"].rank(ascending=False)
    columns = [Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]
    judge = Judge(settings["score"])
    judge.dataset = Dataset.construct(log.loc[from_the_end > 2, columns])
    judge.targets = log.loc[from_the_end == 2, columns]
    judge.model = SASRecModel(
        n_blocks=settings["num_layers"],
        n_heads=settings["num_heads"],
        n_factors=settings["dim"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["length"],
        loss="softmax",
        lr=settings["learning_rate"],
        batch_size=settings["batch_rows"],
        epochs=settings["epochs"] * 5,
        get_trainer_func=partial(make_trainer, judge, settings["epochs"] * 5),
    )
    judge.model.fit(judge.dataset)
    if judge.found < judge.score:
        sys.exit(f"error: NDCG@{K} is {judge.found:.4f} after {settings['epochs'] * 5} epochs, expected {judge.score}")
    print(f"seconds: {judge.seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
