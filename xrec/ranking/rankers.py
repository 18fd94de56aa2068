"""Rankers that learn from older folds which candidates are bought, and give each candidate a probability.

- logistic: a regression on the votes 1 / (c + rank) of the sources and the other features, what is missing counted as 0
- trees: gradient-boosted trees (Chen, Guestrin 2016), which know missing from small
- listwise: trees that learn the order of each user's candidates, by what a swap of two changes his NDCG (LambdaMART, Burges 2010);
  all lists count alike, as XGBoost on Spark weighs rows and not lists
- ensemble: the mean of the log-odds of logistic and trees

A row is a candidate of a user with a target; its label is whether he bought it within the horizon. A ranker of a fold learns
from the select folds before it alone, from all alike or most from the newest (``ranker.fold_decay``). The score that a candidate
gets is the probability of its :mod:`xrec.ranking.calibration`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from typing import Any

from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranker, Ranking, Settings
from xrec.evaluation.folds import Fold
from xrec.evaluation.reliability import LABEL, has_both_labels
from xrec.evaluation.slices import scope_slice
from xrec.lists import best_lists
from xrec.ranking.calibration import Calibration, fit_calibrations, with_probabilities
from xrec.ranking.features import feature_names, rank_of
from xrec.storage.shared import SharedFolder

LOGISTIC, TREES, LISTWISE, ENSEMBLE = "logistic", "trees", "listwise", "ensemble"
_LEARNED = (LOGISTIC, TREES, LISTWISE)
"""What is learned; the ensemble is made of it."""
_VECTOR, _PROBABILITY, _LIST, _WEIGHT = "features", "probability", "list", "weight"
_KEY = [C.FOLD, C.SCOPE, C.USER_IDX, C.ITEM_IDX]
_PARTS = 1 << 20
_PAIRS_A_ROW = 8
"""Swaps that a row of a list is in, at least."""
_LEAVES = 20
"""Leaves that rows can always fill: trees of one leaf tell nothing apart."""
_MOST_WORKERS = 2
"""Tasks that grow the trees where nobody asks for more: the same trees on every machine of two slots or more."""
_LIST_CHILD_WEIGHT = 1.0
"""Weight that a leaf needs where trees learn orders: a row's weight is what its swaps change, far less than p (1 - p)."""


class RankerError(ValueError):
    """Rankers that cannot be learned here; the message names the setting."""


def training_rows(features: DataFrame, targets: DataFrame, *, scope: str, share: float, seed: int) -> DataFrame:
    """Feature rows of users with targets, with ``label``; of what was not bought a share, chosen by a hash of seed and key."""
    bought = targets.where(scope_slice(scope).holds).select(C.FOLD, C.USER_IDX, C.ITEM_IDX)
    users = bought.select(C.FOLD, C.USER_IDX).distinct()
    labelled = features.join(users, [C.FOLD, C.USER_IDX], how="left_semi").join(
        bought.withColumn(LABEL, F.lit(1.0)), [C.FOLD, C.USER_IDX, C.ITEM_IDX], how="left"
    )
    drawn = F.pmod(F.xxhash64(F.lit(seed), *_KEY), F.lit(_PARTS)) < int(share * _PARTS)
    return labelled.fillna(0.0, [LABEL]).where((F.col(LABEL) > 0) | drawn)


def weight_of(older: Sequence[Fold], decay: float) -> Column:
    """What a training row counts: 1 in the newest of the folds (oldest first), in each other ``decay`` of the next newer one."""
    place = F.array_position(F.array(*(F.lit(fold.name) for fold in older)), F.col(C.FOLD))
    return F.pow(F.lit(decay), F.lit(len(older)) - place)


def of_some_users(rows: DataFrame, *, max_rows: int, num_rows: int, seed: int) -> DataFrame:
    """Training rows, of which there are ``num_rows``, to all rows of as many users as have about ``max_rows``, chosen by a hash."""
    share = min(max_rows / max(num_rows, 1), 1.0)
    drawn = F.pmod(F.xxhash64(F.lit(seed), F.lit("learned_from"), C.USER_IDX), F.lit(_PARTS)) < int(share * _PARTS)
    return rows.where(drawn) if share < 1 else rows


