"""topk_kernel: the top-K kernel against MLlib's recommendForAllUsers, a bare matrix product and brute force.

    ./spark-submit.sh tests/bench/topk_kernel.py
    ./spark-submit.sh tests/bench/topk_kernel.py --data warehouse/complete_journey     real ALS factors beside the drawn ones
    ./spark-submit.sh tests/bench/topk_kernel.py --quick

40,000 users x 20,000 items, rank 64, K = 20; 100 categories of Zipf sizes, 1 to 5 of them excluded for each user, 30 seen items in
the mean, up to 2,000. Norms of the items are equal, or log-normal (sigma 1), or those of the factors in the table vectors.

- speedup_to_mllib_k, speedup_to_mllib_k200: seconds of recommendForAllUsers asked for K and for K + 200 (to filter afterwards) over
  those of our Spark job, which masks first; Parquet to Parquet, the same factors (log-normal, or ALS with --data), turn by turn
- ratio_to_matmul_...: pairs/s of the kernel over those of a float32 product in tiles that fit the cache, one thread both
- growth_to_matmul_4x_users, growth_to_matmul_4x_items: growth of the kernel's seconds over that of the product's (log-normal)
- equal_to_brute_force: random worlds, mass ties, fewer than K allowed

The exit code is 1 where a bound is missed. Each side's runs come in turns and the medians are compared: other load of the machine
hits both, but may still move a ratio by a tenth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from xrec.config import Ranking
from xrec.ranking.topk import ItemBlock, Masks, top_k, top_k_block
from xrec.session import build_session
from xrec.storage.shared import SharedRows

K, DIM, NUM_CATEGORIES, USERS_A_BLOCK = 20, 64, 100, Ranking().tile_users
LEAST = {
    "speedup_to_mllib_k": 8.0,
    "speedup_to_mllib_k200": 25.0,
    "ratio_to_matmul_equal_norms": 0.7,
    "ratio_to_matmul_als": 1.5,
}
MOST = {"growth_to_matmul_4x_users": 1.1, "growth_to_matmul_4x_items": 1.1}
"""The product's growth, and a tenth for the noise."""
Array = Any


