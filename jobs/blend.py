"""blend: choose the sources' weights on the select folds, blend every fold's candidates by them, and fuse them by equal ones.

./spark-submit.sh jobs/blend.py --set ranking.weight_parts=4
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.folds import select_folds_before
from xrec.generators.sources import serving_sources
from xrec.ranking.blend import (
    SOURCE,
    blend,
    choice_rows,
    choose_weights,
    describe_choices,
    equal_weights,
    length_of_lists,
)
from xrec.ranking.lists import in_scope
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.tables import rows_from


def run(context: StageContext) -> Figures:
    """Write ``blend_weights``, and ``candidates`` of the sources blend and fusion.

    Those of blend are of all folds but the oldest one that chooses. In the scope that serves: of other scopes the sources are
    judged, each by itself.
    """
    tables, settings = context.tables, context.settings
    scope = settings.ranking.scope
    candidates = in_scope(tables.read("candidates"), context.folds, scope)
    older = {fold.name: [one.name for one in select_folds_before(fold, context.folds)] for fold in context.folds}
    names = [name for name in older if older[name] or name == context.main_fold.name]
    choices = choose_weights(
        candidates,
        tables.read("targets"),
        settings.ranking,
        scopes=[scope],
        folds={name: older[name] for name in names},
    )
    figures = describe_choices(choices[context.main_fold.name])
    for name, figure in figures.items():
        context.say(f"{name}: {figure}")
    rows = [row for name in names for row in choice_rows(name, choices[name])]
    tables.write("blend_weights", rows_from(context.spark, "blend_weights", rows))
    longest = length_of_lists(settings)
    blended = [
        blend(candidates.where(F.col(C.FOLD) == name), choices[name], settings.ranking, k=longest) for name in names
    ]
    tables.write("candidates", reduce(DataFrame.unionByName, blended), fold=names, source=SOURCE)
    folds = [fold.name for fold in context.folds]
    alike = [equal_weights(scope, serving_sources(settings))]
    fused = blend(candidates.where(F.col(C.FOLD).isin(*folds)), alike, settings.ranking, k=longest, source=C.FUSION)
    tables.write("candidates", fused, fold=folds, source=C.FUSION)
    return figures


if __name__ == "__main__":
    main("blend", run)