def rank_folds(
    features: Mapping[Fold, DataFrame],
    targets: DataFrame,
    learned_from: Mapping[Fold, Sequence[Fold]],
    sources: Sequence[str],
    settings: Settings,
    folder: SharedFolder,
    *,
    k: int,
    calibrated: Collection[Fold],
    say: Callable[[str], None] = print,
) -> dict[Fold, DataFrame]:
    """Each fold's lists by each of ``ranker.models``, of the K best: to be written while the ``folder`` lives.

    A fold is left out where of the candidates of its older folds none was bought, or all: there is nothing to tell apart.

    The score is the probability that the user buys the item within the horizon, by the lists of an older fold where the fold is
    one of the ``calibrated``; of other folds the order alone counts, and the score does no more than undo the sampling.

    Parameters
    ----------
    features
        Each fold's rows of :func:`xrec.ranking.features.feature_rows`, of one scope: ``ranking.scope``.
    targets
        Rows of the table of this name.
    learned_from
        For each fold that is ranked the older folds that its rankers learn from, oldest first, as are the folds.
    say
        Is told of each fold in which ``ranker.max_rows`` leaves out users.
    """
    ranker, ranking = settings.ranker, settings.ranking
    by_sampling = dict.fromkeys(ranker.models, Calibration.of_sampling(ranker.negative_share))
    lists: dict[Fold, DataFrame] = {}
    ranked: dict[Fold, DataFrame] = {}
    for fold, older in learned_from.items():
        known = reduce(DataFrame.unionByName, [features[one] for one in older])
        labelled = training_rows(known, targets, scope=ranking.scope, share=ranker.negative_share, seed=settings.seed)
        rows = folder.keep(labelled.withColumn(_WEIGHT, weight_of(older, ranker.fold_decay)))
        if (num_rows := rows.count()) > ranker.max_rows:
            say(f"{fold.name}: of users with about {ranker.max_rows:,} of {num_rows:,} rows (ranker.max_rows)")
            rows = of_some_users(rows, max_rows=ranker.max_rows, num_rows=num_rows, seed=settings.seed)
        if not has_both_labels(rows):
            continue
        scored = features[fold]
        if _is_wanted(LOGISTIC, ranker):
            scored = _learn_logistic(rows, scored, sources, ranker, ranking)
        if _is_wanted(TREES, ranker):
            scored = _learn_trees(rows, scored, sources, ranker, seed=settings.seed)
        if _is_wanted(LISTWISE, ranker):
            names = [one.name for one in older]
            scored = _learn_order(rows, scored, names, sources, ranker, seed=settings.seed)
        lists[fold] = folder.keep(_top_of(scored, ranker, k=k))
        newest = lists.get(older[-1]) if fold in calibrated else None
        fitted = fit_calibrations(newest, targets, ranker.models, scope=ranking.scope) if newest is not None else {}
        ranked[fold] = with_probabilities(lists[fold], by_sampling | fitted)
    return ranked


def check_slots(spark: SparkSession, ranker: Ranker) -> None:
    """Raise RankerError where the trees' tasks, which must run at the same time, never will: Spark would wait for minutes first."""
    slots = spark.sparkContext.defaultParallelism
    if slots < num_workers(spark, ranker) and (_is_wanted(TREES, ranker) or _is_wanted(LISTWISE, ranker)):
        raise RankerError(
            f"ranker.num_workers: found {ranker.num_workers}, but Spark has {slots} task slots, expected as many; submit with "
            f"--master 'local[{ranker.num_workers}]' or with enough executor cores, or set ranker.num_workers={slots}"
        )


def num_workers(spark: SparkSession, ranker: Ranker) -> int:
    """Tasks that grow the trees: those that the settings ask for, else as many as run at once, up to two."""
    return ranker.num_workers or min(spark.sparkContext.defaultParallelism, _MOST_WORKERS)


def _is_wanted(model: str, ranker: Ranker) -> bool:
    return model in ranker.models or (model in (LOGISTIC, TREES) and ENSEMBLE in ranker.models)


def _learn_logistic(
    rows: DataFrame, features: DataFrame, sources: Sequence[str], ranker: Ranker, ranking: Ranking
) -> DataFrame:
    """The feature rows with the log-odds of a logistic regression on training rows."""
    assembler = VectorAssembler(inputCols=[_linear(name) for name in feature_names(sources)], outputCol=_VECTOR)
    regression = LogisticRegression(
        featuresCol=_VECTOR,
        labelCol=LABEL,
        weightCol=_WEIGHT,
        probabilityCol=_PROBABILITY,
        regParam=ranker.reg_param,
        maxIter=ranker.max_iter,
    )
    prepared = _prepared(sources, ranking.fusion_constant)
    fitted: Any = regression.fit(assembler.transform(rows.withColumns(prepared)))
    scored: DataFrame = fitted.transform(assembler.transform(features.withColumns(prepared)))
    return scored.select(*features.columns, _log_odds().alias(LOGISTIC))


def _prepared(sources: Sequence[str], constant: float) -> dict[str, Column]:
    """The features as a linear model can use them: ranks as votes, and 0 for what is missing."""
    votes = {rank_of(source) for source in sources}
    columns = {}
    for name in feature_names(sources):
        value = 1 / (F.col(name) + constant) if name in votes else F.col(name)
        columns[_linear(name)] = F.coalesce(value.cast("double"), F.lit(0.0))
    return columns


