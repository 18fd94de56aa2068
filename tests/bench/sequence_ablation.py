"""sequence_ablation: what each part of the sequence models gives and takes, on Complete Journey's select fold of 2017-05-02.

    ./spark-submit.sh tests/bench/sequence_ablation.py
    ./spark-submit.sh tests/bench/sequence_ablation.py --data FOLDER --models transformer --variants word2vec rotary

The settings are those of the default run; a variant changes one of them (VARIANTS), and GRU and Transformer train anew, on that
fold alone. Popularity and ALS, whose vectors the default is given, stand beside them. It is a fold that chooses, no test fold.

- ndcg10: outside touched categories, over the users with targets, and ndcg10_difference to the same model's default, with a 95 %
  interval of a paired bootstrap over users
- cold_recall: of the targets whose item nobody had before the fold, the share that is in the lists, which are as long as the
  candidates'; 0 for what knows items by their buyers alone
- auc_among_cold: how many of the other items that nobody had, and that the user may be shown, such a target is scored above, in the
  mean of his targets and then of users; by chance one half. Lists of everything hold too few of these items to show it
- seconds: of the export and the training of the variant's models, Spark's and Horovod's start included

With --data the tables and what was judged are kept there, and what is there already is not made again.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pipelines import ndcg_of_users, only, read_lists, read_table, run_pipeline
from trainings import report

from xrec.evaluation.intervals import poisson_weights

FOLD = "select-2017-05-02"
OF_FOLD = {"folds.purpose": "select", "folds.as_of": "2017-07-02", "folds.num_select": 1, "tracking.enabled": "false"}
DEFAULT, MODELS, BESIDE = "default", ("gru", "transformer"), ("popularity", "als")
VARIANTS = {
    DEFAULT: {},
    "learned": {"sequence.item_vectors": "null"},
    "word2vec": {"sequence.item_vectors": "word2vec"},
    "text_svd": {"sequence.item_vectors": "text_svd"},
    "text": {"sequence.item_content": "[text]"},
    "path": {"sequence.item_content": "[path]"},
    "price": {"sequence.item_content": "[price]"},
    "text_path_price": {"sequence.item_content": "[text,path,price]"},
    "gap": {"sequence.context": "[gap]"},
    "hour": {"sequence.context": "[hour]"},
    "weekday": {"sequence.context": "[weekday]"},
    "month": {"sequence.context": "[month]"},
    "gap_hour_weekday_month": {"sequence.context": "[gap,hour,weekday,month]"},
    "not_pooled": {"sequence.pooled": "false"},
    "lstm": {"sequence.cell": "lstm"},
    "rotary": {"sequence.positions": "rotary"},
    "gbce": {"sequence.loss": "gbce"},
    "full_softmax": {"sequence.loss": "full_softmax"},
}
OF_ONE_MODEL = {"lstm": "gru", "rotary": "transformer"}
K, NUM_REPLICATES = 10, 1000


def main() -> None:
    """Train what is not there, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--data", metavar="PATH", help="where everything is kept (default: a temporary folder)")
    arguments = parser.parse_args()
    folder = Path(arguments.data or tempfile.mkdtemp(prefix="xrec-ablation-"))
    control = judged(folder, DEFAULT, list(arguments.models))
    for name in BESIDE:
        print_figures(control, name, DEFAULT, None)
    for variant in dict.fromkeys([DEFAULT, *arguments.variants]):
        models = [one for one in arguments.models if OF_ONE_MODEL.get(variant, one) == one]
        found = judged(folder, variant, models) if models else control
        for model in models:
            print_figures(found, model, variant, None if variant == DEFAULT else control)
    if not arguments.data:
        shutil.rmtree(folder)


def judged(folder: Path, variant: str, models: list[str]) -> pd.DataFrame:
    """One row a (model, user with targets): ``ndcg``, his cold targets (``num_cold``) and how many lists hold (``cold_hits``)."""
    kept = folder / f"{variant}-{'-'.join(models)}.parquet"
    if not kept.exists():
        root, values = folder / "tables", {**OF_FOLD, "storage.root": folder / "tables"}
        if not (folder / "based").exists():
            run_pipeline(values, "--until", "train_als")
            (folder / "based").touch()
        changed = VARIANTS[variant]
        own_vectors = changed.get("sequence.item_vectors") in ("word2vec", "text_svd")
        stages = ["make_item_vectors"] * own_vectors + ["export_sequences", *(f"train_{model}" for model in models)]
        started = time.monotonic()
        sources = {"ranking.sources": f"[{','.join((*BESIDE, *models))}]"}
        run_pipeline({**values, **sources, **changed}, *only(stages))
        seconds = time.monotonic() - started
        run_pipeline({**values, **sources, **changed}, *only(["load_vectors", "candidates"]))
        judge(root).assign(seconds=seconds).to_parquet(kept)
    return pd.read_parquet(kept)


