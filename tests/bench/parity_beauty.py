"""parity_beauty: the baselines on Amazon Beauty, leave-one-out, against the figures that others have on the same file.

    ./spark-submit.sh tests/bench/parity_beauty.py
    ./spark-submit.sh tests/bench/parity_beauty.py --data FOLDER --models popularity ease

Each user's last item is the target, all others are history; lists are over the full catalogue less what the user had, and no
category is excluded (scope new). The stages of the pipeline run with conf/amazon_beauty.yaml and the settings of
parity_beauty.yaml, which were chosen on the fold of the last item but one.

Against: hit rate and NDCG at 10 of popularity by the S3-Rec repository, and, measured once on this file and untuned, of
item-kNN, EASE, a decayed item-to-item transition model and implicit ALS of rank 128. Bounds: 95 % of these figures; of ALS, a
hit rate of .055. The exit code is 1 where one is missed.

S3-Rec's popularity counts the targets as well, which gives popularity away. So their bound is that of popularity counted like
theirs (popularity_with_targets, by pandas from the same tables); that of the history alone has none. Same-day reviews of this
file are sorted by product code, which helps transitions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from pipelines import ROOT, read_table, run_pipeline

CONFIGS = (ROOT / "conf" / "amazon_beauty.yaml", Path(__file__).with_name("parity_beauty.yaml"))
DATA = "../shared/data/amazon_beauty"
K = 10
AGAINST = {
    "popularity": {"hr": 0.0152, "ndcg": 0.0068},
    "popularity_with_targets": {"hr": 0.0152, "ndcg": 0.0068},
    "item_knn": {"hr": 0.0645, "ndcg": 0.0377},
    "ease": {"hr": 0.0764, "ndcg": 0.0418},
    "transitions": {"hr": 0.0870, "ndcg": 0.0552},
    "als": {"hr": 0.0588, "ndcg": 0.0309},
}
LEAST = {(model, name): 0.95 * value for model, figures in AGAINST.items() for name, value in figures.items()}
LEAST["als", "hr"] = 0.055
NO_BOUND = {("popularity", "hr"), ("popularity", "ndcg"), ("als", "ndcg")}
LEAKS = "popularity_with_targets"


def main() -> None:
    """Run the stages, print the figures, exit with 1 where one is below its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="holds interactions.csv.gz and items.csv.gz")
    parser.add_argument("--models", nargs="+", default=list(AGAINST), choices=list(AGAINST))
    parser.add_argument("--tables", metavar="PATH", help="where the tables are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    files = {
        "log.file.path": Path(arguments.data, "interactions.csv.gz").resolve(),
        "catalogue.file.path": Path(arguments.data, "items.csv.gz").resolve(),
    }
    for file in files.values():
        if not file.exists():
            sys.exit(
                f"error: {file} is not there; --data names the folder of Amazon Beauty (interactions.csv.gz, items.csv.gz)"
            )
    folder = Path(arguments.tables or tempfile.mkdtemp(prefix="xrec-parity-"))
    settings = {
        **files,
        "storage.root": folder,
        "folds.num_select": 0,
        "evaluation.scopes": "[new]",
        "ranking.candidates_per_source": 20,
        "ranking.sources": f"[{','.join(sorted({'popularity', *arguments.models} - {LEAKS}))}]",
    }
    run_pipeline(settings, "--until", "candidates", configs=CONFIGS)
    run_pipeline(settings, "--only", "evaluate", configs=CONFIGS)
    metrics = pd.concat([_metrics(folder), _judge_popularity_with_targets(folder)])
    missed = [not _report(model, name, metrics) for model in arguments.models for name in ("hr", "ndcg")]
    if not arguments.tables:
        shutil.rmtree(folder)
    sys.exit(int(any(missed)))


def _metrics(folder: Path) -> pd.DataFrame:
    """The newest run's metrics of the lists that exclude nothing but what the user had."""
    metrics = read_table(folder, "metrics")
    return metrics[(metrics["run_id"] == metrics["run_id"].max()) & (metrics["slice"] == "new") & (metrics["k"] == K)]


def _judge_popularity_with_targets(folder: Path) -> pd.DataFrame:
    """The figures of the items with the most buyers when the targets' buyers count too."""
    had, targets = read_table(folder, "interactions"), read_table(folder, "targets").query("is_new and not cold_user")
    buyers = pd.concat([had["item_idx"], targets["item_idx"]]).value_counts()
    best_first = [item for _, item in sorted((-count, item) for item, count in buyers.items())]
    had_by_user = had.groupby("user_idx")["item_idx"].agg(set)
    gains = []
    for user, item in zip(targets["user_idx"], targets["item_idx"], strict=True):
        unseen = (other for other in best_first if other not in had_by_user[user])
        place = next((place for place, other in enumerate(itertools.islice(unseen, K)) if other == item), None)
        gains.append(0.0 if place is None else 1 / np.log2(place + 2))
    values = {"hr": np.sign(gains), "ndcg": np.array(gains)}
    half = {name: 1.96 * value.std() / np.sqrt(len(value)) for name, value in values.items()}
    return pd.DataFrame(
        {
            "model": LEAKS,
            "metric": name,
            "value": mean,
            "low": mean - half[name],
            "high": mean + half[name],
            "num_users": len(gains),
        }
        for name, mean in ((name, value.mean()) for name, value in values.items())
    )


def _report(model: str, name: str, metrics: pd.DataFrame) -> bool:
    """Print a figure; whether it reaches its bound."""
    found = metrics[(metrics["model"] == model) & (metrics["metric"] == name)].iloc[0]
    least = None if (model, name) in NO_BOUND else LEAST[model, name]
    line = {
        "figure": f"{name}{K}_{model}",
        "value": round(found["value"], 5),
        "unit": "share",
        "against": AGAINST[model][name],
        "n": int(found["num_users"]),
        "interval": [round(found["low"], 5), round(found["high"], 5)],
        "least": round(least, 5) if least is not None else None,
        "reached": bool(least is None or found["value"] >= least),
    }
    print(json.dumps(line), flush=True)
    return bool(line["reached"])


if __name__ == "__main__":
    main()
