"""Which model is the best on older folds, by lists that knew nothing later (rolling origin).

Every source, the blend and the rankers have lists in the select folds; those of the models that learn were made by what still
older select folds taught them. A source is judged by what it would serve, its lists completed by popularity: its NDCG@10 on the
users with targets is pooled over all select folds, and the best of those that have lists in all that have any is the best
single source. What learns is judged in the folds in which all that learn have lists. It serves only if the lower bound of its
difference is above 0, to the best single source and to the source that is best in these folds, in an interval that holds for
all that learn at once; the best of these does, else the best single source. One window alone misleads too easily: a season
that ends would choose what just worked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.folds import Fold
from xrec.evaluation.intervals import summarise
from xrec.evaluation.metrics import VALUES, judge_lists, metric_names
from xrec.evaluation.report import POOLED
from xrec.evaluation.slices import scope_slice
from xrec.features.buyers import num_buyers_of
from xrec.lists import first
from xrec.ranking.blend import CUT_OFF
from xrec.storage.tables import Tables

_NDCG = ("ndcg", CUT_OFF)
_LEAST_HITS = 10
"""Users whose list holds a target, that whatever serves instead of popularity needs: by fewer, chance alone looks like skill."""
_NUM_HITS, _POPULAR = "num_hits", "popular"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a model did on older folds."""

    model: str
    learns: bool
    ndcg: float
    low: float
    high: float
    compared_with: str
    """A single source: the best one; of what learns, the best one in its folds where the difference to that is less sure."""
    difference: float
    adjusted_low: float
    adjusted_high: float
    num_users: int
    selected_on: str
    """The folds in which it was judged."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The model that serves a scope, and the evidence for it, the best model first."""

    scope: str
    model: str
    compared_with: str
    """The best single source."""
    selected_on: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JudgedFold:
    """A select fold with its rows of ``candidates`` and ``targets``, and its buyers."""

    fold: Fold
    candidates: DataFrame
    targets: DataFrame
    buyers: DataFrame

    @classmethod
    def read(cls, tables: Tables, fold: Fold, scope: str, singles: Sequence[str]) -> JudgedFold:
        """A fold's rows, of the lists those of a scope; the ``singles`` are sources that may serve alone."""
        candidates = tables.read("candidates", fold=fold.name).where(F.col(C.SCOPE) == scope)
        return cls(
            fold=fold,
            candidates=as_served(candidates, singles),
            targets=tables.read("targets", fold=fold.name),
            buyers=num_buyers_of(tables.read("interactions", fold=fold.name)),
        )


def as_served(candidates: DataFrame, singles: Sequence[str]) -> DataFrame:
    """Lists of a fold and scope as they would serve: those of the ``singles`` short, and completed by what popularity proposes.

    One row a (``fold``, ``scope``, ``source``, ``user_idx``), with ``items``; none of a source that has no list in the fold. It is
    what :func:`xrec.ranking.blend.blend` makes of the weights that :func:`xrec.ranking.serving.contributing` gives a single source.
    """
    lists = [C.FOLD, C.SCOPE, C.SOURCE, C.USER_IDX]
    is_single = F.col(C.SOURCE).isin(*singles)
    has_lists = candidates.where(is_single).select(C.FOLD, C.SCOPE, C.SOURCE).distinct()
    popular = candidates.where(F.col(C.SOURCE) == C.POPULARITY).select(
        C.FOLD,
        C.SCOPE,
        C.USER_IDX,
        first(C.ITEMS, 2 * CUT_OFF).alias(_POPULAR),  # as many as are enough where the source has half of them itself
        F.explode(F.array(*map(F.lit, singles))).alias(C.SOURCE),
    )
    popular = popular.join(F.broadcast(has_lists), [C.FOLD, C.SCOPE, C.SOURCE], how="left_semi")
    own = candidates.where(is_single).select(*lists, first(C.ITEMS, CUT_OFF).alias(C.ITEMS))
    nothing = F.array().cast("array<int>")
    together = F.array_distinct(F.concat(F.coalesce(C.ITEMS, nothing), F.coalesce(_POPULAR, nothing)))
    completed = own.join(popular, lists, how="full").withColumn(C.ITEMS, F.slice(together, 1, CUT_OFF)).drop(_POPULAR)
    return completed.unionByName(candidates.where(~is_single).select(*lists, C.ITEMS))


def folds_of_evidence(
    select: Sequence[Fold], candidates: DataFrame, learning: Sequence[str]
) -> tuple[Sequence[Fold], Sequence[str]]:
    """The select folds (oldest first) in which every model has lists, and the models that learn.

    These have none in the oldest, nor where older ones taught nothing. Where no fold has lists of them all, single sources alone
    are compared, in all folds.
    """
    names = [fold.name for fold in select[1:]]
    if not (names and learning):
        return select, ()
    known = candidates.where(F.col(C.FOLD).isin(*names) & F.col(C.SOURCE).isin(*learning))
    found = known.groupBy(C.FOLD).agg(F.countDistinct(C.SOURCE).alias(C.SOURCE)).collect()
    complete = {row[C.FOLD] for row in found if row[C.SOURCE] == len(learning)}
    folds = [fold for fold in select if fold.name in complete]
    return (folds, learning) if folds else (select, ())


