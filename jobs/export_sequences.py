"""export_sequences: vocabularies and windows of all folds, as files that torch reads.

./spark-submit.sh jobs/export_sequences.py --set sequence.length=50 --set sequence.max_windows=12
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.features.sequence_export import (
    build_vocabulary,
    build_windows,
    check_vocabulary,
    describe_exports,
    num_categories_of,
)
from xrec.features.sequence_files import TRAIN, VALIDATION, write_exports
from xrec.ranking.eligibility import eligible_items
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute


def run(context: StageContext) -> Figures:
    """Write ``vocabulary`` and ``sequences`` of all folds, then the contracts beside them."""
    tables, sequence, folds = context.tables, context.settings.sequence, [fold.name for fold in context.folds]
    eligible = eligible_items(tables.read("items"))
    num_categories = num_categories_of(eligible)
    vocabularies = [
        build_vocabulary(
            tables.read("training_events", fold=fold),
            eligible,
            sequence,
            num_buckets=context.settings.num_buckets,
            vectors=_item_vectors(context, fold),
        )
        for fold in folds
    ]
    tables.write("vocabulary", reduce(DataFrame.unionByName, vocabularies), fold=folds)
    vocabulary = tables.read("vocabulary").where(F.col(C.FOLD).isin(folds))
    sizes = check_vocabulary(vocabulary, folds, sequence)
    events = tables.read("training_events").where(F.col(C.FOLD).isin(folds))
    windows = build_windows(
        events, vocabulary, eligible, sequence, num_categories=num_categories, seed=context.settings.seed
    )
    tables.write("sequences", windows, fold=folds)
    exports = describe_exports(tables, sizes, context.settings, num_categories=num_categories)
    write_exports(absolute(context.settings.storage.artifacts_root), exports)
    main_export = next(export for export in exports if export.fold == context.main_fold.name)
    return {
        "objective": sequence.objective,
        "item_vectors": sequence.item_vectors or "none",
        "vocabulary": f"{main_export.vocabulary_size:,} items",
        "training windows": f"{main_export.rows[TRAIN] * main_export.num_shards:,}",
        "validation windows": f"{main_export.rows[VALIDATION] * main_export.num_shards:,}",
        "shards": f"{main_export.num_shards}",
    }


def _item_vectors(context: StageContext, fold: str) -> DataFrame | None:
    """The fold's vectors that the models are given for their items, if any."""
    model = context.settings.sequence.item_vectors
    if model is None:
        return None
    return context.tables.read("vectors", fold=fold, model=model).where(F.col(C.KIND) == "item")


if __name__ == "__main__":
    main("export_sequences", run)
