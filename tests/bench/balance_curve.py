"""balance_curve: what balancing the categories of the training rows (balance.alpha) does to accuracy, per category and overall.

    ./spark-submit.sh tests/bench/balance_curve.py
    ./spark-submit.sh tests/bench/balance_curve.py --alphas 1 0.5 --models als

The default log is cleaned once; each alpha then balances, trains and judges one fold, that of 2017-09-01, which chooses
settings and is no test fold. alpha = 1 is the control. For each model and alpha:

- ndcg@10, as the stage evaluate gives it, and its difference to alpha = 1;
- macro_recall@10: the mean over the categories that have targets of (targets hit in the category / its targets), so that a
  small category counts as much as a large one (Yang, Liu 1999, macro-averaging), and its difference to alpha = 1;
- coverage@10: distinct items in all lists over recommendable items.

Intervals (95 %) are paired over users: the same Poisson weights as in the stage evaluate.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pipelines import only, read_lists, read_table, run_pipeline

from xrec.evaluation.intervals import poisson_weights

AS_OF, FOLD = "2017-09-01", "test-2017-09-01"
K, NUM_REPLICATES = 10, 1000
STAGES = {
    "als": ["balance", "train_als"],
    "gru": ["balance", "export_sequences", "train_gru", "load_vectors"],
    "transformer": ["balance", "export_sequences", "train_transformer", "load_vectors"],
}


def main() -> None:
    """Run every alpha, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25], metavar="A")
    parser.add_argument("--models", nargs="+", default=["als", "gru"], choices=sorted(STAGES))
    parser.add_argument("--data", metavar="PATH", help="where the tables are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    folder = Path(arguments.data or tempfile.mkdtemp(prefix="xrec-balance-"))
    _run(folder / "base", {}, "--until", "fold")
    control: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for alpha in [1.0, *(alpha for alpha in arguments.alphas if alpha != 1.0)]:
        root = folder / f"alpha-{alpha:g}"
        shutil.copytree(folder / "base", root)
        stages = dict.fromkeys(stage for model in arguments.models for stage in STAGES[model])
        sources = f"[popularity,{','.join(arguments.models)}]"
        _run(root, {"balance.alpha": alpha, "ranking.sources": sources}, *only([*stages, "candidates"]))
        lists, targets, num_items = _judged(root)
        for model in arguments.models:
            found = _figures(lists[lists["source"] == model], targets)
            for name, values in found.items():
                _report(f"{name}@{K} {model} alpha {alpha:g}", values, None)
                if alpha != 1.0:
                    _report(
                        f"{name}@{K} {model} alpha {alpha:g} less alpha 1", values - control[model][name], "alpha 1"
                    )
            control.setdefault(model, found)
            covered = lists.loc[lists["source"] == model, "item_idx"].nunique() / num_items
            _report(f"coverage@{K} {model} alpha {alpha:g}", np.array([covered]), None)
    if not arguments.data:
        shutil.rmtree(folder)


def _run(root: Path, settings: dict[str, object], *stages: str) -> None:
    run_pipeline({"storage.root": root, "folds.as_of": AS_OF, "folds.num_select": 0, **settings}, *stages)


def _judged(root: Path) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Lists and targets outside the touched categories, and the number of recommendable items."""
    lists = read_lists(root).query("fold == @FOLD and scope == 'touched' and rank <= @K")
    targets = read_table(root, "targets").query("fold == @FOLD and cross_touched")
    return lists, targets, int(read_table(root, "items")["recommendable"].sum())


def _figures(lists: pd.DataFrame, targets: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric of the sample (first) and of the replicates, shape [B + 1]."""
    found = targets.merge(lists[["user_idx", "item_idx", "rank"]], how="left", on=["user_idx", "item_idx"])
    users_U, place_T = np.unique(found["user_idx"].to_numpy(), return_inverse=True)
    categories, category_T = np.unique(found["category"].to_numpy(), return_inverse=True)
    weights_UB = poisson_weights(users_U, NUM_REPLICATES, seed=0)
    is_hit_T = found["rank"].notna().to_numpy()
    gain_T = np.where(is_hit_T, 1 / np.log2(found["rank"].fillna(1).to_numpy() + 1), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(1, K + 1) + 1))
    num_targets_U = np.bincount(place_T)
    ndcg_U = np.bincount(place_T, gain_T) / ideal[np.minimum(num_targets_U, K) - 1]
    recalls_CB = np.stack(
        [
            _share(weights_UB, place_T[category_T == index], is_hit_T[category_T == index])
            for index in range(len(categories))
        ]
    )
    # A replicate that drew nobody with a target in a category says nothing of it.
    return {"ndcg": ndcg_U @ weights_UB / weights_UB.sum(axis=0), "macro_recall": np.nanmean(recalls_CB, axis=0)}


def _share(weights_UB: npt.NDArray[np.float64], users: Any, is_hit: Any) -> npt.NDArray[np.float64]:
    counts = np.bincount(users, minlength=len(weights_UB)) @ weights_UB
    hits = np.bincount(users, is_hit, minlength=len(weights_UB)) @ weights_UB
    return np.divide(hits, counts, out=np.full_like(hits, np.nan), where=counts > 0)


def _report(figure: str, values: npt.NDArray[np.float64], against: str | None) -> None:
    line = {"figure": figure, "value": round(float(values[0]), 5), "unit": "share", "against": against, "n": 1}
    if len(values) > 1:
        line["interval"] = [round(float(bound), 5) for bound in np.percentile(values[1:], [2.5, 97.5])]
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
