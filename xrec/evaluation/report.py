"""A fold's lists to rows of ``metrics``, and those rows as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.beyond import beyond_names, describe_lists, facts_of
from xrec.evaluation.exposure import COVERAGE, exposure_of
from xrec.evaluation.folds import Fold
from xrec.evaluation.intervals import BASELINE, summarise
from xrec.evaluation.macro import judge_categories, macro_names
from xrec.evaluation.metrics import judge_lists, metric_names, sources_of
from xrec.evaluation.reach import REACH, UNION, judge_reach, reach_names
from xrec.evaluation.slices import SCOPES, slices_of
from xrec.storage.shared import SharedFolder

HEADLINE = "ndcg"
POOLED = "pooled"
"""The fold of the figures of several folds together."""


@dataclass(frozen=True, kw_only=True)
class FoldRows:
    """What a fold is judged by: its rows of the tables of these names, and all of ``items``."""

    fold: Fold
    models: tuple[str, ...]
    """The sources that are judged, where they have candidates."""
    scopes: tuple[str, ...]
    """The scopes whose lists are judged."""
    candidates: DataFrame
    targets: DataFrame
    items: DataFrame
    user_categories: DataFrame
    buyers: DataFrame
    """(``item_idx``, ``num_buyers``) before as-of."""
    proposing: tuple[str, ...] = ()
    """The sources whose candidates are ranked, and whose reach is judged; none: it is not."""
    num_candidates: int = 0
    """Length of their lists in the first of the scopes."""

    def lists(self) -> DataFrame:
        """The candidates of the models that are judged, in the scopes that are judged."""
        return self.candidates.where(F.col(C.SOURCE).isin(*self.models) & F.col(C.SCOPE).isin(*self.scopes))

    def sources(self) -> dict[str, list[str]]:
        """The models that have lists in each scope.

        Raises
        ------
        ValueError
            There are none.
        """
        sources = sources_of(self.lists())
        if not sources:
            raise ValueError(
                f"table 'candidates': found no row of fold '{self.fold.name}', expected the lists of at least one source; "
                "run ./spark-submit.sh jobs/pipeline.py --only candidates with the same settings first"
            )
        return sources


def judge(folds: Sequence[FoldRows], settings: Evaluation, folder: SharedFolder, *, seed: int) -> DataFrame:
    """Folds to rows of ``metrics`` (without run_id), to be written while the ``folder`` lives.

    Of several folds also the figures of all their lists together, as fold ``pooled``: ``num_users`` counts a user once a fold,
    and a replicate draws him with all of them. A fold whose horizon has not passed has no targets: what its lists are like is
    known, their accuracy is not.

    Raises
    ------
    ValueError
        A fold has no candidates.
    """
    ks = settings.ks
    sources = {rows.fold.name: rows.sources() for rows in folds}
    num_compared = len({name for fold in sources.values() for names in fold.values() for name in names} - {BASELINE})
    metrics = [exposure_of(rows.lists(), rows.items, settings, num_compared=num_compared) for rows in folds]
    described = [_describe(rows, folder, ks) for rows in folds]
    judged = [_judge(rows, sources[rows.fold.name], ks) for rows in folds if rows.fold.has_targets]
    groups = [(described, beyond_names(ks), num_compared)]
    if judged:
        groups += [
            ([users for users, _ in judged], metric_names(ks), num_compared),
            ([macro for _, macro in judged], macro_names(ks), num_compared),
        ]
    if judged and (proposing := folds[0].proposing):
        parts = [_judge_reach(rows) for rows in folds if rows.fold.has_targets]
        groups.append((parts, reach_names(folds[0].num_candidates), len({UNION, *proposing} - {BASELINE})))
    for parts, names, num_compared in groups:
        users = reduce(DataFrame.unionByName, parts)
        if len(parts) > 1:
            users = users.unionByName(users.withColumn(C.FOLD, F.lit(POOLED)))
        metrics.append(summarise(users, names, settings, seed, num_compared=num_compared))
    return reduce(DataFrame.unionByName, metrics)


def _describe(rows: FoldRows, folder: SharedFolder, ks: Sequence[int]) -> DataFrame:
    num_users = rows.user_categories.select(C.USER_IDX).distinct().count()
    facts = folder.share(facts_of(rows.items, rows.buyers, num_users=num_users))
    return describe_lists(rows.lists(), rows.user_categories, facts, ks=ks)


def _judge(rows: FoldRows, of_scopes: Mapping[str, Sequence[str]], ks: Sequence[int]) -> tuple[DataFrame, DataFrame]:
    """Users judged by hits, and by categories, of the models that have lists in a slice's scope."""
    slices, sources = slices_of(rows.scopes), sorted(set().union(*of_scopes.values()))
    judged = [F.col(C.MODEL).isin(*of_scopes.get(one.scope, ())) & (F.col(C.SLICE) == one.name) for one in slices]
    lists = rows.lists().unionByName(cold_lists(rows, sources, k=max(ks)), allowMissingColumns=True)
    accuracy = judge_lists(
        lists, rows.targets, rows.buyers, fold=rows.fold.name, sources=sources, slices=slices, ks=ks
    ).drop(C.NUM_TARGETS)
    whole = [one for one in slices if one.name in rows.scopes]
    macro = judge_categories(lists, rows.targets, fold=rows.fold.name, sources=sources, slices=whole, ks=ks)
    return accuracy.where(reduce(or_, judged)), macro.where(reduce(or_, judged))


