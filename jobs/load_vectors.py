"""load_vectors: reads the vectors that the sequence models staged, checks them, and writes the table.

./spark-submit.sh jobs/load_vectors.py
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec.features.sequence_files import MODELS
from xrec.features.staged_vectors import find_staged, read_vectors
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``vectors`` of the sequence models among ``ranking.sources`` for all folds."""
    folds, models = [fold.name for fold in context.folds], [m for m in MODELS if m in context.settings.ranking.sources]
    if not models:
        return {"models": "none: ranking.sources names no sequence model"}
    staged = [find_staged(context.settings, fold, model) for model in models for fold in folds]
    vectors = [read_vectors(context.spark, folder, manifest) for folder, manifest in staged]
    context.tables.write("vectors", reduce(DataFrame.unionByName, vectors), fold=folds, model=models)
    return {
        f"{manifest.model} {manifest.fold}": f"{manifest.users:,} users, {manifest.items:,} items, dim {manifest.dim}"
        for _, manifest in staged
        if manifest.fold == context.main_fold.name
    }


if __name__ == "__main__":
    main("load_vectors", run)
