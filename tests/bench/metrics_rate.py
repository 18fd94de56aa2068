"""metrics_rate: our metrics beside RecTools' on the same lists: the same values, and the time that both take.

./spark-submit.sh tests/bench/metrics_rate.py                     a million users, top 20, three targets each
./spark-submit.sh tests/bench/metrics_rate.py --users 50000
./spark-submit.sh tests/bench/metrics_rate.py --golden            write the lists and values that tests/test_metrics.py reads

RecTools gets an environment of its own below --data, made at the first call (pip installs it by name). Each side reads the same
lists from a Parquet file of its own form, xrec one row a list as its table candidates has them, RecTools one row an item, and the
same targets, and ends with the means of hit rate, precision, recall, F1, MRR, MAP and NDCG at 10 and 20, and the coverage; the
sides take turns after one turn of xrec that does not count (a JVM is slow at first), and the medians are compared. xrec's side
also sums serendipity, debiased recall, category coverage and the Gini index, which RecTools defines otherwise or has not, and
coverage's interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pipelines import make_environment
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.exposure import exposure_of
from xrec.evaluation.metrics import judge_lists, metric_names
from xrec.evaluation.slices import scope_slice
from xrec.session import build_session

RECTOOLS = ("rectools==0.19.0", "pyarrow==14.0.2")
KS = (10, 20)
TOP_K, NUM_ITEMS, NUM_CATEGORIES = 20, 50_000, 100
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "rectools_metrics.json"
COMMON = ("hr", "precision", "recall", "f1", "mrr", "map", "ndcg", "coverage")
TOLERANCE = 1e-9


def main() -> None:
    """Print a line a figure; exit with 1 where the values differ or RecTools is faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--data", metavar="PATH", help="where lists and environment are kept (default: a temporary folder)"
    )
    parser.add_argument("--golden", action="store_true", help="write the golden lists instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xrec-metrics-") as temporary:
        folder = Path(arguments.data or temporary)
        python = make_environment(folder / "rectools", RECTOOLS)
        if arguments.golden:
            write_golden(folder, python)
            return
        lists, targets = make_lists(arguments.users, NUM_ITEMS, seed=0)
        write_lists(folder, lists, targets, NUM_ITEMS)
        spark = build_session("xrec metrics_rate")
        spark.sparkContext.setLogLevel("ERROR")
        seconds: dict[str, list[float]] = {"xrec": [], "rectools": []}
        worst = 0.0
        run_xrec(spark, folder)
        for _ in range(arguments.repeats):
            ours, mine = run_xrec(spark, folder)
            theirs, values = run_rectools(folder, python)
            seconds["xrec"].append(ours)
            seconds["rectools"].append(theirs)
            worst = max(worst, *[abs(mine[name] - value) for name, value in values.items()])
        spark.stop()
    ours, theirs = (statistics.median(seconds[side]) for side in ("xrec", "rectools"))
    report("seconds_xrec", ours, "s", None, arguments)
    report("seconds_rectools", theirs, "s", None, arguments)
    report("largest_difference_of_a_mean", worst, "share", f"<= {TOLERANCE:g}", arguments)
    report("ratio_to_rectools", ours / theirs, "ratio", "< 1", arguments)
    sys.exit(0 if worst <= TOLERANCE and ours < theirs else 1)


def report(figure: str, value: float, unit: str, against: str | None, arguments: argparse.Namespace) -> None:
    """One figure as a JSON line."""
    line = {"figure": figure, "value": float(f"{value:.4g}"), "unit": unit, "against": against, "n": arguments.repeats}
    print(json.dumps({**line, "users": arguments.users}), flush=True)