def choose_model(
    folds: Sequence[JudgedFold],
    settings: Evaluation,
    *,
    singles: Sequence[str],
    learning: Sequence[str],
    learned: Collection[Fold],
    scope: str,
    seed: int,
) -> Serving:
    """The model that serves a scope; popularity where no user of the folds has a target.

    Parameters
    ----------
    folds
        Select folds, all of them older than what is served.
    singles, learning
        The sources, and the models that learn from older folds.
    learned
        The folds in which every model that learns has lists.
    """
    if not folds:
        return _popularity_serves(scope, "none (no select fold)")
    names = [one.fold.name for one in folds]
    lists = reduce(DataFrame.unionByName, [one.candidates.select(C.FOLD, C.SOURCE) for one in folds])
    found = lists.groupBy(C.SOURCE).agg(F.countDistinct(C.FOLD).alias(C.FOLD)).collect()
    # In a fold without a target nobody may have a list.
    most = max((row[C.FOLD] for row in found), default=0)
    everywhere = {row[C.SOURCE] for row in found if row[C.FOLD] == most}
    able = [model for model in singles if model == C.POPULARITY or model in everywhere]
    users = _judged(folds, [*able, *learning], scope).persist(StorageLevel.DISK_ONLY)
    try:
        best, _ = _best_of(able, users)
        if best is None:
            return _popularity_serves(scope, f"none (no target in {' '.join(names)})")
        of_singles = users.where(F.col(C.MODEL).isin(*able))
        evidence = _compared(of_singles, best, learning, settings, seed, names)
        names = [one.name for one in learned]
        of_learned = users.where(F.col(C.FOLD).isin(*names))
        best_there, hits = _best_of(able, of_learned)
        for baseline in dict.fromkeys((best, best_there or best) if learning else ()):
            of_pair = of_learned.where(F.col(C.MODEL).isin(baseline, *learning))
            for model, one in _compared(of_pair, baseline, learning, settings, seed, names).items():
                if model in learning and (model not in evidence or one.adjusted_low < evidence[model].adjusted_low):
                    evidence[model] = one
    finally:
        users.unpersist()
    winners = [
        one for one in learning if one in evidence and evidence[one].adjusted_low > 0 and hits[one] >= _LEAST_HITS
    ]
    chosen = max(winners, key=lambda model: round(evidence[model].ndcg, 9), default=best)
    return Serving(
        scope=scope,
        model=chosen,
        compared_with=best,
        selected_on=evidence[chosen].selected_on,
        evidence=tuple(sorted(evidence.values(), key=lambda one: (-round(one.ndcg, 9), one.model))),
    )


def beside_popularity(
    judged: JudgedFold, model: str, settings: Evaluation, *, scope: str, seed: int
) -> Evidence | None:
    """A model compared with popularity on one select fold; None where it has no lists there, or too few of popularity hit."""
    has_lists = not judged.candidates.where(F.col(C.SOURCE) == model).isEmpty()
    if model == C.POPULARITY or not has_lists:
        return None
    users = _judged([judged], [C.POPULARITY, model], scope)
    _, hits = _best_of([C.POPULARITY], users)
    if hits.get(C.POPULARITY, 0) < _LEAST_HITS:
        return None
    return _compared(users, C.POPULARITY, [], settings, seed, [judged.fold.name]).get(model)


def _popularity_serves(scope: str, why: str) -> Serving:
    return Serving(scope=scope, model=C.POPULARITY, compared_with=C.POPULARITY, selected_on=why)


def _judged(folds: Sequence[JudgedFold], models: Sequence[str], scope: str) -> DataFrame:
    """One row a (fold, model, user with targets), with the NDCG as the only value."""
    place = F.lit(metric_names([CUT_OFF]).index(_NDCG))
    judged = [
        judge_lists(
            one.candidates,
            one.targets,
            one.buyers,
            fold=one.fold.name,
            sources=models,
            slices=[scope_slice(scope)],
            ks=[CUT_OFF],
        )
        for one in folds
    ]
    users = reduce(DataFrame.unionByName, judged)
    return users.withColumn(VALUES, F.array(F.get(VALUES, place)))


def _best_of(singles: Sequence[str], users: DataFrame) -> tuple[str | None, dict[str, int]]:
    """The best single source in rows of :func:`_judged`, None of no row, and how many users each model hits."""
    ndcg = F.get(VALUES, F.lit(0))
    num_hits = F.countDistinct(F.when(ndcg > 0, F.col(C.USER_IDX)))
    found = users.groupBy(C.MODEL).agg(F.avg(ndcg).alias(C.NDCG), num_hits.alias(_NUM_HITS)).collect()
    means, hits = ({row[C.MODEL]: row[name] for row in found} for name in (C.NDCG, _NUM_HITS))
    sure = [one for one in singles if one in means and (one == C.POPULARITY or hits[one] >= _LEAST_HITS)]
    # Rounded: Spark adds in arrival order, and the choice must not depend on it.
    return max(sure, key=lambda model: (round(means[model], 9), model == C.POPULARITY), default=None), hits


def _compared(
    users: DataFrame, baseline: str, learning: Sequence[str], settings: Evaluation, seed: int, folds: Sequence[str]
) -> dict[str, Evidence]:
    """Rows of :func:`_judged` in some folds to the evidence of each model, beside that of a single source."""
    pooled = users.withColumn(C.FOLD, F.lit(POOLED))
    rows = summarise(pooled, [_NDCG], settings, seed, num_compared=len(learning), baseline=baseline).collect()
    return {
        row[C.MODEL]: Evidence(
            model=row[C.MODEL],
            learns=row[C.MODEL] in learning,
            ndcg=row[C.VALUE],
            low=row[C.LOW],
            high=row[C.HIGH],
            compared_with=baseline,
            difference=row[C.DIFFERENCE],
            adjusted_low=row[C.ADJUSTED_LOW],
            adjusted_high=row[C.ADJUSTED_HIGH],
            num_users=row[C.NUM_USERS],
            selected_on=" ".join(folds),
        )
        for row in rows
    }
