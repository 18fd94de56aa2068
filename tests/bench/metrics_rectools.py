"""The same metrics by RecTools, for metrics_rate.py: runs in an environment of its own, which has no xrec.

python metrics_rectools.py FOLDER K [K ...]

FOLDER holds lists.parquet (user_id, item_id, rank) and targets.parquet (user_id, item_id). Prints one JSON object with the
seconds from reading the files to the means, and the means.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pandas as pd
from rectools.metrics import MAP, MRR, NDCG, CatalogCoverage, F1Beta, HitRate, Precision, Recall, calc_metrics


def main() -> None:
    """Read, judge, print."""
    folder, ks = Path(sys.argv[1]), [int(k) for k in sys.argv[2:]]
    num_items = json.loads((folder / "catalogue.json").read_text())["num_items"]
    started = time.perf_counter()
    lists, targets = (pd.read_parquet(folder / name) for name in ("lists.parquet", "targets.parquet"))
    metrics = {}
    for k in ks:
        metrics |= {
            f"hr@{k}": HitRate(k=k),
            f"precision@{k}": Precision(k=k),
            f"recall@{k}": Recall(k=k),
            f"f1@{k}": F1Beta(k=k, beta=1.0),
            f"mrr@{k}": MRR(k=k),
            f"map@{k}": MAP(k=k),
            # Of the ideal list that is as long as the user's targets, as in xrec.
            f"ndcg@{k}": NDCG(k=k, divide_by_achievable=True),
            f"coverage@{k}": CatalogCoverage(k=k, normalize=True),
        }
    values = calc_metrics(metrics, reco=lists, interactions=targets, catalog=range(num_items))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "values": {name: float(value) for name, value in values.items()}}))


if __name__ == "__main__":
    main()
