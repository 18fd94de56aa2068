"""train_rankers: learn from the select folds which candidates are bought, and rank those of every later fold.

./spark-submit.sh jobs/train_rankers.py --set ranker.num_trees=200
./spark-submit.sh jobs/train_rankers.py --set 'ranker.models=[logistic]'
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.folds import select_folds_before
from xrec.generators.sources import serving_sources
from xrec.ranking.blend import length_of_lists
from xrec.ranking.features import FoldFacts, feature_rows
from xrec.ranking.lists import in_scope
from xrec.ranking.rankers import check_slots, rank_folds
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.tables import rows_from


def run(context: StageContext) -> Figures:
    """Write ``candidates`` of each ranker, in the scope that serves, of all folds that have an older select fold."""
    tables, settings = context.tables, context.settings
    older = {fold: select_folds_before(fold, context.folds) for fold in context.folds}
    learned_from = {fold: known for fold, known in older.items() if known}
    models = settings.ranker.models
    if not models:
        return {"rankers": "none (ranker.models is empty)"}
    # Also without any rows: those of an earlier run, with other folds, would stay.
    nothing, names = rows_from(context.spark, "candidates", []), [fold.name for fold in context.folds]
    if not learned_from:
        tables.write("candidates", nothing, fold=names, source=list(models))
        return {"rankers": "none (no select fold to learn from)"}
    check_slots(context.spark, settings.ranker)
    sources = serving_sources(settings)
    proposed = in_scope(tables.read("candidates"), context.folds, settings.ranking.scope)
    left_out: list[str] = []
    with context.shared_folder() as folder:
        features = {}
        for fold in context.folds:
            facts = FoldFacts(
                fold=fold,
                interactions=tables.read("interactions", fold=fold.name),
                user_categories=tables.read("user_categories", fold=fold.name),
                items=tables.read("items"),
            )
            candidates = proposed.where(F.col(C.FOLD) == fold.name)
            features[fold] = folder.keep(feature_rows(candidates, facts, sources, settings.ranking))
            context.say(f"{fold.name}: features done")
        ranked = rank_folds(
            features,
            tables.read("targets"),
            learned_from,
            sources,
            settings,
            folder,
            k=length_of_lists(settings),
            calibrated=context.judged_folds,
            say=left_out.append,
        )
        rows = reduce(DataFrame.unionByName, ranked.values(), nothing)
        tables.write("candidates", rows, fold=names, source=list(models))
    known = ", ".join(fold.name for fold in learned_from.get(context.main_fold, []))
    if context.main_fold not in ranked:
        return {"rankers": f"none (of what was proposed in {known} nothing was bought)"}
    figures = {"rankers": ", ".join(models), "learned_from": known}
    if left_out:
        figures["rows_learned_from"] = "; ".join(left_out)
    if context.main_fold.skip_last is None:
        figures["probabilities"] = f"that an item is bought within {older[context.main_fold][-1].days}"
    return figures


if __name__ == "__main__":
    main("train_rankers", run)
