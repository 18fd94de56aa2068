"""fine_tuning: what a small category's model gains from starting from a model of all categories, on Amazon Beauty.

    ./spark-submit.sh tests/bench/fine_tuning.py
    ./spark-submit.sh tests/bench/fine_tuning.py --category 'Bath & Body' --models gru --seeds 0 1 2 3 4
    ./spark-submit.sh tests/bench/fine_tuning.py --quick                     one model, one seed, three epochs: does it run

The small log has the events of one category's items, of the users with three of them or more. It is judged by each user's last but
one, the fold that settings are chosen on, among all items that he did not have, and learned from those before. The large log has
all categories and users, less all that a user of the small log did from that event on, so that no model has seen it or what came
after. The trainings run in this process, as one rank, with the settings below; a tenth of the small
log's users and a twentieth of the large one's choose the epoch.

- ndcg10, hr10 of each model trained from scratch on the small log, pre_trained on the large one (its weights as they are, with the
  small log's vocabulary and popularity), and fine_tuned (``sequence.start_from``): means over users and seeds; and of popularity,
  which counts the small log's buyers
- ndcg10_gain, hr10_gain: fine_tuned less scratch and less popularity, with the interval of a paired bootstrap over users, whose
  values are means over the seeds. The seeds are those of the small log's trainings; of each model one is pre-trained, so that how
  much another one would gain is not in the interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pipelines import ROOT, read_table, run_pipeline
from trainings import report

from xrec.config import Settings, load_settings
from xrec.evaluation.intervals import poisson_weights
from xrec.features.sequence_files import read_exported_folds
from xrec.features.vector_files import read_staged
from xrec.sequence.progress import load_progress
from xrec.sequence.ranks import train_all
from xrec.sequence.spec import TrainingSpec

CONFIG = ROOT / "conf" / "amazon_beauty.yaml"
DATA = "../shared/data/amazon_beauty"
K = 10
LEAST_EVENTS = 3
BOTH: dict[str, Any] = {
    "folds.purpose": "select",
    "folds.num_select": 1,
    "ranking.sources": "[popularity,gru,transformer]",
    "sequence.objective": "next_event",
    "sequence.item_vectors": "null",
    "sequence.length": 50,
    "sequence.max_windows": 1,
    "sequence.min_buyers": 1,
    "sequence.num_processes": 1,
    "sequence.threads": 1,  # steps are small: threads that wait for each other on a busy machine cost more than they give
    "sequence.batch_rows": 32,
    "sequence.learning_rate": 2e-3,
    "sequence.epochs": 20,
    "sequence.patience": 5,
    "sequence.epochs_more": 0,
}
LARGE = {"folds.purpose": "serve", "folds.num_select": 0, "sequence.batch_rows": 128, "sequence.epochs": 6}
"""Nothing more is held out of the large log than is left out of its file."""
SMALL = {"sequence.validation_share": 0.1}
STAYS = 1e-12
"""A learning rate that changes nothing."""


def main() -> None:
    """Make both logs, export them, train, judge, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="holds interactions.csv.gz and items.csv.gz")
    parser.add_argument("--category", default="Fragrance", help="of items.csv.gz")
    parser.add_argument("--models", nargs="+", default=["gru", "transformer"], choices=["gru", "transformer"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--tables", metavar="PATH", help="where tables and pre-trained models are kept (default: a temporary folder)"
    )
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    models, seeds = (["gru"], [0]) if arguments.quick else (arguments.models, arguments.seeds)
    epochs = {"sequence.epochs": 3} if arguments.quick else {}
    with tempfile.TemporaryDirectory(prefix="xrec-fine-tuning-") as temporary:
        folder = Path(arguments.tables or temporary).resolve()
        write_logs(Path(arguments.data), arguments.category, folder)
        large, small = (
            exported(folder / log, BOTH | own | epochs) for log, own in (("large", LARGE), ("small", SMALL))
        )
        judge = Judge.read(folder / "small" / "tables")
        popularity = judge.values_of(judge.popularity)
        show("popularity", popularity, arguments.category)
        for model in models:
            start = pre_train(model, large)
            values = {}
            for name, own in (
                ("scratch", {}),
                ("pre_trained", {"start_from": start, "learning_rate": STAYS, "epochs": 1}),
                ("fine_tuned", {"start_from": start}),
            ):
                specs = [spec_of(model, seed, name, small, **own) for seed in seeds]
                for spec in specs:
                    train_all([spec])
                of_seeds = [judge.values_of(judge.logits(spec)) for spec in specs]
                values[name] = np.mean(of_seeds, axis=0)
                show(f"{model}_{name}", values[name], arguments.category, of_seeds)
            for against, other in (("scratch", values["scratch"]), ("popularity", popularity)):
                show_gain(model, values["fine_tuned"] - other, against, judge.users_U, arguments.category)


def write_logs(data: Path, category: str, folder: Path) -> None:
    """Write events and items of the large and of the small log, whose categories are the next level of the path."""
    for file in (data / "interactions.csv.gz", data / "items.csv.gz"):
        if not file.exists():
            sys.exit(f"error: {file.resolve()} is not there; --data names the folder of Amazon Beauty, which holds it")
    events, items = (pd.read_csv(data / f"{name}.csv.gz") for name in ("interactions", "items"))
    if category not in set(items["category"]):
        sys.exit(f"error: --category: found '{category}', expected one of {', '.join(sorted(set(items['category'])))}")
    events = events.sort_values(["user_id", "position"])
    small_items = items[items["category"] == category]
    level = small_items["attribute_names"].str.extract(rf"(?:^|\|){re.escape(category)}\|([^|]+)", expand=False)
    of_category = events[events["item_id"].isin(small_items["item_id"])]
    small = of_category[of_category.groupby("user_id")["position"].transform("size") >= LEAST_EVENTS]
    targets = small.groupby("user_id").nth(-2)
    until = events["user_id"].map(targets.set_index("user_id")["position"])
    large = events[~(events["position"] >= until)]
    small_items = small_items.assign(category=level.fillna("other"))
    for name, log, catalogue in (("large", large, items), ("small", small, small_items)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        log.to_csv(folder / name / "interactions.csv", index=False)
        catalogue.to_csv(folder / name / "items.csv", index=False)


def exported(root: Path, values: dict[str, Any]) -> Settings:
    """The settings of a log whose windows are exported; the stages until then run where they are not there."""
    values |= {"log.file.path": root / "interactions.csv", "catalogue.file.path": root / "items.csv"}
    values |= {"storage.root": root / "tables"}
    settings = load_settings([str(CONFIG)], [f"{name}={value}" for name, value in values.items()])
    if not Path(settings.storage.artifacts_root, "exports.json").exists():
        run_pipeline(values, "--until", "export_sequences", configs=[CONFIG])
    return settings


def pre_train(model: str, large: Settings) -> str:
    """The folder of the fold of the large log's training, which runs where it has not ended before."""
    spec = spec_of(model, 0, "pre_training", large)
    before = load_progress(spec.checkpoint)
    if before is None or not before.closed or before.digest != spec.lineage:
        train_all([spec])
    return f"{spec.artifacts}/{spec.export.fold}"


def spec_of(model: str, seed: int, name: str, settings: Settings, **sequence: Any) -> TrainingSpec:
    """A training with a seed of its own; the windows are those of the export, whatever the seed."""
    artifacts = settings.storage.artifacts_root
    own = settings.model_copy(update={"sequence": settings.sequence.model_copy(update=sequence)})
    spec = TrainingSpec.plan(model, read_exported_folds(artifacts), own)[0]
    seeded = own.model_copy(update={"seed": seed})
    return dataclasses.replace(spec, settings=seeded, artifacts=f"{artifacts}/{name}-{seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """The small log's users with a target: which item it is, and which are out because he had them; by index."""

    users_U: NDArray[np.int64]
    targets_U: NDArray[np.int64]
    had_UI: NDArray[np.bool_]

    @classmethod
    def read(cls, root: Path) -> Judge:
        """Those that the pipeline judges in the slice ``new``."""
        targets = read_table(root, "targets").query("is_new and not cold_user").sort_values("user_idx")
        had, num_items = read_table(root, "interactions"), len(read_table(root, "items"))
        had_UI = np.zeros((int(had["user_idx"].max()) + 1, num_items), bool)
        had_UI[had["user_idx"], had["item_idx"]] = True
        users_U, targets_U = (targets[name].to_numpy(np.int64) for name in ("user_idx", "item_idx"))
        return cls(users_U=users_U, targets_U=targets_U, had_UI=had_UI)

    @property
    def popularity(self) -> NDArray[np.float64]:
        """How many users had an item, for each user alike; ties go to the item of the lower index."""
        buyers_I = self.had_UI.sum(axis=0) - np.arange(self.had_UI.shape[1]) / self.had_UI.shape[1]
        return np.broadcast_to(buyers_I, (len(self.users_U), len(buyers_I)))

    def logits(self, spec: TrainingSpec) -> NDArray[np.float64]:
        """The logits by the vectors that a training left; an item without one comes last."""
        parts = read_staged(spec.staging, spec.model).parts
        rows = pd.concat([pq.read_table(f"{spec.staging}/{name}").to_pandas() for name in parts])
        users, items = (rows[rows["kind"] == kind].set_index("idx")["vector"] for kind in ("user", "item"))
        logits_UI = np.full((len(self.users_U), self.had_UI.shape[1]), -np.inf)
        logits_UI[:, items.index] = np.stack(users.loc[self.users_U].to_list()) @ np.stack(items.to_list()).T
        return logits_UI

    def values_of(self, scores_UI: NDArray[np.float64]) -> NDArray[np.float64]:
        """NDCG and hit of each user's list of K among the items that he did not have, shape (U, 2)."""
        scores_UI = np.where(self.had_UI[self.users_U], -np.inf, scores_UI)
        of_target_U = scores_UI[np.arange(len(self.users_U)), self.targets_U]
        ranks_U = 1 + (scores_UI > of_target_U[:, None]).sum(axis=1)
        is_hit_U = (ranks_U <= K) & np.isfinite(of_target_U)
        return np.stack([is_hit_U / np.log2(1 + ranks_U), is_hit_U], axis=1)


def show(name: str, values_U2: NDArray[np.float64], category: str, of_seeds: Any = ()) -> None:
    """Print a model's figures, each seed's own beside them."""
    for place, metric in enumerate((f"ndcg{K}", f"hr{K}")):
        each = [round(float(values[:, place].mean()), 5) for values in of_seeds]
        mean = float(values_U2[:, place].mean())
        report(f"{metric}_{name}", mean, "share", None, len(values_U2), category=category, of_seeds=each)


def show_gain(
    model: str, gains_U2: NDArray[np.float64], against: str, users_U: NDArray[np.int64], category: str
) -> None:
    """Print what fine-tuning gains, with its interval."""
    weights_UB = poisson_weights(users_U, 1000, seed=0)
    means_B2 = weights_UB.T @ gains_U2 / weights_UB.sum(axis=0)[:, None]
    for place, metric in enumerate((f"ndcg{K}", f"hr{K}")):
        interval = [round(float(bound), 5) for bound in np.percentile(means_B2[1:, place], [2.5, 97.5])]
        gain = float(means_B2[0, place])
        report(f"{metric}_gain_{model}", gain, "share", against, len(users_U), category=category, interval=interval)


if __name__ == "__main__":
    main()
