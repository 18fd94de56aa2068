"""export_sequences: vocabularies and windows of all folds, as files that torch reads.

./spark-submit.sh jobs/export_sequences.py --set sequence.length=50 --set sequence.max_windows=12
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.features.sequence_export import build_vocabulary, build_windows, check_vocabulary, describe_exports
from xrec.features.sequence_files import TRAIN, VALIDATION, write_exports
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute


def run(context: StageContext) -> Figures:
    """Write ``vocabulary`` and ``sequences`` of all folds, then the contracts beside them."""
    tables, sequence, folds = context.tables, context.settings.sequence, [fold.name for fold in context.folds]
    vocabularies = [
        build_vocabulary(tables.read("training_events", fold=fold), sequence, num_buckets=context.settings.num_buckets)
        for fold in folds
    ]
    tables.write("vocabulary", reduce(DataFrame.unionByName, vocabularies), fold=folds)
    vocabulary = tables.read("vocabulary").where(F.col(C.FOLD).isin(folds))
    sizes = check_vocabulary(vocabulary, folds, sequence)
    events = tables.read("training_events").where(F.col(C.FOLD).isin(folds))
    tables.write("sequences", build_windows(events, vocabulary, sequence, seed=context.settings.seed), fold=folds)
    exports = describe_exports(tables, sizes, context.settings)
    write_exports(absolute(context.settings.storage.artifacts_root), exports)
    main_export = next(export for export in exports if export.fold == context.main_fold.name)
    return {
        "vocabulary": f"{main_export.vocabulary_size:,} items",
        "training windows": f"{main_export.rows[TRAIN] * main_export.num_shards:,}",
        "validation windows": f"{main_export.rows[VALIDATION] * main_export.num_shards:,}",
        "shards": f"{main_export.num_shards}",
    }


if __name__ == "__main__":
    main("export_sequences", run)