@dataclass
class World:
    """Factors, and what each user must not get."""

    users_UD: Array
    items_ID: Array
    category_I: Array
    excluded: list[Array]
    seen: list[Array]

    @classmethod
    def draw(cls, users_UD: Array, items_ID: Array, seed: int) -> World:
        rng = np.random.default_rng(seed)
        shares = 1 / np.arange(1, NUM_CATEGORIES + 1)
        num_users, num_items = len(users_UD), len(items_ID)
        lengths = np.minimum(rng.lognormal(2.9, 1, num_users).astype(int), min(2000, num_items // 2))
        return cls(
            users_UD.astype(np.float32),
            items_ID.astype(np.float32),
            rng.choice(NUM_CATEGORIES, num_items, p=shares / shares.sum()).astype(np.int32),
            [rng.choice(NUM_CATEGORIES, n, replace=False).astype(np.int32) for n in rng.integers(1, 6, num_users)],
            [np.unique(rng.integers(0, num_items, n)).astype(np.int32) for n in lengths],
        )

    @property
    def num_pairs(self) -> int:
        return len(self.users_UD) * len(self.items_ID)

    def block(self) -> ItemBlock:
        return ItemBlock.build(np.arange(len(self.items_ID), dtype=np.int32), self.category_I, self.items_ID)

    def masks(self, block: ItemBlock, users: slice) -> Masks:
        excluded, seen = self.excluded[users], self.seen[users]
        excluded_UC = np.zeros((len(excluded), NUM_CATEGORIES), dtype=bool)
        for row, codes in enumerate(excluded):
            excluded_UC[row, codes] = True
        return Masks(block, excluded_UC, np.repeat(np.arange(len(seen)), list(map(len, seen))), np.concatenate(seen))

    def write(self, folder: Path) -> None:
        """The users, in 8 files, and the items, as the kernel's job and as MLlib's model want them."""
        for name in ("users", "items"):
            (folder / name).mkdir(parents=True)
        for number, rows in enumerate(np.array_split(np.arange(len(self.users_UD)), 8)):
            part = slice(rows[0], rows[-1] + 1)
            columns = {
                "scope": pa.array(["touched"] * len(rows)),
                "user_idx": pa.array(rows.astype(np.int32)),
                "vector": vectors(self.users_UD[part]),
                "excluded": pa.array(self.excluded[part], pa.list_(pa.int32())),
                "seen": pa.array(self.seen[part], pa.list_(pa.int32())),
            }
            pq.write_table(pa.table(columns), folder / "users" / f"{number}.parquet")
        idx = np.arange(len(self.items_ID), dtype=np.int32)
        columns = {"item_idx": idx, "category_code": self.category_I, "vector": vectors(self.items_ID)}
        pq.write_table(pa.table(columns), folder / "items" / "0.parquet")


def vectors(values_ND: Array) -> pa.Array:
    """A matrix as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(values_ND.reshape(-1), values_ND.shape[1]).cast(pa.list_(pa.float32()))


def drawn(num_users: int, num_items: int, sigma: float, seed: int = 0) -> World:
    """Directions at random; norms of the items log-normal (sigma 0: all equal)."""
    rng = np.random.default_rng(seed)
    users_UD, items_ID = rng.normal(size=(num_users, DIM)), rng.normal(size=(num_items, DIM))
    items_ID *= rng.lognormal(0, sigma, (num_items, 1)) / np.linalg.norm(items_ID, axis=1, keepdims=True)
    return World.draw(users_UD, items_ID, seed)


def real(root: Path, num_users: int, num_items: int) -> World:
    """The factors of ALS in a storage folder's newest fold, its users and items repeated up to the numbers asked for."""
    table = deltalake.DeltaTable(str(root / "vectors"))
    rows = pyarrow.dataset.dataset(table.file_uris(), partitioning="hive").to_table().to_pandas()
    rows = rows[rows["model"] == "als"]
    rows = rows[rows["fold"] == max(rows["fold"], key=lambda name: name[-10:])]
    rng, factors = np.random.default_rng(0), {}
    for kind, number in (("user", num_users), ("item", num_items)):
        found = np.stack(rows.loc[rows["kind"] == kind, "vector"].to_list())
        factors[kind] = found[rng.permutation(np.arange(number) % len(found))]
    return World.draw(factors["user"], factors["item"], 0)


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


Blocks = list[tuple[Array, Masks]]


def blocks_of(world: World, block: ItemBlock) -> Blocks:
    """The users in blocks with their masks, as a task gets them from Arrow."""
    starts = range(0, len(world.users_UD), USERS_A_BLOCK)
    parts = [slice(start, start + USERS_A_BLOCK) for start in starts]
    return [(world.users_UD[part], world.masks(block, part)) for part in parts]


def run_kernel(blocks: Blocks, items: ItemBlock) -> None:
    """The kernel alone, one thread."""
    for users_UD, masks in blocks:
        top_k_block(users_UD, items, masks, k=K, tile_items=Ranking().tile_items)


def run_matmul(world: World, tile: int = 512) -> None:
    """The bare product in tiles of 2 MiB."""
    values = np.empty((USERS_A_BLOCK, tile), np.float32)
    for start in range(0, len(world.users_UD), USERS_A_BLOCK):
        users = world.users_UD[start : start + USERS_A_BLOCK]
        for first in range(0, len(world.items_ID), tile):
            items = world.items_ID[first : first + tile]
            np.matmul(users, items.T, out=values[: len(users), : len(items)] if len(items) == tile else None)


def pair_of_runs(world: World) -> tuple[Callable[[], None], Callable[[], None]]:
    """The product and the kernel on a world, both warm."""
    items = world.block()
    blocks = blocks_of(world, items)
    run_kernel(blocks[:2], items)
    return lambda: run_matmul(world), lambda: run_kernel(blocks, items)


def ratio_to_matmul(world: World, repeats: int) -> float:
    """The median of turns of product and kernel."""
    product, kernel = pair_of_runs(world)
    return statistics.median(seconds_of(product) / seconds_of(kernel) for _ in range(repeats))


def growth_to_matmul(small: World, large: World, repeats: int) -> float:
    """The kernel's growth from a world to one of four times the pairs over the product's; the median of turns of all four."""
    (product, kernel), (large_product, large_kernel) = pair_of_runs(small), pair_of_runs(large)
    turns = []
    for _ in range(repeats):
        of_product, of_kernel = seconds_of(product), seconds_of(kernel)
        turns.append(seconds_of(large_kernel) / of_kernel / (seconds_of(large_product) / of_product))
    return statistics.median(turns)


def our_job(spark: SparkSession, folder: Path) -> None:
    """Parquet to Parquet."""
    users = spark.read.parquet(str(folder / "users"))
    top_k(users, SharedRows(str(folder / "items")), Ranking(), k=K).write.mode("overwrite").parquet(
        str(folder / "ours")
    )


def empty_job(spark: SparkSession, folder: Path) -> None:
    """What Spark itself takes to send the users through Python and to write."""
    users = spark.read.parquet(str(folder / "users"))
    users.mapInArrow(lambda batches: batches, users.schema).select("user_idx").write.mode("overwrite").parquet(
        str(folder / "empty")
    )


def mllib_job(spark: SparkSession, folder: Path, k: int) -> None:
    """MLlib's own top K of the same factors, nothing masked."""

    def factors(name: str, column: str) -> DataFrame:
        return spark.read.parquet(str(folder / name)).select(
            F.col(column).alias("id"), F.col("vector").alias("features")
        )

    users, items = factors("users", "user_idx"), factors("items", "item_idx")
    dim = items.select(F.max(F.size("features"))).first()[0]
    constructor = spark._jvm.org.apache.spark.ml.recommendation.ALSModel
    model = constructor("bench", dim, users._jdf, items._jdf).setUserCol("user").setItemCol("item")
    ALSModel(model).recommendForAllUsers(k).write.mode("overwrite").parquet(str(folder / "mllib"))


def equal_to_brute_force() -> bool:
    """Random worlds: ties by the hundred, users with fewer than K allowed items, one item, K beyond the catalogue."""
    for seed, (num_users, num_items, k, ties) in enumerate(
        [(70, 900, 20, True), (70, 900, 20, False), (9, 12, 20, True), (5, 1, 3, False)]
    ):
        rng = np.random.default_rng(seed)
        users_UD, items_ID = rng.normal(size=(num_users, 8)), rng.normal(size=(num_items, 8))
        world = World.draw(np.sign(users_UD) if ties else users_UD, np.round(items_ID) if ties else items_ID, seed)
        block = world.block()
        top = top_k_block(world.users_UD, block, world.masks(block, slice(None)), k=k, tile_items=100)
        found = list(zip(top.row.tolist(), top.item_idx.tolist(), top.score.tolist(), strict=True))
        if found != naive(world, k):
            return False
    return True


def naive(world: World, k: int) -> list[tuple[int, int, float]]:
    """Every allowed pair, scored by the definition and sorted; of each user the best k."""
    lists = []
    for user, vector_D in enumerate(world.users_UD):
        products_ID = world.items_ID.astype(np.float64) * vector_D
        while products_ID.shape[1] > 1:
            half = (products_ID.shape[1] + 1) // 2
            upper = products_ID[:, half:]
            products_ID = products_ID[:, :half].copy()
            products_ID[:, : upper.shape[1]] += upper
        score_I = (products_ID[:, 0] + 0.0).astype(np.float32)
        allowed = ~np.isin(world.category_I, world.excluded[user])
        allowed[world.seen[user]] = False
        best = sorted((-float(score_I[item]), int(item)) for item in np.flatnonzero(allowed))[:k]
        lists += [(user, item, -score) for score, item in best]
    return lists


def report(figure: str, value: float | bool, unit: str, against: str | None, n: int) -> bool:
    """Print a figure; whether it reaches its bound."""
    line = {"figure": figure, "value": float(f"{value:.4g}"), "unit": unit, "against": against, "n": n}
    if figure in LEAST:
        line |= {"least": LEAST[figure], "reached": bool(value >= LEAST[figure])}
    if figure in MOST:
        line |= {"most": MOST[figure], "reached": bool(value <= MOST[figure])}
    print(json.dumps(line), flush=True)
    return bool(line.get("reached", True))


def one_thread(worlds: dict[str, World], users: int, items: int, n: int) -> list[bool]:
    """Print the kernel's own figures; whether each reaches its bound."""
    reached = [equal_to_brute_force()]
    line = {"figure": "equal_to_brute_force", "value": reached[0], "unit": "bool", "against": "brute force", "n": 4}
    print(json.dumps(line), flush=True)
    for name, world in worlds.items():
        ratio = ratio_to_matmul(world, n)
        reached.append(report(f"ratio_to_matmul_{name}", ratio, "ratio", "bare float32 product, one thread", n))
    small = drawn(users // 4, items // 4, 1.0)
    for name, world in (("users", drawn(users, items // 4, 1.0)), ("items", drawn(users // 4, items, 1.0))):
        growth = growth_to_matmul(small, world, n)
        reached.append(report(f"growth_to_matmul_4x_{name}", growth, "ratio", "growth of the product, one thread", n))
    return reached


def main() -> None:
    """Print a line a figure; exit with 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="PATH", help="a storage folder of xrec whose table vectors has ALS")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the users, to see that it runs")
    arguments = parser.parse_args()
    n, users, items = arguments.repeats, 2_000 if arguments.quick else 40_000, 20_000
    worlds = {"equal_norms": drawn(users, items, 0.0), "log_normal": drawn(users, items, 1.0)}
    if arguments.data:
        worlds["als"] = real(Path(arguments.data), users, items)
    with threadpool_limits(1):
        reached = one_thread(worlds, users, items, n)
    with tempfile.TemporaryDirectory(prefix="xrec-topk-") as temporary:
        folder, name = Path(temporary), "als" if arguments.data else "log_normal"
        worlds[name].write(folder)
        spark = build_session("xrec topk_kernel")
        spark.sparkContext.setLogLevel("ERROR")
        our_job(spark, folder)  # a JVM and a Python worker are slow at first
        taken: dict[str, list[float]] = {"empty": [], "ours": [], "k": [], "k200": []}
        for _ in range(n):
            taken["empty"].append(seconds_of(lambda: empty_job(spark, folder)))
            taken["ours"].append(seconds_of(lambda: our_job(spark, folder)))
            taken["k"].append(seconds_of(lambda: mllib_job(spark, folder, K)))
            taken["k200"].append(seconds_of(lambda: mllib_job(spark, folder, K + 200)))
        spark.stop()
    middle = {job: statistics.median(values) for job, values in taken.items()}
    for job, seconds in middle.items():
        report(f"seconds_{job}", seconds, "s", None, n)
    reached += [
        report(f"speedup_to_mllib_{job}", middle[job] / middle["ours"], "ratio", f"MLlib, {name} factors", n)
        for job in ("k", "k200")
    ]
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
