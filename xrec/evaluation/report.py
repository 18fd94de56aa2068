"""A fold's lists to rows of ``metrics``, and those rows as a person reads them."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.beyond import beyond_names, describe_lists, facts_of
from xrec.evaluation.folds import Fold
from xrec.evaluation.intervals import BASELINE, summarise
from xrec.evaluation.metrics import COVERAGE, exposure_of, judge_lists, metric_names, sources_of
from xrec.storage.shared import SharedFolder

HEADLINE = "ndcg"


@dataclass(frozen=True, kw_only=True)
class FoldRows:
    """What a fold is judged by: its rows of the tables of these names, and all of ``items``."""

    fold: Fold
    candidates: DataFrame
    targets: DataFrame
    items: DataFrame
    user_categories: DataFrame
    buyers: DataFrame
    """(``item_idx``, ``num_buyers``) before as-of."""

    def sources(self) -> list[str]:
        """The sources that have candidates.

        Raises
        ------
        ValueError
            There are none.
        """
        sources = sources_of(self.candidates)
        if not sources:
            raise ValueError(
                f"table 'candidates': found no row of fold '{self.fold.name}', expected the lists of at least one source; "
                "run ./spark-submit.sh jobs/pipeline.py --only candidates with the same settings first"
            )
        return sources


def judge(rows: FoldRows, settings: Evaluation, folder: SharedFolder, *, seed: int, run_id: str) -> DataFrame:
    """A fold to rows of ``metrics``, to be written while the ``folder`` lives.

    A fold whose horizon has not passed has no targets: what its lists are like is known, their accuracy is not.

    Raises
    ------
    ValueError
        The fold has no candidates.
    """
    sources, candidates, items, fold = rows.sources(), rows.candidates, rows.items, rows.fold
    ks, num_users = settings.ks, rows.user_categories.select(C.USER_IDX).distinct().count()
    facts = folder.share(facts_of(items, rows.buyers, num_users=num_users))
    judged = [(describe_lists(candidates, rows.user_categories, facts, ks=ks), beyond_names(ks))]
    if fold.has_targets:
        judged.append((judge_lists(candidates, rows.targets, rows.buyers, sources=sources, ks=ks), metric_names(ks)))
    num_compared = len(set(sources) - {BASELINE})
    metrics = exposure_of(candidates, items, ks=ks)
    for users, names in judged:
        metrics = metrics.unionByName(summarise(users, names, settings, seed, num_compared=num_compared))
    return metrics.withColumn(C.RUN_ID, F.lit(run_id))


def describe_metrics(metrics: DataFrame, fold: Fold, settings: Evaluation) -> dict[str, str]:
    """Rows of ``metrics`` of one run to its headline figures, such as 'ndcg@10 touched blend': '0.0581 [0.0551, 0.0612]'.

    The figures are the users judged, NDCG and coverage at the first of ``evaluation.ks``; the table has all of them.
    """
    k = settings.ks[0]
    shown = metrics.where(F.col(C.METRIC).isin(HEADLINE, COVERAGE) & (F.col(C.K) == k))
    # A row a model and slice: no more than a screen of them.
    rows = sorted(shown.collect(), key=lambda row: (row[C.SLICE] != "touched", row[C.METRIC] != HEADLINE, row[C.MODEL]))
    figures = {}
    if not fold.has_targets:
        figures["accuracy"] = (
            f"fold '{fold.name}' serves: its lists can be judged when the horizon ({fold.horizon}) has passed; "
            "until then their coverage alone is known"
        )
    for row in rows:
        if row[C.METRIC] == HEADLINE:
            figures.setdefault(f"users {row[C.SLICE]}", f"{row[C.NUM_USERS]:,} with targets")
        figures[f"{row[C.METRIC]}@{k} {row[C.SLICE]} {row[C.MODEL]}"] = describe_figure(row)
    return figures


def describe_figure(row: Row) -> str:
    """One row of ``metrics`` as text: value, interval, and difference to popularity in per cent of popularity."""
    if row[C.LOW] is None:
        return f"{row[C.VALUE]:.4f}"
    text = f"{row[C.VALUE]:.4f} [{row[C.LOW]:.4f}, {row[C.HIGH]:.4f}]"
    if row[C.MODEL] == BASELINE or row[C.DIFFERENCE] is None:
        return text
    popularity = row[C.VALUE] - row[C.DIFFERENCE]
    if popularity <= 0:
        return f"{text} (popularity hits nothing)"
    mean, low, high = (100 * row[name] / popularity for name in (C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH))
    verdict = "" if is_significant(row) else " (not significant)"
    return f"{text} {mean:+.1f} % [{low:+.1f}, {high:+.1f}] vs {BASELINE}{verdict}"


def is_significant(row: Row) -> bool:
    """Whether a row of ``metrics`` differs from popularity, all models of its slice being compared."""
    return bool(row[C.ADJUSTED_LOW] > 0 or row[C.ADJUSTED_HIGH] < 0)
