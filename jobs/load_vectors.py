"""load_vectors: reads the vectors that the sequence models staged, checks them, and writes the table.

./spark-submit.sh jobs/load_vectors.py
./spark-submit.sh jobs/load_vectors.py --changed-since latest     takes over the vectors of users who did not change
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec.features.changed_users import vectors_taken_over
from xrec.features.sequence_files import models_used
from xrec.features.staged_vectors import find_staged, read_vectors
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``vectors`` of the sequence models among ``ranking.sources`` for all folds."""
    settings, main_fold = context.settings, context.main_fold.name
    folds, models = [fold.name for fold in context.folds], models_used(settings)
    if not models:
        return {"models": "none: ranking.sources names no sequence model"}
    staged = [find_staged(settings, fold, model) for model in models for fold in folds]
    vectors = [read_vectors(context.spark, folder, manifest) for folder, manifest in staged]
    figures = {
        f"{manifest.model} {manifest.fold}": f"{manifest.users:,} users, {manifest.items:,} items, dim {manifest.dim}"
        for _, manifest in staged
        if manifest.fold == main_fold
    }
    if settings.sequence.changed_since is not None:
        taken = {(m, fold): vectors_taken_over(context.tables, settings, fold, m) for m in models for fold in folds}
        vectors += [rows for rows, _ in taken.values()]
        figures = {f"{model} {main_fold}": taken[model, main_fold][1] for model in models}
    context.tables.write("vectors", reduce(DataFrame.unionByName, vectors), fold=folds, model=models)
    return figures


if __name__ == "__main__":
    main("load_vectors", run)