def judge(root: Path) -> pd.DataFrame:
    """The rows of :func:`judged`, by the tables of the last run."""
    lists = read_lists(root).query("fold == @FOLD and scope == 'touched'")
    targets = read_table(root, "targets").query("fold == @FOLD and cross_touched and not cold_user")
    rows = ndcg_of_users(lists[lists["rank"] <= K], targets, K)
    known = read_table(root, "interactions").query("fold == @FOLD")["item_idx"].unique()
    cold = targets.loc[~targets["item_idx"].isin(known), ["user_idx", "item_idx"]]
    hits = lists.merge(cold, on=["user_idx", "item_idx"]).groupby(["source", "user_idx"], observed=True).size()
    rows["num_cold"] = cold.groupby("user_idx").size().reindex(rows["user_idx"], fill_value=0).to_numpy()
    every = pd.MultiIndex.from_frame(rows[["model", "user_idx"]])
    rows["cold_hits"] = hits.reindex(every, fill_value=0).to_numpy()
    among = pd.concat([auc_among_cold(root, model, cold, known) for model in MODELS])
    return rows.merge(among.rename("auc"), left_on=["model", "user_idx"], right_index=True, how="left")


def auc_among_cold(root: Path, model: str, targets: pd.DataFrame, known: NDArray[np.int32]) -> pd.Series:
    """By (model, user with cold targets): the mean share of cold items outside his touched categories that score below them."""
    vectors = read_table(root, "vectors").query("fold == @FOLD and model == @model")
    items = vectors.query("kind == 'item' and idx not in @known")
    users = vectors.query("kind == 'user' and idx in @targets.user_idx").set_index("idx")["vector"]
    found: dict[tuple[str, int], float] = {}
    if len(items) and len(users):
        category = read_table(root, "items").set_index("item_idx")["category"].reindex(items["idx"]).to_numpy()
        had = (
            read_table(root, "user_categories")
            .query("fold == @FOLD and touched")
            .groupby("user_idx")["category"]
            .agg(set)
        )
        vectors_ID, wanted = np.stack(items["vector"].to_numpy()), targets.groupby("user_idx")["item_idx"].agg(list)
        for user, vector_D in users.items():
            allowed = ~np.isin(category, list(had.get(user, ())))
            score_I = vectors_ID @ vector_D
            ordered, mine = np.sort(score_I[allowed]), score_I[np.isin(items["idx"], wanted[user])]
            below = np.searchsorted(ordered, mine, "left")
            above = len(ordered) - np.searchsorted(ordered, mine, "right")
            found[model, user] = float(np.mean((1 + (below - above) / (len(ordered) - 1)) / 2))
    return pd.Series(found, pd.MultiIndex.from_tuples(list(found), names=["model", "user_idx"]), dtype=float)


def print_figures(rows: pd.DataFrame, model: str, variant: str, control: pd.DataFrame | None) -> None:
    """The figures of a model, and its difference to the default's where there is one."""
    mine = rows[rows["model"] == model].set_index("user_idx").sort_index()
    of = {"model": model, "variant": variant}
    report("ndcg10", mine["ndcg"].mean(), "share", None, len(mine), **of)
    if control is not None:
        theirs = control[control["model"] == model].set_index("user_idx").sort_index()
        weights_UB = poisson_weights(mine.index.to_numpy(), NUM_REPLICATES, seed=0)
        difference_B = (mine["ndcg"] - theirs["ndcg"]).to_numpy() @ weights_UB / weights_UB.sum(axis=0)
        interval = [float(f"{end:.3g}") for end in np.percentile(difference_B[1:], [2.5, 97.5])]
        report("ndcg10_difference", difference_B[0], "share", DEFAULT, len(mine), interval=interval, **of)
    num_cold = int(mine["num_cold"].sum())
    report("cold_recall", mine["cold_hits"].sum() / max(num_cold, 1), "share", None, num_cold, **of)
    if model in MODELS:
        of_cold = mine["auc"].dropna()
        if len(of_cold):
            report("auc_among_cold", of_cold.mean(), "share", "0.5 by chance", len(of_cold), **of)
        report("seconds", float(mine["seconds"].iloc[0]), "s", None, 1, **of)


if __name__ == "__main__":
    main()
