"""export_sequences: vocabularies and windows of all folds, as files that torch reads.

./spark-submit.sh jobs/export_sequences.py --set sequence.length=50 --set sequence.max_windows=12
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.features.item_content import cold_shares, content_of
from xrec.features.sequence_export import (
    build_vocabulary,
    build_windows,
    check_vocabulary,
    describe_exports,
    given_vectors,
    num_categories_of,
    summarise,
)
from xrec.features.sequence_files import write_exports
from xrec.ranking.eligibility import eligible_items
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute


def run(context: StageContext) -> Figures:
    """Write ``vocabulary`` and ``sequences`` of all folds, then the contracts beside them."""
    tables, sequence, folds = context.tables, context.settings.sequence, [fold.name for fold in context.folds]
    items = tables.read("items")
    eligible = eligible_items(items)
    num_categories = num_categories_of(eligible)
    vocabularies = [
        build_vocabulary(
            tables.read("training_events", fold=fold),
            items,
            eligible,
            sequence,
            fold=fold,
            num_buckets=context.settings.num_buckets,
            vectors=given_vectors(tables, fold, sequence),
            content=content_of(items, sequence, tables.read("interactions", fold=fold)),
        )
        for fold in folds
    ]
    tables.write("vocabulary", reduce(DataFrame.unionByName, vocabularies), fold=folds)
    vocabulary = tables.read("vocabulary").where(F.col(C.FOLD).isin(folds))
    sizes = check_vocabulary(vocabulary, folds, sequence)
    events = tables.read("training_events").where(F.col(C.FOLD).isin(folds))
    windows = build_windows(events, vocabulary, eligible, context.settings, num_categories=num_categories)
    tables.write("sequences", windows, fold=folds)
    cold = cold_shares(events, sequence)
    exports = describe_exports(tables, context.folds, sizes, context.settings, num_categories=num_categories, cold=cold)
    write_exports(absolute(context.settings.storage.artifacts_root), exports)
    return summarise(next(export for export in exports if export.fold == context.main_fold.name), sequence)


if __name__ == "__main__":
    main("export_sequences", run)
