"""export_sequences: vocabularies and windows of all folds, as files that torch reads.

./spark-submit.sh jobs/export_sequences.py --set sequence.length=50 --set sequence.max_windows=12
./spark-submit.sh jobs/export_sequences.py --changed-since latest     the newest windows, in the tokens of the last training
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec.features.changed_users import (
    build_changed,
    describe_changed,
    seen_before,
    summarise_changed,
    take_vocabulary,
    trained_exports,
)
from xrec.features.item_content import cold_shares, content_of, offered_then
from xrec.features.sequence_export import describe_exports, summarise
from xrec.features.sequence_files import write_exports
from xrec.features.vocabulary import build_vocabulary, check_vocabulary, given_vectors, num_categories_of
from xrec.features.windows import build_windows
from xrec.ranking.eligibility import eligible_items
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute


def run(context: StageContext) -> Figures:
    """Write ``vocabulary`` and ``sequences`` of all folds, then the contracts beside them."""
    tables, sequence, folds = context.tables, context.settings.sequence, [fold.name for fold in context.folds]
    if sequence.changed_since is not None:
        return run_changed(context)
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
            offered=offered_then(context.settings.catalogue, tables.read("interactions", fold=fold)),
        )
        for fold in folds
    ]
    tables.write("vocabulary", reduce(DataFrame.unionByName, vocabularies), fold=folds)
    vocabulary = context.read_folds("vocabulary")
    sizes = check_vocabulary(vocabulary, folds, sequence)
    events = context.read_folds("training_events")
    windows = build_windows(events, vocabulary, eligible, context.settings, num_categories=num_categories)
    tables.write("sequences", windows, fold=folds)
    cold = cold_shares(events, sequence)
    exports = describe_exports(tables, context.folds, sizes, context.settings, num_categories=num_categories, cold=cold)
    write_exports(absolute(context.settings.storage.artifacts_root), exports)
    return summarise(exports, sequence)


def run_changed(context: StageContext) -> Figures:
    """Write the same of folds that are not trained: in the tokens of trained folds, each user's newest window alone."""
    tables, settings, folds = context.tables, context.settings, [fold.name for fold in context.folds]
    trained = trained_exports(context.folds, settings)
    eligible = eligible_items(tables.read("items"))
    num_categories = num_categories_of(eligible)
    before = [seen_before(tables, fold, export, settings.sequence) for fold, export in trained.items()]
    vocabularies = [take_vocabulary(tables, fold, export, eligible) for fold, export in trained.items()]
    tables.write("vocabulary", reduce(DataFrame.unionByName, vocabularies), fold=folds)
    vocabulary = context.read_folds("vocabulary")
    events = context.read_folds("training_events")
    seen = reduce(DataFrame.unionByName, before)
    windows = build_changed(events, vocabulary, eligible, seen, settings, num_categories=num_categories)
    tables.write("sequences", windows, fold=folds)
    exports = describe_changed(tables, trained, context.folds, num_categories)
    write_exports(absolute(settings.storage.artifacts_root), exports)
    return summarise_changed(tables, exports[-1], eligible, settings.sequence)


if __name__ == "__main__":
    main("export_sequences", run)
