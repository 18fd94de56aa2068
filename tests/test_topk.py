"""The top-K kernel against brute force, bit for bit, whatever the tiles, batches and partitions."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from threadpoolctl import threadpool_limits

from xrec.config import Ranking
from xrec.lists import ranked_rows
from xrec.ranking import search, topk
from xrec.ranking.topk import ItemBlock, Masks, TopItems, VectorError, score_pairs, top_k, top_k_block
from xrec.storage.shared import SharedRows

Rows = list[tuple[int, int, float, int]]


@dataclass
class RandomWorld:
    """37 users x 211 items by default: (user, item) swapped would not go unnoticed."""

    seed: int
    num_users: int = 37
    num_items: int = 211
    dim: int = 7
    num_categories: int = 9
    ties: bool = False
    excluded_share: float = 0.3
    num_seen: int = 20

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        scale = rng.lognormal(0, 1, (self.num_items, 1))
        self.users = rng.normal(size=(self.num_users, self.dim)).astype(np.float32)
        self.items = (rng.normal(size=(self.num_items, self.dim)) * scale).astype(np.float32)
        if self.ties:  # three values only, so that most scores occur many times
            self.users, self.items = (
                np.sign(np.round(self.users)),
                np.sign(np.round(self.items / scale)).astype(np.float32),
            )
        self.item_idx = rng.permutation(self.num_items * 3)[: self.num_items].astype(np.int32)
        self.category = (rng.zipf(1.5, self.num_items) % self.num_categories).astype(np.int32)
        self.excluded = [
            np.flatnonzero(rng.random(self.num_categories) < self.excluded_share) for _ in range(self.num_users)
        ]
        # Seen items without a vector, or of an index beyond all, are harmless.
        self.seen = [rng.choice(self.num_items * 4, self.num_seen, replace=False) for _ in range(self.num_users)]

    def block(self) -> ItemBlock:
        return ItemBlock.build(self.item_idx, self.category, self.items)

    def shared(self, folder: Path) -> SharedRows:
        """The items in two files."""
        lists = pa.FixedSizeListArray.from_arrays(self.items.reshape(-1), self.dim).cast(pa.list_(pa.float32()))
        rows = pa.table({"item_idx": self.item_idx, "category_code": self.category, "vector": lists})
        folder.mkdir(parents=True)
        pq.write_table(rows.slice(0, 100), folder / "part-0.parquet")
        pq.write_table(rows.slice(100), folder / "part-1.parquet")
        return SharedRows(str(folder))

    def masks(self, users: slice = slice(None)) -> Masks:
        excluded, seen = self.excluded[users], self.seen[users]
        excluded_UC = np.zeros((len(excluded), self.num_categories), dtype=bool)
        for row, codes in enumerate(excluded):
            excluded_UC[row, codes] = True
        rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
        return Masks(self.block(), excluded_UC, rows, np.concatenate(seen))

    def top(self, k: int, tile_items: int) -> Rows:
        return rows_of(top_k_block(self.users, self.block(), self.masks(), k=k, tile_items=tile_items))

    def top_by_blocks(self, k: int, tile_items: int, tile_users: int, threads: int) -> Rows:
        """The same with the users cut into blocks, which threads take as they come."""
        block, starts = self.block(), range(0, self.num_users, tile_users)

        def work(start: int) -> Rows:
            part = slice(start, start + tile_users)
            top = top_k_block(self.users[part], block, self.masks(part), k=k, tile_items=tile_items)
            return [(start + row, *rest) for row, *rest in rows_of(top)]

        with ThreadPoolExecutor(threads) as pool:
            return [row for rows in pool.map(work, starts) for row in rows]

    def brute_force(self, k: int) -> Rows:
        """Every allowed pair's exact score, sorted."""
        found: Rows = []
        for user in range(self.num_users):
            allowed = [
                position
                for position, item in enumerate(self.item_idx)
                if self.category[position] not in self.excluded[user] and item not in self.seen[user]
            ]
            scored = [(-naive_score(self.users[user], self.items[n]), int(self.item_idx[n])) for n in allowed]
            found += [(user, item, -score, rank) for rank, (score, item) in enumerate(sorted(scored)[:k], start=1)]
        return found

    def frame(self, spark: SparkSession) -> DataFrame:
        rows = [
            ("touched", user, self.users[user].tolist(), self.excluded[user].tolist(), self.seen[user].tolist())
            for user in range(self.num_users)
        ]
        ddl = "scope string, user_idx int, vector array<float>, excluded array<int>, seen array<int>"
        return spark.createDataFrame(rows, ddl)


