"""choose: which model serves, by its lists in the select folds, and that model's lists as those that are served.

./spark-submit.sh jobs/choose.py --set evaluation.confidence=0.99
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.folds import select_folds_before
from xrec.generators.sources import serving_sources
from xrec.ranking.blend import SOURCE as BLEND
from xrec.ranking.blend import length_of_lists, read_choices
from xrec.ranking.evidence import JudgedFold, choose_model, folds_of_evidence
from xrec.ranking.lists import in_scope
from xrec.ranking.serving import describe_serving, served_lists, serving_rows
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.tables import rows_from


def run(context: StageContext) -> Figures:
    """Write ``serving_models``, and ``candidates`` of the source served of the judged folds, in the scope that serves."""
    tables, settings, main_fold = context.tables, context.settings, context.main_fold
    scope, sources = settings.ranking.scope, serving_sources(settings)
    select = select_folds_before(main_fold, context.folds)
    candidates = in_scope(tables.read("candidates"), context.folds, scope)
    singles = [*sources, C.FUSION]
    learned, learning = folds_of_evidence(select, candidates, (BLEND, *settings.ranker.models))
    serving = choose_model(
        [JudgedFold.read(tables, fold, scope, singles) for fold in select],
        settings.evaluation,
        singles=singles,
        learning=learning,
        learned=learned,
        scope=scope,
        seed=settings.seed,
    )
    figures = describe_serving(serving)
    for name, figure in figures.items():
        context.say(f"{name}: {figure}")
    tables.write("serving_models", rows_from(context.spark, "serving_models", serving_rows(main_fold.name, serving)))
    weights = tables.read("blend_weights")
    lists = [
        served_lists(
            serving.model,
            candidates.where(F.col(C.FOLD) == fold.name),
            read_choices(weights.where(F.col(C.FOLD) == fold.name), settings.ranking),
            settings,
            sources,
            k=length_of_lists(settings),
        )
        for fold in context.judged_folds
    ]
    names = [fold.name for fold in context.judged_folds]
    tables.write("candidates", reduce(DataFrame.unionByName, lists), fold=names, source=C.SERVED)
    return figures


if __name__ == "__main__":
    main("choose", run)
