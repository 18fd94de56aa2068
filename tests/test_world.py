"""The known-answer world: taste beats popularity in it, and nothing does once its labels are shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from world import AS_OF, CATEGORIES, HORIZON, NON_MERCHANDISE, World, make_world, write_world
from xrec.config import load_settings

FOLDS = {"main": AS_OF, "select": AS_OF - HORIZON}
K = 10


def ndcg_per_user(world: World, fold: str, *, personal: bool) -> np.ndarray:
    """NDCG@10 of every user with targets, by cosine item-kNN or by popularity, in numpy."""
    history, targets = world.history(FOLDS[fold]), world.targets(FOLDS[fold])
    users = pd.Index(world.tastes["user_id"])
    items = pd.Index(world.catalogue["item_id"])
    bought_UI = np.zeros((len(users), len(items)))
    bought_UI[users.get_indexer(history["user_id"]), items.get_indexer(history["item_id"])] = 1
    is_target_UI = np.zeros(bought_UI.shape, dtype=bool)
    is_target_UI[users.get_indexer(targets["user_id"]), items.get_indexer(targets["item_id"])] = True

    common_II = bought_UI.T @ bought_UI
    norm_I = np.sqrt(common_II.diagonal())
    cosine_II = common_II / (np.outer(norm_I, norm_I) + 5)
    scores_UI = bought_UI @ cosine_II if personal else np.tile(bought_UI.sum(axis=0), (len(users), 1))
    categories_I = world.catalogue["category"].to_numpy()
    for name in CATEGORIES:
        in_category_I = categories_I == name
        excluded_U = bought_UI[:, in_category_I].any(axis=1) | (name == NON_MERCHANDISE)
        scores_UI[np.ix_(excluded_U, in_category_I)] = -np.inf

    top_UK = np.argsort(-scores_UI, axis=1, kind="stable")[:, :K]
    hits_UK = np.take_along_axis(is_target_UI, top_UK, axis=1)
    gains_K = 1 / np.log2(np.arange(K) + 2)
    num_targets_U = is_target_UI.sum(axis=1)
    ideal_U = np.array([gains_K[: min(K, num)].sum() for num in num_targets_U])
    return ((hits_UK @ gains_K)[num_targets_U > 0]) / ideal_U[num_targets_U > 0]


def mean_difference(world: World, fold: str) -> tuple[float, float, float]:
    """Popularity's NDCG, the mean difference of item-kNN to it, and the standard error of that difference."""
    popularity, personal = (ndcg_per_user(world, fold, personal=personal) for personal in (False, True))
    difference = personal - popularity
    return popularity.mean(), difference.mean(), difference.std() / np.sqrt(len(difference))


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_taste_beats_popularity(seed: int, fold: str) -> None:
    popularity, difference, error = mean_difference(make_world(seed=seed), fold)
    assert difference > 0.8 * popularity
    assert difference > 5 * error


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_beats_popularity_on_shuffled_labels(seed: int, fold: str) -> None:
    _, difference, error = mean_difference(make_world(seed=seed, shuffled=True), fold)
    assert difference < 2 * error


def test_shuffling_keeps_everything_but_the_taste() -> None:
    # A seed draws the same events; shuffling permutes items within a category and may double a basket's line.
    world, shuffled = make_world(), make_world(shuffled=True)
    columns = ["user_id", "category"]
    before, after = (
        w.purchases()[columns].drop_duplicates().sort_values(columns).to_numpy() for w in (world, shuffled)
    )
    np.testing.assert_array_equal(before, after)
    counts, counts_after = (w.purchases()["item_id"].value_counts() for w in (world, shuffled))
    assert (counts_after.reindex(counts.index).fillna(0) <= counts).all()
    assert counts_after.sum() > 0.95 * counts.sum()


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    pd.testing.assert_frame_equal(make_world(seed=0).log, make_world(seed=0).log)
    assert not make_world(seed=0).log.equals(make_world(seed=1).log)


def test_the_world_has_what_real_logs_have() -> None:
    world = make_world()
    log, purchases = world.log, world.purchases()
    assert (len(world.tastes), len(world.catalogue)) == (300, 120)
    assert not log.duplicated().any()
    assert set(log["event_type"]) == {"purchase", "view"}
    assert purchases.groupby(["user_id", "event_ts"]).size().max() > 1, "no basket of several lines"
    assert purchases.duplicated(["user_id", "item_id"]).any(), "no repeat purchase"
    assert purchases.groupby("user_id")["event_ts"].min().gt(AS_OF.replace(tzinfo=None)).sum() == 6, "no cold user"
    assert set(world.catalogue["item_id"]) - set(log["item_id"]), "no cold item"
    stripped = world.catalogue["item_id"].str.lstrip("0")
    assert stripped.duplicated().any(), "no two ids that differ in leading zeros"
    touched = world.history().groupby("user_id")["category"].nunique()
    assert touched.between(2, 4).all()
    assert world.targets().groupby("user_id").size().max() > 1


def test_a_written_world_loads_as_settings_and_its_counts_add_up(tmp_path: Path) -> None:
    written = write_world(make_world(), tmp_path, overrides={"als": {"rank": 4}})
    settings = load_settings([written.config])
    assert settings.als.rank == 4
    assert settings.als.alpha == 5.0
    lines = written.log_file.read_text().splitlines()[1:]
    assert len(lines) == written.num_read == written.num_clean + written.num_quarantined + written.num_duplicates
    assert len(lines) - len(set(lines)) == written.num_duplicates
    kept = {"not_in_catalogue", "no_category", "duplicates", "returned", "repeated"}
    assert written.num_quarantined == sum(num for kind, num in written.injected.items() if kind not in kept)


def test_a_clean_world_has_no_dirty_row(tmp_path: Path) -> None:
    world = make_world()
    written = write_world(world, tmp_path, dirty=False, compressed=True)
    frame = pd.read_csv(written.log_file, dtype=str, keep_default_na=False)
    assert len(frame) == len(world.log) == written.num_clean
    assert set(frame["product"]) == set(world.log["item_id"]), "ids changed on the way"
    assert written.injected == {}
