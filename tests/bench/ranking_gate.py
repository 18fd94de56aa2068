"""ranking_gate: what serves, every source and the rankers on Complete Journey, against popularity, ALS and ALS x trend.

    ./spark-submit.sh tests/bench/ranking_gate.py
    ./spark-submit.sh tests/bench/ranking_gate.py --seeds 0 --data FOLDER --ablate gru,gru_trend transformer,transformer_trend

The default pipeline at three as-of dates (2017-07-01, 09-01, 11-01; horizon 60 days) with several seeds, once with lists outside
the touched and once outside the home categories; 2017-07-01 has two older folds to learn from, 09-01 three, 11-01 four. A figure is
the gain in NDCG@10 over a baseline, mean(model) / mean(baseline) - 1, averaged over dates and seeds. Intervals (95 %) are clustered
by household: a replicate of the Poisson bootstrap draws a household with all its dates and seeds.

Bounds, of what serves: outside touched categories .17 over popularity and .05 over ALS, outside home categories .20 and .06, and in
both above ALS x trend. The exit code is 1 where one is missed. The dates are test folds: nothing may be chosen by what is printed.
With --ablate the rankers learn again without each of these sources, or groups of them (first seed), and the figure is what is lost.

With --data the tables and the lists of every date, seed and scope are kept there, and what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pipelines import ndcg_of_users, only, read_lists, read_table, run_pipeline

from xrec.config import load_settings
from xrec.evaluation.intervals import poisson_weights

DATES = ("2017-07-01", "2017-09-01", "2017-11-01")
SCOPES = ("touched", "home")
BASELINES = ("popularity", "als", "als_trend")
BOUNDS = {
    ("touched", "popularity"): 0.17,
    ("touched", "als"): 0.05,
    ("touched", "als_trend"): 0.0,
    ("home", "popularity"): 0.20,
    ("home", "als"): 0.06,
    ("home", "als_trend"): 0.0,
}
SERVED, RANKERS = "served", ("logistic", "trees", "ensemble")
K, NUM_REPLICATES = 10, 1000
TRAIN = ("balance", "train_als", "export_sequences", "train_gru", "train_transformer", "load_vectors")
RANK = ("candidates", "blend", "train_rankers", "choose")

Means = dict[str, npt.NDArray[np.float64]]
"""By model: the mean NDCG of the sample (first) and of the replicates, shape (B + 1)."""


def main() -> None:
    """Make what is not there, print the figures, exit with 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dates", nargs="+", default=list(DATES), metavar="DATE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--ablate", nargs="+", default=[], metavar="SOURCE[,SOURCE]")
    parser.add_argument("--data", metavar="PATH", help="where everything is kept (default: a temporary folder)")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="of every run"
    )
    arguments = parser.parse_args()
    folder = Path(arguments.data or tempfile.mkdtemp(prefix="xrec-gate-"))
    overrides = dict(one.split("=", 1) for one in arguments.overrides)
    missed = False
    means: dict[str, list[Means]] = {scope: [] for scope in SCOPES}
    for date in arguments.dates:
        for seed in arguments.seeds:
            ablated = arguments.ablate if seed == arguments.seeds[0] else []
            for scope in SCOPES:
                means[scope].append(_means(_lists(folder, date, seed, scope, overrides, ablated)))
    for scope in SCOPES:
        for model, against, gain in _gains(means[scope], arguments.ablate):
            missed |= not _report(scope, model, against, gain, len(means[scope]))
    if not arguments.data:
        shutil.rmtree(folder)
    sys.exit(int(missed))


