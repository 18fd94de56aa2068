"""The blend: reciprocal-rank fusion of the sources with weights that the select folds choose.

score(u, i) = sum_s w_s / (c + rank_s(u, i)), over the sources s that propose i to u (Cormack, Clarke and Buettcher 2009,
with weights); ties by item index. Popularity's weight is at least a millionth, so that every user gets a list. The weights
are the point of a grid on the simplex with the highest mean NDCG@10 on the scope's cross-category targets of the select
folds before the one that is blended (rolling origin), over their users with targets; all points are judged in one pass.

The fusion is the same with equal weights of all sources, and learns nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.slices import SCOPES, scope_slice
from xrec.lists import best_lists, ranked_rows
from xrec.ranking.topk import Array, spread

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ranking, Settings

SOURCE = C.BLEND
CUT_OFF = 10
"""k of the NDCG that chooses the weights."""
LEAST_POPULARITY = 1e-6
"""Popularity's least weight: it breaks ties, and fills the lists of users whom no model knows."""

MOST_PARTS, MOST_POINTS = 10, 1001
"""Bounds of the grid: tenths, and as many points as five sources have then."""

_A_USER = [C.FOLD, C.SCOPE, C.USER_IDX]
_SUM_SCHEMA = f"{C.FOLD} string, {C.SCOPE} string, point int, {C.NDCG} double, {C.NUM_USERS} bigint"
_SUM_ARROW = pa.schema(
    {C.FOLD: pa.string(), C.SCOPE: pa.string(), "point": pa.int32(), C.NDCG: pa.float64(), C.NUM_USERS: pa.int64()}
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A scope's weights, and the evidence for them."""

    scope: str
    weights: Mapping[str, float]
    """Weight of each source, in the order of the settings; they add up to 1."""
    selected_on: str
    """Names of the select folds, or why there was none."""
    ndcg: float | None = None
    """Mean NDCG@10 of the blend on the select folds; None where nothing could be selected."""
    ndcg_popularity: float | None = None
    """The same of popularity alone."""


def length_of_lists(settings: Settings) -> int:
    """Places of the lists that are made of the sources' lists: as many as are shown, and as they are judged and chosen by."""
    return max(settings.ranking.top_k, *settings.evaluation.ks, CUT_OFF)


def weight_grid(num_sources: int, parts: int) -> Array:
    """Matrix (points, sources): all multiples of 1 / parts that add up to 1, the first source's largest first.

    >>> weight_grid(2, 2).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    bars = itertools.combinations(range(parts + num_sources - 1), num_sources - 1)
    points = [np.diff([-1, *bar, parts + num_sources - 1]) - 1 for bar in bars]
    return np.array(sorted(map(tuple, points), reverse=True), dtype=np.float64) / parts


def parts_for(num_sources: int) -> int:
    """The finest grid, of tenths or coarser, whose points can be judged in one pass.

    >>> parts_for(4), parts_for(8)
    (10, 5)
    """
    finest = range(MOST_PARTS, 1, -1)
    few = (parts for parts in finest if math.comb(parts + num_sources - 1, num_sources - 1) <= MOST_POINTS)
    return next(few, 1)


def choose_weights(
    candidates: DataFrame,
    targets: DataFrame,
    ranking: Ranking,
    *,
    scopes: Sequence[str],
    folds: Mapping[str, Sequence[str]],
) -> dict[str, list[Choice]]:
    """The weights of each fold and scope, chosen on older folds; popularity alone where these hold no target.

    Parameters
    ----------
    candidates, targets
        Rows of the tables of these names.
    scopes
        The scopes that have lists.
    folds
        For the name of each fold that is blended the select folds that choose; their users with targets are pooled.
    """
    sources, grid = _grid_of(ranking)
    applied = _at_least(grid)
    select = sorted(set().union(*folds.values()))
    picked = candidates.where(F.col(C.FOLD).isin(*select) & F.col(C.SOURCE).isin(*sources))
    judged = spread(
        _user_rows(picked, _target_rows(targets.where(F.col(C.FOLD).isin(*select)), scopes), sources), C.USER_IDX
    )
    constant = ranking.fusion_constant

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield _judge_batch(batch, applied, constant)

    sums = (
        judged.mapInArrow(run, _SUM_SCHEMA)
        .groupBy(C.FOLD, C.SCOPE, "point")
        .agg(F.sum(C.NDCG).alias(C.NDCG), F.sum(C.NUM_USERS).alias(C.NUM_USERS))
        .collect()
    )
    choices = {}
    for fold, older in folds.items():
        means = {
            scope: _means([row for row in sums if row[C.SCOPE] == scope and row[C.FOLD] in older]) for scope in scopes
        }
        choices[fold] = [_choose(scope, means[scope], sources, grid, older) for scope in scopes]
    return choices


def _means(sums: Sequence[Row]) -> dict[int, float]:
    """Each point's mean NDCG over the users of several folds; the folds are added in order, so that the sum is always the same."""
    totals: dict[int, tuple[float, int]] = {}
    for row in sorted(sums, key=lambda row: row[C.FOLD]):
        ndcg, num_users = totals.get(row["point"], (0.0, 0))
        totals[row["point"]] = (ndcg + row[C.NDCG], num_users + row[C.NUM_USERS])
    return {point: ndcg / num_users for point, (ndcg, num_users) in totals.items()}


def _grid_of(ranking: Ranking) -> tuple[tuple[str, ...], Array]:
    """The sources, popularity first (so that it wins ties), and the grid of their weights."""
    sources = tuple(sorted(set(ranking.sources) | {C.POPULARITY}, key=[C.POPULARITY, *ranking.sources].index))
    return sources, weight_grid(len(sources), ranking.weight_parts or parts_for(len(sources)))


def _at_least(grid: Array) -> Array:
    """The grid's weights as they are applied: popularity, the first source, never at 0."""
    least_S = np.where(np.arange(grid.shape[1]) == 0, LEAST_POPULARITY, 0.0)
    return np.maximum(grid, least_S)


def _choose(
    scope: str, means: Mapping[int, float], sources: Sequence[str], grid: Array, folds: Sequence[str]
) -> Choice:
    if not means:
        why = f"none ({'no select fold' if not folds else 'no target in ' + ' '.join(folds)})"
        alone = {source: float(source == C.POPULARITY) for source in sources}
        return Choice(scope=scope, weights=alone, selected_on=why)
    # Rounded: Spark adds in arrival order, and the choice must not depend on it.
    best = min(means, key=lambda point: (-round(means[point], 9), point))
    return Choice(
        scope=scope,
        weights=dict(zip(sources, grid[best].tolist(), strict=True)),
        selected_on=" ".join(folds),
        ndcg=round(means[best], 9),
        ndcg_popularity=round(means[0], 9),
    )


def _target_rows(targets: DataFrame, scopes: Sequence[str]) -> DataFrame:
    """Targets to one row a (``fold``, ``scope``, ``user_idx``), with the items as ``targets``."""
    scoped = [
        targets.where(scope_slice(scope).holds).select(C.FOLD, F.lit(scope).alias(C.SCOPE), C.USER_IDX, C.ITEM_IDX)
        for scope in scopes
    ]
    together = reduce(DataFrame.unionByName, scoped)
    return together.groupBy(C.FOLD, C.SCOPE, C.USER_IDX).agg(F.collect_list(C.ITEM_IDX).alias("targets"))


def _user_rows(candidates: DataFrame, targets: DataFrame, sources: Sequence[str]) -> DataFrame:
    """One row a (fold, scope, user) with targets: the targets, and what all lists hold as items, ``source_code`` and rank."""
    code = F.array_position(F.array(*map(F.lit, sources)), F.col(C.SOURCE)) - 1
    lists = candidates.groupBy(*_A_USER).agg(
        F.collect_list(F.struct(code.cast("int").alias("source_code"), C.ITEMS)).alias("lists")
    )

    def of_each(value: Callable[[Column], Column]) -> Column:
        """Of each list what there is for each of its items; one after the other."""
        return F.coalesce(F.flatten(F.transform("lists", value)), F.array().cast("array<int>"))

    return targets.join(lists, _A_USER, how="left").select(
        *_A_USER,
        "targets",
        of_each(lambda one: one[C.ITEMS]).alias(C.ITEM_IDX),
        of_each(lambda one: F.array_repeat(one["source_code"], F.size(one[C.ITEMS]))).alias("source_code"),
        of_each(lambda one: F.sequence(F.lit(1), F.size(one[C.ITEMS]))).alias(C.RANK),
    )


def _judge_batch(batch: pa.RecordBatch, grid: Array, constant: float) -> pa.RecordBatch:
    """A batch of users to the sum of the NDCG of each fold, scope and grid point, and the number of its users."""
    kinds = list(zip(batch.column(C.FOLD).to_pylist(), batch.column(C.SCOPE).to_pylist(), strict=True))
    lists = [batch.column(name) for name in ("targets", C.ITEM_IDX, "source_code", C.RANK)]
    held = sorted(set(kinds))
    totals = {kind: np.zeros(len(grid)) for kind in held}
    for row, kind in enumerate(kinds):
        totals[kind] += judge_user(*[values[row].values.to_numpy() for values in lists], grid=grid, constant=constant)
    arrays = [
        pa.array(np.repeat([fold for fold, _ in held], len(grid)), type=pa.string()),
        pa.array(np.repeat([scope for _, scope in held], len(grid)), type=pa.string()),
        pa.array(np.tile(np.arange(len(grid), dtype=np.int32), len(held))),
        pa.array(np.concatenate([totals[kind] for kind in held])),
        pa.array(np.repeat([kinds.count(kind) for kind in held], len(grid))),
    ]
    return pa.record_batch(arrays, schema=_SUM_ARROW)


def judge_user(
    target_T: Array, item_P: Array, source_P: Array, rank_P: Array, *, grid: Array, constant: float
) -> Array:
    """NDCG@10 of one user's blended list, for each of the grid's G points.

    Only the targets' places are computed: the items with a higher score, or an equal one and a lower index. T targets,
    P proposals (item, source, rank).
    """
    items_N, place_P = np.unique(item_P, return_inverse=True)
    is_target_N = np.isin(items_N, target_T)
    if not is_target_N.any():
        return np.zeros(len(grid))
    votes_NS = np.zeros((len(items_N), grid.shape[1]))
    votes_NS[place_P, source_P] = 1.0 / (constant + rank_P)
    scores_GN = np.zeros((len(grid), len(items_N)))
    for source in range(grid.shape[1]):
        scores_GN += grid[:, source, None] * votes_NS[:, source]
    scores_GN = scores_GN.astype(np.float32)
    ndcg_G = np.zeros(len(grid))
    for target in np.flatnonzero(is_target_N):
        score_G1 = scores_GN[:, target, None]
        place_G = (scores_GN > score_G1).sum(axis=1) + (scores_GN[:, :target] == score_G1).sum(axis=1)
        # An item of score 0 is proposed by sources of weight 0 only: it is not in the list.
        found_G = (place_G < CUT_OFF) & (score_G1[:, 0] > 0)
        ndcg_G += found_G / np.log2(place_G + 2)
    ideal = float((1 / np.log2(np.arange(min(len(np.unique(target_T)), CUT_OFF)) + 2)).sum())
    return ndcg_G / ideal


def with_contributions(candidates: DataFrame, choices: Sequence[Choice], ranking: Ranking) -> DataFrame:
    """Lists to one row a (``fold``, ``scope``, ``user_idx``, ``item_idx``): blended ``score`` and main ``source``.

    The score is a float32 that is above 0; ``source`` contributed most to it, the earlier in the settings where two did.
    """
    sources = list(choices[0].weights)
    rank_of = [F.max(F.when(F.col(C.SOURCE) == source, F.col(C.RANK))).alias(source) for source in sources]
    # Whole lists are brought together by user: nothing after it is shuffled.
    lists = candidates.where(F.col(C.SOURCE).isin(*sources)).drop(C.SCORES).repartition(C.USER_IDX)
    ranks = ranked_rows(lists).groupBy(*_A_USER, C.ITEM_IDX).agg(*rank_of)
    votes = {source: _vote(source, choices, ranking.fusion_constant) for source in sources}
    # Added in the settings' order: the same sum on every run.
    score = reduce(add, votes.values()).cast("float")
    largest = F.greatest(*votes.values()) if len(votes) > 1 else next(iter(votes.values()))
    main = F.coalesce(*[F.when(vote == largest, F.lit(source)) for source, vote in votes.items()])
    blended = ranks.select(C.FOLD, C.SCOPE, C.USER_IDX, C.ITEM_IDX, score.alias(C.SCORE), main.alias(C.SOURCE))
    return blended.where(F.col(C.SCORE) > 0)


def _vote(source: str, choices: Sequence[Choice], constant: float) -> Column:
    """The vote w / (c + rank), with the row's scope's weight; 0 where the source does not propose the item."""
    least = LEAST_POPULARITY if source == C.POPULARITY else 0.0
    weight = reduce(
        lambda column, choice: column.when(F.col(C.SCOPE) == choice.scope, F.lit(max(choice.weights[source], least))),
        choices,
        F.when(F.lit(False), F.lit(0.0)),
    )
    return F.coalesce(weight / (F.lit(constant) + F.col(source)), F.lit(0.0))


def equal_weights(scope: str, sources: Sequence[str]) -> Choice:
    """The fusion: every source counts alike."""
    return Choice(scope=scope, weights=dict.fromkeys(sources, 1.0 / len(sources)), selected_on="")


def blend(
    candidates: DataFrame, choices: Sequence[Choice], ranking: Ranking, *, k: int, source: str = SOURCE
) -> DataFrame:
    """Lists of the sources to those of one more ``source``: the best K a (fold, scope, user)."""
    lists = best_lists(with_contributions(candidates, choices, ranking), _A_USER, k=k)
    return lists.withColumn(C.SOURCE, F.lit(source))


def choice_rows(fold: str, choices: Sequence[Choice]) -> list[dict[str, object]]:
    """A fold's choices to rows of ``blend_weights``."""
    return [
        {
            C.FOLD: fold,
            C.SCOPE: choice.scope,
            C.SOURCE: source,
            C.WEIGHT: weight,
            C.SELECTED_ON: choice.selected_on,
            C.NDCG: choice.ndcg,
            C.NDCG_POPULARITY: choice.ndcg_popularity,
        }
        for choice in choices
        for source, weight in choice.weights.items()
    ]


def read_choices(blend_weights: DataFrame, ranking: Ranking) -> list[Choice]:
    """A fold's rows of ``blend_weights`` to the choices that made them, sources in the order in which they are added."""
    rows = blend_weights.collect()
    held = {row[C.SOURCE] for row in rows}
    known = [source for source in _grid_of(ranking)[0] if source in held]
    known += sorted(held - set(known))
    return [
        Choice(
            scope=scope,
            weights={
                name: row[C.WEIGHT] for name in known for row in rows if (row[C.SCOPE], row[C.SOURCE]) == (scope, name)
            },
            selected_on=next(row[C.SELECTED_ON] for row in rows if row[C.SCOPE] == scope),
            ndcg=next(row[C.NDCG] for row in rows if row[C.SCOPE] == scope),
            ndcg_popularity=next(row[C.NDCG_POPULARITY] for row in rows if row[C.SCOPE] == scope),
        )
        for scope in SCOPES
        if any(row[C.SCOPE] == scope for row in rows)
    ]


def describe_choices(choices: Sequence[Choice]) -> dict[str, str]:
    """Weights and evidence, for the summary."""
    figures = {}
    for choice in choices:
        parts = [f"{source} {weight:.2g}" for source, weight in choice.weights.items() if weight]
        evidence = (
            ""
            if choice.ndcg is None
            else f"; NDCG@{CUT_OFF} {choice.ndcg:.4f}, popularity {choice.ndcg_popularity:.4f}"
        )
        figures[f"blend_{choice.scope}"] = f"{', '.join(parts)} (chosen on: {choice.selected_on}{evidence})"
    return figures
