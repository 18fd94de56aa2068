"""From a ranker's log-odds to the probability that the user buys the item within the horizon.

What a ranker was fitted on is not what its lists meet: it saw users with targets alone, a part of what was not bought, and its
own training rows. So its log-odds z are mapped to p = 1 / (1 + exp(-(a z + b))) (Platt 1999), a and b fitted on lists that
knew nothing later: those of the newest older fold, made by the ranker of that fold, with all users and all that was not
bought. Where there is no such list (a fold with one older fold), a = 1 and b = ln(share of the negatives that were learned
from), which undoes the sampling alone (King, Zeng 2001, eq. 7). The order of a list never changes: a > 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.reliability import LABEL, has_both_labels, labelled_lists

_VECTOR = "features"
_LEAST_SLOPE = 0.05
"""A slope below it would say that the ranker knows nothing, and one below 0 would turn its lists round."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """p = 1 / (1 + exp(-(slope z + intercept)))."""

    slope: float
    intercept: float

    @classmethod
    def of_sampling(cls, negative_share: float) -> Calibration:
        """The one that undoes the sampling of what was not bought."""
        return cls(slope=1.0, intercept=math.log(negative_share))

    def of(self, log_odds: Column) -> Column:
        """The probability as float32."""
        return (1 / (1 + F.exp(-(self.slope * log_odds + self.intercept)))).cast("float")


def fit_calibrations(
    lists: DataFrame, targets: DataFrame, models: Sequence[str], *, scope: str
) -> dict[str, Calibration]:
    """The calibration of each model, by lists of a fold before it, whose scores are log-odds; none where it hit nothing."""
    labelled = labelled_lists(lists, targets, scope=scope).select(C.SOURCE, C.SCORE, LABEL)
    found = {}
    for model in models:
        if (fitted := _fit(labelled.where(F.col(C.SOURCE) == model))) is not None:
            found[model] = fitted
    return found


def _fit(labelled: DataFrame) -> Calibration | None:
    if not has_both_labels(labelled):
        return None
    assembler = VectorAssembler(inputCols=[C.SCORE], outputCol=_VECTOR)
    regression: Any = LogisticRegression(featuresCol=_VECTOR, labelCol=LABEL, regParam=0.0, standardization=False)
    model = regression.fit(assembler.transform(labelled))
    slope, intercept = float(model.coefficients[0]), float(model.intercept)
    if slope >= _LEAST_SLOPE:
        return Calibration(slope=slope, intercept=intercept)
    # The lists hardly know what is bought: the mean of what was is all that may be said, and the order stays.
    mean = labelled.agg(F.avg(LABEL), F.avg(C.SCORE)).first()
    assert mean is not None
    return Calibration(slope=_LEAST_SLOPE, intercept=math.log(mean[0] / (1 - mean[0])) - _LEAST_SLOPE * mean[1])


def with_probabilities(lists: DataFrame, calibrations: Mapping[str, Calibration]) -> DataFrame:
    """Lists of models whose scores are log-odds, with the probabilities in their place."""
    scores = [
        F.when(F.col(C.SOURCE) == model, F.transform(C.SCORES, calibration.of))
        for model, calibration in calibrations.items()
    ]
    return lists.withColumn(C.SCORES, F.coalesce(*scores))
