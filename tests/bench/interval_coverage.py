"""interval_coverage: how often the 95 % intervals hold the truth, over 2,000 simulated worlds judged as one DataFrame.

./spark-submit.sh tests/bench/interval_coverage.py

In a world 500 users have a figure by popularity and by a model, zero for most of them and else a share, as NDCG is; both are
related, and their true means are known. The intervals are those of the product: xrec.evaluation.intervals.summarise.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pandas as pd
from scipy import stats

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.intervals import BASELINE, summarise
from xrec.session import build_session

BOUNDS = (0.94, 0.96)
WORLDS_A_FOLD = 100
HIT_SHARES = {BASELINE: 0.25, "model": 0.28}
SAME_SHARE = 0.6
"""Share of the users for whom the model finds what popularity finds."""
BETA = (2.0, 3.0)
MEAN_OF_A_HIT = BETA[0] / sum(BETA)
TRUTH = {BASELINE: HIT_SHARES[BASELINE] * MEAN_OF_A_HIT}
TRUTH["model"] = SAME_SHARE * TRUTH[BASELINE] + (1 - SAME_SHARE) * HIT_SHARES["model"] * MEAN_OF_A_HIT


def main() -> None:
    """Print a line a figure, and exit with 1 where one is outside its bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000, help="a multiple of 100 (default 2000)")
    parser.add_argument("--users", type=int, default=500, help="users of a world (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spark = build_session("xrec interval_coverage")
    spark.sparkContext.setLogLevel("ERROR")
    rng = np.random.default_rng(arguments.seed)
    folds = [simulate(f"fold-{n}", arguments.users, n, rng) for n in range(arguments.worlds // WORLDS_A_FOLD)]
    schema = f"{C.FOLD} string, {C.MODEL} string, {C.SLICE} string, {C.USER_IDX} int, values array<double>"
    judged = spark.createDataFrame(pd.concat(folds), schema)
    names = [("world", number) for number in range(WORLDS_A_FOLD)]
    found = summarise(judged, names, Evaluation(), arguments.seed, num_compared=1).toPandas()
    assert len(found) == 2 * arguments.worlds
    model, popularity = found[found[C.MODEL] == "model"], found[found[C.MODEL] == BASELINE]
    difference = TRUTH["model"] - TRUTH[BASELINE]
    covered = {
        "coverage_95": model[C.DIFFERENCE_LOW].le(difference) & model[C.DIFFERENCE_HIGH].ge(difference),
        "coverage_95_mean": model[C.LOW].le(TRUTH["model"]) & model[C.HIGH].ge(TRUTH["model"]),
        "coverage_95_mean_popularity": popularity[C.LOW].le(TRUTH[BASELINE]) & popularity[C.HIGH].ge(TRUTH[BASELINE]),
    }
    is_within = True
    for figure, hits in covered.items():
        share, interval = float(hits.mean()), stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95)
        is_within &= BOUNDS[0] <= share <= BOUNDS[1]
        line = {"figure": figure, "value": round(share, 4), "unit": "share", "against": list(BOUNDS), "n": len(hits)}
        print(json.dumps({**line, "interval": [round(interval.low, 4), round(interval.high, 4)]}), flush=True)
    spark.stop()
    sys.exit(0 if is_within else 1)


def simulate(fold: str, num_users: int, number: int, rng: np.random.Generator) -> pd.DataFrame:
    """A hundred worlds of other users: one row a (model, user), with a value a world."""
    shape = (num_users, WORLDS_A_FOLD)
    values = {model: (rng.random(shape) < share) * rng.beta(*BETA, shape) for model, share in HIT_SHARES.items()}
    values["model"] = np.where(rng.random(shape) < SAME_SHARE, values[BASELINE], values["model"])
    users = np.arange(number * num_users, (number + 1) * num_users, dtype=np.int32)
    return pd.concat(
        pd.DataFrame({C.FOLD: fold, C.MODEL: model, C.SLICE: "touched", C.USER_IDX: users, "values": list(matrix)})
        for model, matrix in values.items()
    )


if __name__ == "__main__":
    main()