def naive_score(user: np.ndarray, item: np.ndarray) -> float:
    """The definition: float64 products, added by halves, rounded to float32."""
    terms = [float(a) * float(b) for a, b in zip(user, item, strict=True)]
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        terms = [terms[n] + terms[n + half] if n + half < len(terms) else terms[n] for n in range(half)]
    return float(np.float32(terms[0] + 0.0))


def rows_of(top: TopItems) -> Rows:
    length = Counter()
    rows = []
    for row, item, score in zip(top.row, top.item_idx, top.score, strict=True):
        length[row] += 1
        rows.append((int(row), int(item), float(score), length[row]))
    return rows


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force_whatever_the_tiles(seed: int, ties: bool) -> None:
    world = RandomWorld(seed, ties=ties)
    expected = world.brute_force(k=10)
    for tile_items in (1, 10, 11, 64, 211, 10_000):
        assert world.top(k=10, tile_items=tile_items) == expected


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 100])
def test_equals_brute_force_whatever_the_dimension(dim: int) -> None:
    world = RandomWorld(dim, dim=dim, num_users=13, ties=dim == 1)
    assert world.top(k=20, tile_items=50) == world.brute_force(k=20)


def test_fewer_than_k_allowed_items_give_shorter_lists_without_gaps() -> None:
    world = RandomWorld(1, excluded_share=0.8, num_seen=300)
    expected = world.brute_force(k=50)
    lengths = np.bincount([row[0] for row in expected], minlength=world.num_users)
    assert 0 in lengths  # all excluded
    assert ((lengths > 0) & (lengths < 50)).any()
    for tile_items in (7, 1000):
        assert world.top(k=50, tile_items=tile_items) == expected


def test_scores_that_float32_cannot_tell_apart_are_ordered_by_the_exact_score() -> None:
    """Large terms cancel: the float32 product is wrong by far more than the differences that decide."""
    rng = np.random.default_rng(0)
    world = RandomWorld(0, dim=8, num_items=500)
    world.users[:, 0], world.users[:, -1] = 3000.7, 3000.7
    world.items[:] = rng.normal(size=world.items.shape) * 1e-2
    world.items[:, 0] = rng.uniform(1000, 1001, len(world.items))
    world.items[:, -1] = -world.items[:, 0]
    product = world.users @ world.items.T
    exact = np.array([[naive_score(user, item) for item in world.items] for user in world.users[:3]])
    assert np.abs(product[:3] - exact).max() > 1e-2  # the world is as hard as it claims
    assert world.top(k=5, tile_items=100) == world.brute_force(k=5)


def all_items_alike(world: RandomWorld) -> None:
    """One score a user: more ties than are kept beside a heap, and only the item index decides."""
    world.items[:] = world.items[0]


def few_kinds_of_items(world: RandomWorld) -> None:
    """Ties by the hundred, at several scores; and items whose last bit is another: no tie, though the tile takes it for one."""
    world.items[:] = world.items[np.arange(world.num_items) % 5]
    world.items[::7, 0] = np.nextafter(world.items[::7, 0], np.float32(np.inf))


def many_zeros(world: RandomWorld) -> None:
    """Users and items of norm zero, with both signs of zero."""
    world.users[::2], world.items[::3], world.items[1::3] = 0.0, 0.0, -0.0


def equal_norms(world: RandomWorld) -> None:
    """No norm says that anything is left out."""
    world.items /= np.linalg.norm(world.items, axis=1, keepdims=True)


def users_along_the_items(world: RandomWorld) -> None:
    """The bound by norms is tight: the best score is |u| |v|."""
    world.items[:] = world.items[0] * np.float32(0.999) ** np.arange(world.num_items, dtype=np.float32)[:, None]
    world.users[:] = world.items[0]


def scaled(power_of_users: int, power_of_items: int) -> Callable[[RandomWorld], None]:
    """Norms at the ends of what a float32 holds."""

    def scale(world: RandomWorld) -> None:
        world.users *= np.float32(2.0**power_of_users)
        world.items *= np.float32(2.0**power_of_items)

    return scale


