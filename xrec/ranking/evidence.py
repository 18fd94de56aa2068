"""Which model is the best on older folds, by lists that knew nothing later (rolling origin).

Every source, the blend and the rankers have lists in the select folds; those of the models that learn were made by what still
older select folds taught them. Their NDCG@10 on the users with targets is pooled over all select folds in which all of them
have lists; a source is judged by what it would serve, its lists completed by popularity. A model that learns serves only if
the lower bound of its difference to the best single source is above 0, in an interval that holds for all that learn at once;
the best of these does, else the best single source, popularity among them. One window alone misleads too easily: a season that
ends would choose what just worked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Row
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
"""Users whose list holds a target, that a sure difference needs: by fewer, chance alone makes an interval without 0."""
_NUM_HITS, _POPULAR = "num_hits", "popular"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a model did on older folds."""

    model: str
    learns: bool
    ndcg: float
    low: float
    high: float
    difference: float
    """To the best single source."""
    adjusted_low: float
    adjusted_high: float
    num_users: int


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

    One row a (``fold``, ``scope``, ``source``, ``user_idx``), with ``items``. It is what :func:`xrec.ranking.blend.blend` makes of
    the weights that :func:`xrec.ranking.serving.contributing` gives a single source.
    """
    lists = [C.FOLD, C.SCOPE, C.SOURCE, C.USER_IDX]
    is_single = F.col(C.SOURCE).isin(*singles)
    popular = candidates.where(F.col(C.SOURCE) == C.POPULARITY).select(
        C.FOLD,
        C.SCOPE,
        C.USER_IDX,
        first(C.ITEMS, 2 * CUT_OFF).alias(_POPULAR),  # as many as are enough where the source has half of them itself
        F.explode(F.array(*map(F.lit, singles))).alias(C.SOURCE),
    )
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
    scope: str,
    seed: int,
) -> Serving:
    """The model that serves a scope; popularity where no user of the folds has a target.

    Parameters
    ----------
    folds
        Select folds in which every model that learns has lists, all of them older than what is served.
    singles, learning
        The sources, and the models that learn from older folds.
    """
    names = " ".join(one.fold.name for one in folds)
    if not folds:
        return _popularity_serves(scope, "none (no select fold)")
    users = _judged(folds, [*singles, *learning], scope).persist(StorageLevel.DISK_ONLY)
    try:
        found = users.groupBy(C.MODEL).agg(_mean().alias(C.NDCG), _num_hits()).collect()
        means, hits = ({row[C.MODEL]: row[name] for row in found} for name in (C.NDCG, _NUM_HITS))
        if not means:
            return _popularity_serves(scope, f"none (no target in {names})")
        # Rounded: Spark adds in arrival order, and the choice must not depend on it.
        best = max(singles, key=lambda model: (round(means[model], 9), model == C.POPULARITY))
        rows = summarise(users, [_NDCG], settings, seed, num_compared=len(learning), baseline=best).collect()
    finally:
        users.unpersist()
    evidence = {row[C.MODEL]: _evidence(row, learns=row[C.MODEL] in learning) for row in rows}
    winners = [model for model in learning if evidence[model].adjusted_low > 0 and hits[model] >= _LEAST_HITS]
    chosen = max(winners, key=lambda model: round(evidence[model].ndcg, 9), default=best)
    return Serving(
        scope=scope,
        model=chosen,
        compared_with=best,
        selected_on=names,
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
    found = users.where(F.col(C.MODEL) == C.POPULARITY).agg(_num_hits()).first()
    if found is None or found[_NUM_HITS] < _LEAST_HITS:
        return None
    rows = summarise(users, [_NDCG], settings, seed, num_compared=1).collect()
    return next((_evidence(row, learns=False) for row in rows if row[C.MODEL] == model), None)


def _popularity_serves(scope: str, why: str) -> Serving:
    return Serving(scope=scope, model=C.POPULARITY, compared_with=C.POPULARITY, selected_on=why)


def _judged(folds: Sequence[JudgedFold], models: Sequence[str], scope: str) -> DataFrame:
    """One row a (model, fold's user with targets), as of one fold, with the NDCG as the only value."""
    place = F.lit(metric_names([CUT_OFF]).index(_NDCG))
    judged = [
        judge_lists(
            one.candidates,
            one.targets,
            one.buyers,
            fold=POOLED,
            sources=models,
            slices=[scope_slice(scope)],
            ks=[CUT_OFF],
        )
        for one in folds
    ]
    users = reduce(DataFrame.unionByName, judged)
    return users.withColumn(VALUES, F.array(F.get(VALUES, place)))


def _mean() -> Column:
    return F.avg(F.get(VALUES, F.lit(0)))


def _num_hits() -> Column:
    return F.count_if(F.get(VALUES, F.lit(0)) > 0).alias(_NUM_HITS)


def _evidence(row: Row, *, learns: bool) -> Evidence:
    return Evidence(
        model=row[C.MODEL],
        learns=learns,
        ndcg=row[C.VALUE],
        low=row[C.LOW],
        high=row[C.HIGH],
        difference=row[C.DIFFERENCE],
        adjusted_low=row[C.ADJUSTED_LOW],
        adjusted_high=row[C.ADJUSTED_HIGH],
        num_users=row[C.NUM_USERS],
    )
