"""A small random search for the settings of ALS, on the select folds alone (Bergstra, Bengio 2012)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Als
from xrec.evaluation.metrics import judge_lists, metric_names
from xrec.evaluation.slices import scope_slice
from xrec.features.buyers import num_buyers_of
from xrec.generators.als import MODEL, train_als
from xrec.generators.sources import candidates_of, users_of_folds
from xrec.ranking.filters import eligible_of_folds
from xrec.runs.filters import filters_of
from xrec.runs.stage import StageContext
from xrec.storage.tables import rows_from

SPACE: dict[str, Sequence[float]] = {
    "rank": (32, 64, 128),
    "reg_param": (0.01, 0.03, 0.1, 0.3, 1.0),
    "alpha": (0.1, 0.3, 1.0, 5.0, 20.0),
    "min_buyers": (1, 5),
}
"""The values that are tried of each setting of ``als``."""
HEADLINE = "ndcg"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that were tried, and the mean NDCG of the select folds' users with targets."""

    als: Als
    ndcg: float
    num_users: int

    @property
    def overrides(self) -> list[str]:
        """The settings as ``--set`` takes them."""
        return [f"als.{name}={getattr(self.als, name)}" for name in SPACE]


def plan_trials(als: Als, num_trials: int, seed: int) -> list[Als]:
    """What is tried: the settings as they are, then points of the space, drawn without repeats.

    >>> [trial.rank for trial in plan_trials(Als(rank=16), 1, seed=0)]
    [16]
    """
    points = [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]
    random.Random(seed).shuffle(points)  # noqa: S311 - which settings are tried is no secret
    planned = [als.model_copy(update=point) for point in points]
    return [als, *[trial for trial in planned if trial != als]][:num_trials]


def search_als(context: StageContext, num_trials: int) -> list[Trial]:
    """Train and judge each planned trial on all folds of the run, which must be select folds; write ``trials``.

    Judged are the lists of ``ranking.scope`` at the first of ``evaluation.ks``. What the last trial wrote of ALS stays in
    ``vectors`` and ``candidates``: train with the best settings afterwards.
    """
    assert all(fold.purpose == "select" for fold in context.folds), "a test fold never picks a setting"
    trials = []
    for als in plan_trials(context.settings.als, num_trials, context.settings.seed):
        trial = _try(context, als)
        trials.append(trial)
        context.say(f"trial {len(trials)}: {' '.join(trial.overrides)}: {HEADLINE} {trial.ndcg:.5f}")
    chosen = best_of(trials)
    rows = [
        {
            C.RUN_ID: context.run_id,
            C.TRIAL: number,
            C.SETTINGS: " ".join(trial.overrides),
            C.SELECTED_ON: " ".join(fold.name for fold in context.folds),
            C.SCOPE: context.settings.ranking.scope,
            C.K: context.settings.evaluation.ks[0],
            C.NDCG: trial.ndcg,
            C.NUM_USERS: trial.num_users,
            C.CHOSEN: trial is chosen,
        }
        for number, trial in enumerate(trials)
    ]
    context.tables.write("trials", rows_from(context.spark, "trials", rows), run_id=context.run_id)
    return trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest NDCG, the earliest of several."""
    return max(trials, key=lambda trial: round(trial.ndcg, 9))


def _try(context: StageContext, als: Als) -> Trial:
    tables, settings, folds = context.tables, context.settings, context.folds
    names, scope, k = [fold.name for fold in folds], settings.ranking.scope, settings.evaluation.ks[0]
    training_events = tables.read("training_events")
    feedback = tables.read("feedback") if settings.feedback.is_on else None
    with context.shared_folder() as folder:
        vectors = [
            train_als(training_events, fold, als, settings.seed, checkpoints=folder.path, feedback=feedback)
            for fold in folds
        ]
        tables.write("vectors", reduce(DataFrame.unionByName, vectors), fold=names, model=MODEL)
    filters = filters_of(context)
    eligible = eligible_of_folds(tables.read("items"), folds, filters)
    scopes = dict.fromkeys(folds, (scope,))
    with (
        users_of_folds(tables, eligible, scopes, settings.feedback, filters, with_targets=folds) as users,
        context.shared_folder() as folder,
    ):
        rows = candidates_of(MODEL, tables, users, eligible, settings, folder)
        tables.write("candidates", rows, fold=names, source=MODEL)
    ndcg, num_users = _headline(list(_judged(context, names, scope, k)), k)
    return Trial(als=als, ndcg=ndcg, num_users=num_users)


def _judged(context: StageContext, names: Sequence[str], scope: str, k: int) -> Iterator[DataFrame]:
    tables = context.tables
    for name in names:
        lists = tables.read("candidates", fold=name, source=MODEL).where(F.col(C.SCOPE) == scope)
        buyers = num_buyers_of(tables.read("interactions", fold=name))
        targets = tables.read("targets", fold=name)
        yield judge_lists(lists, targets, buyers, fold=name, sources=[MODEL], slices=[scope_slice(scope)], ks=[k])


def _headline(judged: Sequence[DataFrame], k: int) -> tuple[float, int]:
    place = F.lit(metric_names([k]).index((HEADLINE, k)))
    users = reduce(DataFrame.unionByName, judged)
    row = users.agg(F.avg(F.get("values", place)), F.count("*")).first()
    assert row is not None
    return float(row[0] or 0.0), int(row[1])