def norms_of_all_sizes(world: RandomWorld) -> None:
    """From 2^-100 to 2^50: for the error of the first items, all the rest is one tie."""
    powers = np.random.default_rng(world.seed).integers(-100, 50, world.num_items)
    world.items *= (2.0**powers).astype(np.float32)[:, None]


HARD = {
    "all_items_alike": all_items_alike,
    "few_kinds_of_items": few_kinds_of_items,
    "many_zeros": many_zeros,
    "equal_norms": equal_norms,
    "users_along_the_items": users_along_the_items,
    "products_near_the_largest_float": scaled(57, 57),
    "products_too_small_for_a_float": scaled(-80, -66),
    "scores_all_rounded_to_zero": scaled(-90, -90),
    "small_users_long_items": scaled(-120, 110),
    "norms_of_all_sizes": norms_of_all_sizes,
}


@pytest.mark.parametrize("name", HARD)
def test_equals_brute_force_on_hard_worlds(name: str) -> None:
    world = RandomWorld(5, num_users=6, num_items=900)
    HARD[name](world)
    for k in (1, 20, 300):
        expected = world.brute_force(k=k)
        for tile_items in (1, 129, 512):
            assert world.top(k=k, tile_items=tile_items) == expected


def test_a_guess_from_the_first_users_that_does_not_fit_the_others() -> None:
    """The thresholds of 32 users are a guess for the rest of a block: here it is too high, or there is none."""
    world = RandomWorld(11, num_users=70, num_items=150, num_categories=5)
    world.users, world.items = np.abs(world.users), np.abs(world.items)
    world.users[35:] *= -1
    assert world.top(k=10, tile_items=40) == world.brute_force(k=10)
    world.excluded[:20] = [np.arange(5)] * 20
    assert world.top(k=10, tile_items=40) == world.brute_force(k=10)