def make_lists(num_users: int, num_items: int, seed: int, skew: float = 0.002) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lists of TOP_K distinct items, some shorter, and one to five targets a user, both skewed to the same popular items."""
    rng = np.random.default_rng(seed)
    # Steps of at least one, added up: distinct items, the popular ones first.
    steps = 1 + rng.geometric(10 * skew, (num_users, TOP_K))
    items = (np.cumsum(steps, axis=1) * rng.integers(1, 4, (num_users, 1))) % num_items
    shuffled = np.take_along_axis(items, rng.random(items.shape).argsort(axis=1), axis=1)
    lists = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_users, dtype=np.int32), TOP_K),
            "item_id": shuffled.ravel().astype(np.int32),
            "rank": np.tile(np.arange(1, TOP_K + 1, dtype=np.int32), num_users),
        }
    )
    length = rng.choice([TOP_K, TOP_K, TOP_K, 7], num_users).repeat(TOP_K)
    lists = lists[lists["rank"].to_numpy() <= length]
    num_targets = rng.integers(1, 6, num_users)
    users = np.repeat(np.arange(num_users, dtype=np.int32), num_targets)
    wanted = (rng.geometric(skew, len(users)) % num_items).astype(np.int32)
    targets = pd.DataFrame({"user_id": users, "item_id": wanted}).drop_duplicates(ignore_index=True)
    return lists, targets


def write_lists(folder: Path, lists: pd.DataFrame, targets: pd.DataFrame, num_items: int) -> None:
    """What the sides read."""
    folder.mkdir(parents=True, exist_ok=True)
    lists.to_parquet(folder / "lists.parquet", index=False, row_group_size=1_000_000)
    user_id, first = np.unique(lists["user_id"], return_index=True)
    bounds = pa.array(np.append(first, len(lists)), pa.int32())
    items = pa.ListArray.from_arrays(bounds, pa.array(lists["item_id"]))
    whole = pa.table({C.USER_IDX: pa.array(user_id), C.ITEMS: items})
    pq.write_table(whole, folder / "whole_lists.parquet", row_group_size=50_000)
    targets.to_parquet(folder / "targets.parquet", index=False, row_group_size=1_000_000)
    buyers = pd.DataFrame({"item_id": np.arange(num_items, dtype=np.int32), "num_buyers": np.int64(1)})
    buyers.to_parquet(folder / "buyers.parquet", index=False)
    (folder / "catalogue.json").write_text(json.dumps({"num_items": num_items}))


def run_xrec(spark: SparkSession, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds and means by xrec."""
    num_items = json.loads((folder / "catalogue.json").read_text())["num_items"]
    started = time.perf_counter()
    values = judge(spark, folder, num_items)
    return time.perf_counter() - started, values


def judge(spark: SparkSession, folder: Path, num_items: int) -> dict[str, float]:
    """The means of judge_lists and the figures of exposure_of, by name@k."""
    fold, source, scope = (
        F.lit(value).alias(name) for name, value in ((C.FOLD, "f"), (C.SOURCE, "m"), (C.SCOPE, "new"))
    )
    named = {"user_id": C.USER_IDX, "item_id": C.ITEM_IDX}
    lists = spark.read.parquet(str(folder / "whole_lists.parquet"))
    targets = spark.read.parquet(str(folder / "targets.parquet")).withColumnsRenamed(named)
    flags = [F.lit(name == C.IS_NEW).alias(name) for name in (C.IS_NEW, C.COLD_USER)]
    category = F.lit("c").alias(C.CATEGORY)
    buyers = spark.read.parquet(str(folder / "buyers.parquet")).withColumnsRenamed(named)
    candidates = lists.select(fold, source, scope, "*")
    judged = judge_lists(
        candidates,
        targets.select(fold, "*", category, *flags),
        buyers,
        fold="f",
        sources=["m"],
        slices=[scope_slice("new")],
        ks=KS,
    )
    means = [F.avg(F.get("values", F.lit(n))) for n, _ in enumerate(metric_names(KS))]
    named = [
        F.struct(F.lit(name).alias(C.METRIC), F.lit(k).alias(C.K), F.get("means", F.lit(n)).alias(C.VALUE))
        for n, (name, k) in enumerate(metric_names(KS))
    ]
    accuracy = judged.agg(F.array(*means).alias("means")).select(F.inline(F.array(*named)))
    exposure = exposure_of(candidates, items_of(spark, num_items), Evaluation(ks=KS), num_compared=1).select(
        *accuracy.columns
    )
    # One job, as evaluate has: the two parts read the lists beside each other.
    found = accuracy.unionByName(exposure).collect()
    return {f"{row[C.METRIC]}@{row[C.K]}": row[C.VALUE] for row in found if row[C.METRIC] in COMMON}


def items_of(spark: SparkSession, num_items: int) -> DataFrame:
    """Rows of ``items``, all recommendable."""
    return spark.range(num_items).select(
        F.col("id").cast("int").alias(C.ITEM_IDX),
        (F.col("id") % NUM_CATEGORIES).cast("string").alias(C.CATEGORY),
        F.lit(True).alias(C.RECOMMENDABLE),
    )


def run_rectools(folder: Path, python: Path) -> tuple[float, dict[str, float]]:
    """Seconds and means by RecTools."""
    script = Path(__file__).with_name("metrics_rectools.py")
    done = subprocess.run([python, script, folder, *map(str, KS)], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("RecTools failed: its message is above")
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["seconds"]), found["values"]


def write_golden(folder: Path, python: Path) -> None:
    """Lists of 60 users with RecTools' values, which the tests hold ours against."""
    lists, targets = make_lists(60, 400, seed=1, skew=0.03)
    write_lists(folder, lists, targets, 400)
    _, values = run_rectools(folder, python)
    rows = {
        "made_with": f"tests/bench/metrics_rate.py --golden, {RECTOOLS[0]}",
        "num_items": 400,
        "lists": lists.to_numpy().tolist(),
        "targets": targets.to_numpy().tolist(),
        "values": values,
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