def _lists(
    folder: Path, date: str, seed: int, scope: str, overrides: dict[str, str], ablated: Sequence[str]
) -> pd.DataFrame:
    """One row a (model, user with targets): ``ndcg``; a ranker without a source is the model ``trees without SOURCE``."""
    root = folder / date
    same = {
        "storage.root": root,
        "folds.as_of": date,
        "folds.horizon": "P60D",
        "tracking.enabled": "false",
        **overrides,
    }
    base, folded = folder / "base", root / "folded"
    if not folded.exists():
        if not (base / "indexed").exists():
            run_pipeline({"storage.root": base, "tracking.enabled": "false"}, "--until", "index")
            (base / "indexed").touch()
        shutil.copytree(base, root, dirs_exist_ok=True)
        run_pipeline(same, "--only", "fold")
        folded.touch()
    same |= {"seed": seed, "ranking.scope": scope}
    trained = root / f"trained-{seed}"
    found = _kept(folder, date, seed, scope, "all")
    if not found.exists():
        if not trained.exists():
            run_pipeline(same, *only(TRAIN))
            for other in root.glob("trained-*"):  # their vectors were replaced
                other.unlink()
            trained.touch()
        run_pipeline(same, *only(RANK))
        _judge(root, date, scope).to_parquet(found)
    parts = [pd.read_parquet(found)]
    sources = load_settings([], []).ranking.sources
    for source in ablated:
        kept = _kept(folder, date, seed, scope, f"without-{source}")
        if not kept.exists():
            others = ",".join(one for one in sources if one not in source.split(","))
            run_pipeline({**same, "ranking.sources": f"[{others}]"}, "--only", "train_rankers")
            judged = _judge(root, date, scope)
            judged[judged["model"].isin(RANKERS)].to_parquet(kept)
        rows = pd.read_parquet(kept)
        parts.append(rows.assign(model=rows["model"] + f" without {source}"))
    return pd.concat(parts)


def _kept(folder: Path, date: str, seed: int, scope: str, what: str) -> Path:
    return folder / f"{date}-{seed}-{scope}-{what}.parquet"


def _judge(root: Path, date: str, scope: str) -> pd.DataFrame:
    """NDCG@10 of each model's lists for each user with targets, 0 where a model has no list for him."""
    in_fold = f"fold == 'test-{date}'"
    lists = read_lists(root).query(f"{in_fold} and scope == @scope and rank <= @K")
    targets = read_table(root, "targets").query(f"{in_fold} and cross_{scope} and not cold_user")
    return ndcg_of_users(lists, targets, K)


def _means(judged: pd.DataFrame) -> Means:
    users_U = np.unique(judged["user_idx"])
    weights_UB = poisson_weights(users_U, NUM_REPLICATES, seed=0)
    weights_UB /= weights_UB.sum(axis=0)
    by_model = judged.pivot(index="model", columns="user_idx", values="ndcg")[users_U]
    return {str(model): row.to_numpy() @ weights_UB for model, row in by_model.iterrows()}


def _gains(means: Sequence[Means], ablated: Sequence[str]) -> Iterator[tuple[str, str, npt.NDArray[np.float64]]]:
    """(model, baseline, gain of the sample and the replicates), over the dates and seeds in which both have lists."""
    models = sorted(model for model in set.intersection(*map(set, means)) if " without " not in model)
    pairs = [(model, baseline) for baseline in BASELINES for model in models if model != baseline]
    for source in ablated:
        pairs += [(f"{ranker} without {source}", ranker) for ranker in RANKERS]
    for model, baseline in pairs:
        both = [one for one in means if model in one and baseline in one]
        if both:
            yield model, baseline, np.mean([one[model] / one[baseline] - 1 for one in both], axis=0)


def _report(scope: str, model: str, against: str, gain: npt.NDArray[np.float64], n: int) -> bool:
    """Print a figure; whether it reaches its bound."""
    least = BOUNDS[scope, against] if model == SERVED and (scope, against) in BOUNDS else None
    low, high = np.percentile(gain[1:], [2.5, 97.5])
    line = {
        "figure": f"ndcg{K}_gain_{scope}_{model.replace(' ', '_')}",
        "value": round(float(gain[0]), 4),
        "unit": "share",
        "against": against,
        "n": n,
        "interval": [round(float(low), 4), round(float(high), 4)],
    }
    if least is not None:
        line |= {"least": least, "reached": bool(gain[0] >= least)}
    print(json.dumps(line), flush=True)
    return least is None or bool(gain[0] >= least)


if __name__ == "__main__":
    main()