def test_pilots_with_few_allowed_items_leave_the_guess_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some users, pilots and others, may get items of one of five categories, fewer than K."""
    guesses, guess = [], search.Search._guess
    monkeypatch.setattr(search.Search, "_guess", lambda self, *of: guesses.append(guess(self, *of)) or guesses[-1])
    world = RandomWorld(12, num_users=200, num_items=900, num_categories=5, excluded_share=0.0)
    rare = int(np.argmin(np.bincount(world.category, minlength=5)))
    for user in (3, 20, 77):
        world.excluded[user] = np.array([category for category in range(5) if category != rare])
    expected = world.brute_force(k=200)
    assert Counter(user for user, *_ in expected)[3] < 200
    assert world.top(k=200, tile_items=256) == expected
    assert len(guesses) == 1
    assert np.isfinite(guesses[0]).all()


def test_norms_are_the_same_whatever_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = RandomWorld(13, num_users=50, num_items=301, dim=67)
    whole = world.block().norms_I
    monkeypatch.setattr(topk, "_NORMS_AT_ONCE", 7)
    assert world.block().norms_I.tobytes() == whole.tobytes()


def test_each_score_has_the_sign_of_the_definition() -> None:
    """0.0 and -0.0 are equal scores, ordered by item, and yet each leaves the kernel with its sign."""
    world = RandomWorld(11, num_users=9, num_items=80)
    world.users, world.items = np.abs(world.users) * np.float32(1e-30), -np.abs(world.items) * np.float32(1e-30)
    world.items[::5] = 0
    place = {int(item): n for n, item in enumerate(world.item_idx)}
    found = world.top(k=30, tile_items=100)
    signs = [bool(np.signbit(score)) for _, _, score, _ in found]
    assert signs == [np.signbit(naive_score(world.users[u], world.items[place[item]])) for u, item, _, _ in found]
    assert 0 < sum(signs) < len(signs)


def test_more_asked_for_than_there_is() -> None:
    world = RandomWorld(2, ties=True)
    everything = world.brute_force(k=world.num_items)
    for k in (world.num_items, world.num_items + 1, 10 * world.num_items):
        assert world.top(k=k, tile_items=64) == everything


@pytest.mark.parametrize(("num_users", "num_items"), [(1, 1), (1, 211), (37, 1), (1, 2)])
def test_one_user_one_item(num_users: int, num_items: int) -> None:
    for seed in range(5):
        world = RandomWorld(seed, num_users=num_users, num_items=num_items, num_seen=1)
        for k in (1, 3):
            assert world.top(k=k, tile_items=64) == world.brute_force(k=k)


@pytest.mark.parametrize("ties", [False, True])
def test_same_bits_whatever_the_blocks_and_threads(ties: bool) -> None:
    world = RandomWorld(4, num_users=83, num_items=1300, dim=24, ties=ties)
    with threadpool_limits(1):
        expected = world.top(k=15, tile_items=512)
    for tile_users, tile_items, threads, blas_threads in [
        (1, 300, 4, 1),
        (7, 512, 3, 2),
        (40, 77, 2, 2),
        (83, 1, 1, 4),
    ]:
        with threadpool_limits(blas_threads):
            assert world.top_by_blocks(15, tile_items, tile_users, threads) == expected


def test_the_score_of_a_pair_does_not_depend_on_its_neighbours() -> None:
    world = RandomWorld(3, dim=19)
    row, column = (part.ravel() for part in np.indices((world.num_users, world.num_items)))
    together = score_pairs(world.users, world.items, row, column)
    for pair in range(0, len(row), 97):
        alone = score_pairs(world.users, world.items, row[pair : pair + 1], column[pair : pair + 1])
        assert alone[0].tobytes() == together[pair].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(value: float) -> None:
    world = RandomWorld(0)
    world.items[5, 2] = value
    with pytest.raises(VectorError, match=f"item_idx {world.item_idx[5]} holds NaN or infinity"):
        world.block()
    world = RandomWorld(0)
    world.users[4, 0] = value
    with pytest.raises(VectorError, match="user_idx 4 holds NaN or infinity"):
        world.top(k=3, tile_items=64)


def test_vectors_too_long_for_a_float32_product_are_refused() -> None:
    world = RandomWorld(0)
    world.users[0, 0] = world.items[0, 0] = 3e19
    with pytest.raises(VectorError, match="2\\^127"):
        world.top(k=3, tile_items=64)


def test_no_item_at_all_gives_no_rows() -> None:
    world = RandomWorld(0)
    world.items, world.item_idx, world.category = world.items[:0], world.item_idx[:0], world.category[:0]
    assert world.top(k=3, tile_items=64) == []


@pytest.mark.spark
def test_spark_gives_the_same_bits_whatever_the_partitions_batches_and_tiles(
    spark: SparkSession, tmp_path: Path
) -> None:
    world = RandomWorld(8, dim=16, num_users=61)
    items = world.shared(tmp_path / "items")
    expected = world.brute_force(k=10)
    found = {}
    layouts = {(1, 10_000, 512, 8192): 10_000, (3, 7, 4, 10): 7, (5, 100, 1, 33): 100}
    try:
        for (partitions, batch, tile_users, tile_items), records in layouts.items():
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(records))
            spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
            ranking = Ranking(tile_users=tile_users, tile_items=tile_items)
            users = world.frame(spark).repartition(partitions)
            rows = ranked_rows(top_k(users, items, ranking, k=10)).collect()
            assert {row["scope"] for row in rows} == {"touched"}
            found[batch] = sorted((row["user_idx"], row["item_idx"], row["score"], row["rank"]) for row in rows)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    for rows in found.values():
        assert rows == sorted(expected)


@pytest.mark.spark
def test_spark_refuses_a_vector_of_another_length(spark: SparkSession, tmp_path: Path) -> None:
    world = RandomWorld(8)
    items = world.shared(tmp_path / "items")
    world.users = world.users[:, :5]
    with pytest.raises(PythonException, match="has length 5, expected 7"):
        top_k(world.frame(spark), items, Ranking(), k=3).collect()


def test_a_python_worker_begins_with_what_tasks_import(spark: SparkSession) -> None:
    def loaded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            found = [
                pa.array([name in sys.modules]) for name in ("xrec.ranking.scan", "xrec.generators.compiled", "torch")
            ]
            yield pa.record_batch(found, names=["kernel", "sums", "torch"])

    rows = spark.range(2).mapInArrow(loaded, "kernel boolean, sums boolean, torch boolean").distinct().collect()
    assert [tuple(row) for row in rows] == [(True, True, False)]
