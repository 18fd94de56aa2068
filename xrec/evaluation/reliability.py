"""Whether a score that is a probability means what it says: what was foretold beside what came, in bins of equal size.

- predicted, observed: the mean of the scores of a bin's rows, and the share of them that the user bought within the horizon
  (reliability diagram; Murphy, Winkler 1977)
- ece: sum over the bins of (rows of the bin / all rows) x |observed - predicted| (Naeini et al. 2015), 0 at best

Rows are those of the lists of a scope, of all users: who bought nothing counts as well. A bin's interval is Wilson's, with the
number of rows that the rows of users, who buy much or little, are worth (Korn, Graubard 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.metrics import no_interval
from xrec.evaluation.report import FoldRows
from xrec.evaluation.slices import scope_slice
from xrec.lists import ranked_rows, shortened

ECE = "ece"
LABEL = "label"
NUM_BINS = 10
_EDGES, _NUM, _SUM, _BOUGHT = "edges", "num", "sum", "bought"
_LIST = [C.FOLD, C.SOURCE, C.SCOPE]


def labelled_lists(lists: DataFrame, targets: DataFrame, *, scope: str) -> DataFrame:
    """Lists of a scope to one row an item, with ``label``: 1.0 where it is a target of the user in the fold, else 0.0."""
    key = [C.FOLD, C.USER_IDX, C.ITEM_IDX]
    bought = targets.where(scope_slice(scope).holds).select(*key, F.lit(1.0).alias(LABEL))
    return ranked_rows(lists.where(F.col(C.SCOPE) == scope)).join(bought, key, how="left").fillna(0.0, [LABEL])


def has_both_labels(labelled: DataFrame) -> bool:
    """Whether some rows were bought and some were not: a model has nothing to learn from others."""
    labels = labelled.agg(F.min(LABEL), F.max(LABEL)).first()
    assert labels is not None
    return (labels[0], labels[1]) == (0.0, 1.0)


def reliability_of(rows: FoldRows, models: Sequence[str], scope: str, settings: Evaluation) -> DataFrame:
    """A fold's lists up to the first of ``evaluation.ks`` to rows of ``reliability`` (without run_id): each model's bins.

    ``models`` are those whose score is a probability; of them those that the fold is judged by count. A model whose scores are
    all alike has one bin.
    """
    judged = [model for model in models if model in rows.models]
    lists = shortened(rows.candidates.where(F.col(C.SOURCE).isin(*judged)), settings.ks[0])
    labelled = labelled_lists(lists, rows.targets, scope=scope)
    inner = [n / NUM_BINS for n in range(1, NUM_BINS)]
    edges = labelled.groupBy(*_LIST).agg(F.array_distinct(F.percentile_approx(C.SCORE, inner)).alias(_EDGES))
    above = F.size(F.filter(_EDGES, lambda edge: edge < F.col(C.SCORE)))
    binned = labelled.join(F.broadcast(edges), _LIST, how="inner").withColumn(C.BIN, 1 + above)
    of_user = binned.groupBy(*_LIST, C.BIN, C.USER_IDX).agg(
        F.count("*").alias(_NUM), F.sum(F.col(C.SCORE).cast("double")).alias(_SUM), F.sum(LABEL).alias(_BOUGHT)
    )
    num, bought = F.sum(_NUM), F.sum(_BOUGHT)
    share = bought / num
    squares = (
        F.sum(F.col(_BOUGHT) ** 2)
        - 2 * share * F.sum(F.col(_BOUGHT) * F.col(_NUM))
        + share**2 * F.sum(F.col(_NUM) ** 2)
    )
    bins = of_user.groupBy(*_LIST, C.BIN).agg(
        num.alias(C.NUM_ROWS),
        F.count("*").alias(C.NUM_USERS),
        (F.sum(_SUM) / num).alias(C.PREDICTED),
        share.alias(C.OBSERVED),
        (squares / num**2).alias("variance"),
    )
    observed = F.col(C.OBSERVED)
    worth = F.when(F.col("variance") > 0, observed * (1 - observed) / F.col("variance"))
    n = F.least(F.coalesce(worth, F.col(C.NUM_ROWS)), F.col(C.NUM_ROWS))
    z = NormalDist().inv_cdf((1 + settings.confidence) / 2)
    middle = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * F.sqrt(observed * (1 - observed) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    named = bins.withColumnsRenamed({C.SOURCE: C.MODEL, C.SCOPE: C.SLICE})
    return named.select(
        C.FOLD,
        C.MODEL,
        C.SLICE,
        F.col(C.BIN).cast("int"),
        C.NUM_ROWS,
        C.NUM_USERS,
        C.PREDICTED,
        C.OBSERVED,
        F.greatest(middle - half, F.lit(0.0)).alias(C.LOW),
        F.least(middle + half, F.lit(1.0)).alias(C.HIGH),
    )


def ece_of(reliability: DataFrame, settings: Evaluation) -> DataFrame:
    """Rows of :func:`reliability_of` to rows of ``metrics`` (without run_id): each model's ``ece``."""
    gap = F.sum(F.col(C.NUM_ROWS) * F.abs(F.col(C.OBSERVED) - F.col(C.PREDICTED))) / F.sum(C.NUM_ROWS)
    found = reliability.groupBy(C.FOLD, C.MODEL, C.SLICE).agg(
        gap.alias(C.VALUE), F.max(C.NUM_USERS).cast("bigint").alias(C.NUM_USERS)
    )
    return found.select(
        C.FOLD,
        C.MODEL,
        C.SLICE,
        F.lit(ECE).alias(C.METRIC),
        F.lit(settings.ks[0]).alias(C.K),
        C.VALUE,
        *no_interval(),
        C.NUM_USERS,
    )
