"""What serves: the choice as a table keeps it, and the lists of the chosen model."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.lists import shortened
from xrec.ranking.blend import CUT_OFF, Choice, blend, equal_weights
from xrec.ranking.blend import SOURCE as BLEND
from xrec.ranking.evidence import Evidence, Serving

_FIGURES = (C.NDCG, C.LOW, C.HIGH, C.DIFFERENCE, C.ADJUSTED_LOW, C.ADJUSTED_HIGH, C.NUM_USERS)


class ServingError(ValueError):
    """No model was chosen to serve; the message names fold, scope and stage."""


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
            C.COMPARED_WITH: one.compared_with,
            C.SELECTED_ON: one.selected_on,
        }
        for one in serving.evidence
    ] or [
        dict.fromkeys(_FIGURES)
        | {
            C.MODEL: serving.model,
            C.LEARNS: False,
            C.COMPARED_WITH: serving.compared_with,
            C.SELECTED_ON: serving.selected_on,
        }
    ]
    same = {C.FOLD: fold, C.SCOPE: serving.scope}
    return [{**row, **same, C.CHOSEN: row[C.MODEL] == serving.model} for row in rows]


def evidence_of(serving_models: DataFrame) -> DataFrame:
    """Rows of ``serving_models`` to rows of ``metrics``, of the columns that they have: what a fold's choice rests on.

    ``evidence_ndcg`` is a model's NDCG on the older folds, with its interval, and ``evidence_gain`` its difference to the single
    source that it is compared with, with the interval that holds for all that learn at once.
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
        against = f"; {_per_cent(of[serving.model])}"
    elif any(one.learns for one in serving.evidence):
        against = "; no model that learns is better for sure"
    figures = {f"serves_{serving.scope}": f"{serving.model} (chosen on: {serving.selected_on}{against})"}
    for one in serving.evidence:
        against = "" if one.model == one.compared_with else f", {_per_cent(one)}"
        figures[f"evidence_{serving.scope}_{one.model}"] = f"NDCG@{CUT_OFF} {one.ndcg:.4f}{against}"
    return figures


def _per_cent(one: Evidence) -> str:
    base = one.ndcg - one.difference
    if base <= 0:
        return f"{one.compared_with} hits nothing"
    mean, low, high = (100 * value / base for value in (one.difference, one.adjusted_low, one.adjusted_high))
    return f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}] vs {one.compared_with}"
