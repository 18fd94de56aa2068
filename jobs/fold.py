"""fold: per fold, each user's touched and home categories, the interactions, and the targets that judge.

./spark-submit.sh jobs/fold.py --config conf/complete_journey.yaml
"""

from xrec.evaluation.folds import histories_of, horizons_of
from xrec.features.interactions import describe_fold, interactions_of, targets_of, user_categories_of, weigh
from xrec.features.outliers import value_limits_of, winsorise
from xrec.runs.old_folds import FOLDS_FIGURE
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``value_limits``, ``user_categories``, ``interactions`` and ``targets`` of all folds of the run."""
    tables, settings, folds = context.tables, context.settings, context.folds
    events, names = context.indexed_events(), [fold.name for fold in folds]
    histories = histories_of(events, folds)
    tables.write("value_limits", value_limits_of(histories, settings.outliers), fold=names)
    weighted = weigh(winsorise(histories, context.read_folds("value_limits")), settings.weights)
    tables.write("user_categories", user_categories_of(weighted, settings.categories), fold=names)
    tables.write("interactions", interactions_of(weighted, settings.categories), fold=names)
    targets = targets_of(
        horizons_of(events, folds),
        context.read_folds("user_categories"),
        context.read_folds("interactions"),
        settings.categories,
    )
    tables.write("targets", targets, fold=names)
    figures = describe_fold(
        context.main_fold,
        tables.read("interactions", fold=context.main_fold.name),
        tables.read("user_categories", fold=context.main_fold.name),
        tables.read("targets", fold=context.main_fold.name),
    )
    return {**figures, FOLDS_FIGURE: " ".join(names)}


if __name__ == "__main__":
    main("fold", run)