def _judge_reach(rows: FoldRows) -> DataFrame:
    return judge_reach(
        rows.candidates, rows.targets, sources=rows.proposing, scope=rows.scopes[0], k=rows.num_candidates
    )


def cold_lists(rows: FoldRows, sources: Sequence[str], *, k: int) -> DataFrame:
    """The lists of users without history: (``fold``, ``source``, ``scope``, ``user_idx``, ``items``).

    Popularity's own K best items; the other sources have nothing for them, and they are served no list.
    """
    top = rows.buyers.join(rows.items.where(C.RECOMMENDABLE), C.ITEM_IDX, how="left_semi")
    best = top.orderBy(F.desc(C.NUM_BUYERS), C.ITEM_IDX).limit(k).select(C.ITEM_IDX).collect()
    listed = [F.lit(source) for source in sources if source == C.POPULARITY]
    users = rows.targets.where(C.COLD_USER).select(C.FOLD, C.USER_IDX).distinct()
    return users.select(
        C.FOLD,
        F.explode(F.array(*listed).cast("array<string>")).alias(C.SOURCE),
        F.lit(rows.scopes[0]).alias(C.SCOPE),
        C.USER_IDX,
        F.array(*[F.lit(row[0]) for row in best]).cast("array<int>").alias(C.ITEMS),
    )


def describe_metrics(metrics: DataFrame, fold: Fold, settings: Evaluation) -> dict[str, str]:
    """Rows of ``metrics`` of one run to its headline figures, such as 'ndcg@10 touched blend': '0.0581 [0.0551, 0.0612]'.

    The figures are the users judged, NDCG and coverage at the first of ``evaluation.ks``, and the reach of the candidates; the
    table has all of them.
    """
    k = settings.ks[0]
    is_shown = F.col(C.METRIC).isin(HEADLINE, COVERAGE) & (F.col(C.K) == k) & F.col(C.SLICE).isin(*SCOPES)
    shown = metrics.where(is_shown | (F.col(C.METRIC) == REACH))
    # A row a model, slice and fold: no more than a screen of them.
    rows = sorted(
        of_one_fold(shown.collect(), fold.name),
        key=lambda row: (row[C.SLICE] != "touched", row[C.METRIC] != HEADLINE, row[C.MODEL]),
    )
    figures = {}
    if not fold.has_targets:
        figures["accuracy"] = (
            f"fold '{fold.name}' serves: its lists can be judged when the horizon ({fold.horizon}) has passed; "
            "until then their coverage alone is known"
        )
    for row in (row for row in rows if row[C.METRIC] != REACH):
        if row[C.METRIC] == HEADLINE:
            figures.setdefault(f"users {row[C.SLICE]}", f"{row[C.NUM_USERS]:,} with targets")
        figures[f"{row[C.METRIC]}@{k} {row[C.SLICE]} {row[C.MODEL]}"] = describe_figure(row)
    return figures | describe_reach([row for row in rows if row[C.METRIC] == REACH])


def describe_reach(rows: Sequence[Row]) -> dict[str, str]:
    """The rows of ``metrics`` with the reach of the sources and their union to one figure; none where there are none."""
    if not rows:
        return {}
    union = next(row for row in rows if row[C.MODEL] == UNION)
    best = max((row for row in rows if row is not union), key=lambda row: (row[C.VALUE], row[C.MODEL]))
    text = f"{describe_value(union)} of the targets, best single source {best[C.MODEL]} {describe_value(best)}"
    return {f"{REACH}@{union[C.K]} {union[C.SLICE]} {UNION}": text}


def of_one_fold(rows: Sequence[Row], fold: str) -> list[Row]:
    """Those rows of ``metrics`` that are of all folds together, or where there was one fold, of it."""
    is_pooled = any(row[C.FOLD] == POOLED for row in rows)
    return [row for row in rows if row[C.FOLD] == (POOLED if is_pooled else fold)]


def describe_figure(row: Row) -> str:
    """One row of ``metrics`` as text: value, interval, and difference to popularity in per cent of popularity."""
    if row[C.LOW] is None:
        return f"{row[C.VALUE]:.4f}"
    text = describe_value(row)
    if row[C.MODEL] == BASELINE or row[C.DIFFERENCE] is None:
        return text
    popularity = row[C.VALUE] - row[C.DIFFERENCE]
    if popularity <= 0:
        return f"{text} (popularity hits nothing)"
    mean, low, high = (100 * row[name] / popularity for name in (C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH))
    verdict = "" if is_significant(row) else " (not significant)"
    return f"{text} {mean:+.1f} % [{low:+.1f}, {high:+.1f}] vs {BASELINE}{verdict}"


def describe_value(row: Row) -> str:
    """One row of ``metrics`` as text: value and interval."""
    return f"{row[C.VALUE]:.4f} [{row[C.LOW]:.4f}, {row[C.HIGH]:.4f}]"


def is_significant(row: Row) -> bool:
    """Whether a row of ``metrics`` differs from popularity, all models of its slice being compared."""
    return bool(row[C.ADJUSTED_LOW] > 0 or row[C.ADJUSTED_HIGH] < 0)
