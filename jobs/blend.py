"""blend: choose the sources' weights on the select folds, and blend every fold's candidates.

./spark-submit.sh jobs/blend.py --set ranking.weight_step=0.25
"""

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.ranking.blend import SOURCE, blend, choice_rows, choose_weights, describe_choices
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.tables import rows_from


def run(context: StageContext) -> Figures:
    """Write ``blend_weights``, and ``candidates`` of the source blend of all folds of the run."""
    tables, settings = context.tables, context.settings
    names = [fold.name for fold in context.folds]
    candidates = tables.read("candidates").where(F.col(C.FOLD).isin(names))
    select = [fold.name for fold in context.folds if fold.purpose == "select"]
    choices = choose_weights(candidates, tables.read("targets"), settings.ranking, scopes=settings.scopes, folds=select)
    figures = describe_choices(choices)
    for name, figure in figures.items():
        context.say(f"{name}: {figure}")
    tables.write("blend_weights", rows_from(context.spark, "blend_weights", choice_rows(choices)))
    longest = max(settings.ranking.top_k, *settings.evaluation.ks)
    tables.write("candidates", blend(candidates, choices, settings.ranking, k=longest), fold=names, source=SOURCE)
    return figures


if __name__ == "__main__":
    main("blend", run)
