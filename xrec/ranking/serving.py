"""What serves: chosen on older folds, by lists that knew nothing later (rolling origin).

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
from xrec.config import Evaluation, Settings
from xrec.evaluation.folds import Fold
from xrec.evaluation.intervals import summarise
from xrec.evaluation.metrics import VALUES, judge_lists, metric_names
from xrec.evaluation.report import POOLED
from xrec.evaluation.slices import scope_slice
from xrec.features.buyers import num_buyers_of
from xrec.lists import first, shortened
from xrec.ranking.blend import CUT_OFF, Choice, blend, equal_weights
from xrec.ranking.blend import SOURCE as BLEND
from xrec.storage.tables import Tables

_NDCG = ("ndcg", CUT_OFF)
_LEAST_HITS = 10
"""Users whose list holds a target, that a sure difference needs: by fewer, chance alone makes an interval without 0."""
_NUM_HITS, _POPULAR = "num_hits", "popular"
_FIGURES = (C.NDCG, C.LOW, C.HIGH, C.DIFFERENCE, C.ADJUSTED_LOW, C.ADJUSTED_HIGH, C.NUM_USERS)


class ServingError(ValueError):
    """No model was chosen to serve; the message names fold, scope and stage."""


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
    the weights that :func:`contributing` gives a single source.
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


def serving_rows(fold: str, serving: Serving) -> list[dict[str, object]]:
    """A choice to rows of ``serving_models``; where there was no evidence, one row says so."""
    rows: list[dict[str, object]] = [
        {
            C.MODEL: one.model,
            C.LEARNS: one.learns,
            C.NDCG: one.ndcg,
            C.LOW: one.low,
            C.HIGH: one.high,
            C.DIFFERENCE: one.difference,
            C.ADJUSTED_LOW: one.adjusted_low,
            C.ADJUSTED_HIGH: one.adjusted_high,
            C.NUM_USERS: one.num_users,
        }
        for one in serving.evidence
    ] or [dict.fromkeys(_FIGURES) | {C.MODEL: serving.model, C.LEARNS: False}]
    same = {
        C.FOLD: fold,
        C.SCOPE: serving.scope,
        C.COMPARED_WITH: serving.compared_with,
        C.SELECTED_ON: serving.selected_on,
    }
    return [{**row, **same, C.CHOSEN: row[C.MODEL] == serving.model} for row in rows]


def evidence_of(serving_models: DataFrame) -> DataFrame:
    """Rows of ``serving_models`` to rows of ``metrics``, of the columns that they have: what a fold's choice rests on.

    ``evidence_ndcg`` is a model's NDCG on the older folds, with its interval, and ``evidence_gain`` its difference to the best
    single source there, with the interval that holds for all that learn at once.
    """
    figures = [
        (f"evidence_{C.NDCG}", C.NDCG, C.LOW, C.HIGH),
        ("evidence_gain", C.DIFFERENCE, C.ADJUSTED_LOW, C.ADJUSTED_HIGH),
    ]
    rows = [
        F.struct(
            F.lit(metric).alias(C.METRIC),
            F.col(value).alias(C.VALUE),
            F.col(low).alias(C.LOW),
            F.col(high).alias(C.HIGH),
        )
        for metric, value, low, high in figures
    ]
    named = serving_models.withColumnsRenamed({C.SCOPE: C.SLICE})
    found = named.select(C.FOLD, C.MODEL, C.SLICE, C.NUM_USERS, F.inline(F.array(*rows))).where(
        F.col(C.VALUE).isNotNull()
    )
    return found.withColumn(C.K, F.lit(CUT_OFF))


def read_model(serving_models: DataFrame, fold: str, scope: str) -> str:
    """The model that rows of ``serving_models`` say serves a fold in a scope.

    Raises
    ------
    ServingError
        None was chosen for this fold and scope.
    """
    mine = (F.col(C.FOLD) == fold) & (F.col(C.SCOPE) == scope) & F.col(C.CHOSEN)
    row = serving_models.where(mine).first()
    if row is None:
        raise ServingError(
            f"table 'serving_models': found no chosen model of fold '{fold}', scope '{scope}', expected one; it is chosen by the "
            "stage choose: run the stages from blend on with the same settings"
        )
    return str(row[C.MODEL])


def contributing(model: str, choices: Sequence[Choice], settings: Settings, sources: Sequence[str]) -> Choice:
    """The weights by which the sources contribute to the lists of the model that serves ``ranking.scope``.

    Of the blend its own; of a single source that source alone, completed by popularity where it knows too little; of the fusion and
    of a ranker the same for all, so that what ranks an item highest counts as its main source.
    """
    scope = settings.ranking.scope
    if model == BLEND:
        return next(choice for choice in choices if choice.scope == scope)
    if model == C.FUSION or model in settings.ranker.models:
        return equal_weights(scope, sources)
    return Choice(scope=scope, weights={source: float(source == model) for source in sources}, selected_on="")


def served_lists(
    model: str, candidates: DataFrame, choices: Sequence[Choice], settings: Settings, sources: Sequence[str], *, k: int
) -> DataFrame:
    """A fold's lists in the scope that serves to those of source ``served``: the model's, at most K items a user."""
    if model in settings.ranker.models:
        lists = shortened(candidates.where(F.col(C.SOURCE) == model), k).drop(C.VERSIONS)
    else:
        lists = blend(candidates, [contributing(model, choices, settings, sources)], settings.ranking, k=k)
    return lists.withColumn(C.SOURCE, F.lit(C.SERVED))


def describe_serving(serving: Serving) -> dict[str, str]:
    """What serves, and why, for the summary."""
    of = {one.model: one for one in serving.evidence}
    against = ""
    if serving.model != serving.compared_with:
        against = f"; {_per_cent(of[serving.model], of[serving.compared_with])}"
    elif any(one.learns for one in serving.evidence):
        against = "; no model that learns is better for sure"
    figures = {f"serves_{serving.scope}": f"{serving.model} (chosen on: {serving.selected_on}{against})"}
    for one in serving.evidence:
        against = "" if one.model == serving.compared_with else f", {_per_cent(one, of[serving.compared_with])}"
        figures[f"evidence_{serving.scope}_{one.model}"] = f"NDCG@{CUT_OFF} {one.ndcg:.4f}{against}"
    return figures


def _per_cent(one: Evidence, best: Evidence) -> str:
    if best.ndcg <= 0:
        return f"{best.model} hits nothing"
    mean, low, high = (100 * value / best.ndcg for value in (one.difference, one.adjusted_low, one.adjusted_high))
    return f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}] vs {best.model}"