def _linear(name: str) -> str:
    return f"linear_{name}"


def _learn_trees(
    rows: DataFrame, features: DataFrame, sources: Sequence[str], ranker: Ranker, *, seed: int
) -> DataFrame:
    """The feature rows with the log-odds of boosted trees on training rows."""
    from xgboost.spark import SparkXGBClassifier  # noqa: PLC0415 - it takes a second, and only trees need it

    # A row adds p (1 - p) times what it counts, and few are bought: together the rows add about what these count.
    bought = rows.agg(F.sum(F.col(LABEL) * F.col(_WEIGHT))).first()
    assert bought is not None
    least = min(ranker.min_child_weight, ranker.row_share * bought[0] / _LEAVES)
    growth = _growth(rows, sources, ranker, seed) | {"min_child_weight": least}
    trees = SparkXGBClassifier(probability_col=_PROBABILITY, weight_col=_WEIGHT, **growth)
    scored: DataFrame = trees.fit(_spread(rows, ranker)).transform(features)
    return scored.select(*features.columns, _log_odds().alias(TREES))


def _learn_order(
    rows: DataFrame, features: DataFrame, folds: Sequence[str], sources: Sequence[str], ranker: Ranker, *, seed: int
) -> DataFrame:
    """The feature rows with the score of trees that learn the order within a user's list of each of these folds.

    Swaps of two rows drawn at random are learned from, so that not the first places alone count: older folds are few.
    """
    from xgboost.spark import SparkXGBRanker  # noqa: PLC0415 - as above

    growth = _growth(rows, sources, ranker, seed) | {"min_child_weight": _LIST_CHILD_WEIGHT}
    trees = SparkXGBRanker(
        qid_col=_LIST,
        objective="rank:ndcg",
        lambdarank_pair_method="mean",
        lambdarank_num_pair_per_sample=_PAIRS_A_ROW,
        **growth,
    )
    # XGBoost wants numbers that fit into 32 bits without a sign, and a list's rows together.
    place = F.array_position(F.array(*map(F.lit, folds)), F.col(C.FOLD)) - 1
    lists = rows.withColumn(_LIST, F.col(C.USER_IDX).cast("long") * len(folds) + place)
    ordered = _spread(lists, ranker)
    # XGBoost sorts by list once more. If Spark saw both sorts, it would leave out this one, which draws of swaps depend on.
    ordered = ordered.mapInArrow(lambda batches: batches, ordered.schema)
    scored: DataFrame = trees.fit(ordered).transform(features)
    return scored.select(*features.columns, F.col("prediction").alias(LISTWISE))


def _growth(rows: DataFrame, sources: Sequence[str], ranker: Ranker, seed: int) -> dict[str, Any]:
    """How trees grow, whatever they learn."""
    # It reports every phase of every fit as information.
    logging.getLogger("XGBoost-PySpark").setLevel(logging.WARNING)
    return {
        "features_col": feature_names(sources),
        "label_col": LABEL,
        "num_workers": num_workers(rows.sparkSession, ranker),
        "n_estimators": ranker.num_trees,
        "max_depth": ranker.max_depth,
        "learning_rate": ranker.learning_rate,
        "subsample": ranker.row_share,
        "colsample_bytree": ranker.feature_share,
        "min_child_weight": ranker.min_child_weight,
        "reg_lambda": ranker.reg_lambda,
        "tree_method": "hist",
        "random_state": seed % (1 << 31),
        "verbosity": 0,
        "verbose": False,
    }


def _spread(rows: DataFrame, ranker: Ranker) -> DataFrame:
    """A worker's rows are those of its users, in order: the same on every run."""
    return rows.repartition(num_workers(rows.sparkSession, ranker), C.USER_IDX).sortWithinPartitions(*_KEY)


def _log_odds() -> Column:
    probability = vector_to_array(F.col(_PROBABILITY))[1]
    kept = F.greatest(F.least(probability, F.lit(1 - 1e-9)), F.lit(1e-9))
    return F.ln(kept / (1 - kept))


def _top_of(scored: DataFrame, ranker: Ranker, *, k: int) -> DataFrame:
    """Rows with the scores of the models to their lists: each user's K best, ties by item."""
    score = {model: F.col(model) for model in _LEARNED if _is_wanted(model, ranker)}
    if ENSEMBLE in ranker.models:
        score[ENSEMBLE] = (score[LOGISTIC] + score[TREES]) / 2
    kinds = [
        F.struct(F.lit(model).alias(C.SOURCE), score[model].cast("float").alias(C.SCORE)) for model in ranker.models
    ]
    rows = scored.select(*_KEY, F.inline(F.array(*kinds)))
    return best_lists(rows, [C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX], k=k)
