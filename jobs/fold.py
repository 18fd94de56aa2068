"""fold: per fold, each user's touched and home categories, the interactions, and the targets that judge.

./spark-submit.sh jobs/fold.py --config conf/complete_journey.yaml
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec.evaluation.folds import history_of, horizon_of
from xrec.features.interactions import describe_fold, interactions_of, targets_of, user_categories_of, weigh
from xrec.features.outliers import value_limits_of, winsorise
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``value_limits``, ``user_categories``, ``interactions`` and ``targets`` of all folds of the run."""
    tables, settings, folds = context.tables, context.settings, context.folds
    events = context.indexed_events()
    names = [fold.name for fold in folds]
    histories = {fold.name: history_of(events, fold) for fold in folds}
    limits = [value_limits_of(histories[fold.name], fold, settings.outliers) for fold in folds]
    tables.write("value_limits", reduce(DataFrame.unionByName, limits), fold=names)
    weighted = {}
    for fold in folds:
        within = winsorise(histories[fold.name], tables.read("value_limits", fold=fold.name))
        weighted[fold.name] = weigh(within, fold, settings.weights)
    mixes = [user_categories_of(weighted[fold.name], fold, settings.categories) for fold in folds]
    tables.write("user_categories", reduce(DataFrame.unionByName, mixes), fold=names)
    had = [interactions_of(weighted[fold.name], fold, settings.categories) for fold in folds]
    tables.write("interactions", reduce(DataFrame.unionByName, had), fold=names)
    targets = [
        targets_of(
            horizon_of(events, fold),
            tables.read("user_categories", fold=fold.name),
            tables.read("interactions", fold=fold.name),
            fold,
            settings.categories,
        )
        for fold in folds
    ]
    tables.write("targets", reduce(DataFrame.unionByName, targets), fold=names)
    return describe_fold(
        context.main_fold,
        tables.read("interactions", fold=context.main_fold.name),
        tables.read("user_categories", fold=context.main_fold.name),
        tables.read("targets", fold=context.main_fold.name),
    )


if __name__ == "__main__":
    main("fold", run)
