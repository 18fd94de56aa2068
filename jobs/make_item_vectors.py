"""make_item_vectors: vectors of the items that the sequence models are given, where they are not those of ALS.

./spark-submit.sh jobs/make_item_vectors.py --set sequence.item_vectors=word2vec --set item_vectors.window=10
./spark-submit.sh jobs/make_item_vectors.py --set sequence.item_vectors=text_svd
./spark-submit.sh jobs/make_item_vectors.py --config conf/my_shop.yaml    (sequence.item_vectors: file, item_vectors.file: ...)
"""

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.generators import text_svd, word2vec
from xrec.ingest import item_vectors
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.shared import SharedFolder


def run(context: StageContext) -> Figures:
    """Write the item vectors of the model that ``sequence.item_vectors`` names, of all folds of the run."""
    tables, model, folds = context.tables, context.settings.sequence.item_vectors, [fold.name for fold in context.folds]
    if model not in (word2vec.MODEL, text_svd.MODEL, item_vectors.MODEL):
        return {"vectors": f"none: sequence.item_vectors is {model or 'null'}"}
    with context.shared_folder() as folder:
        vectors = [
            rows.select(
                F.lit(fold).alias(C.FOLD), F.lit(model).alias(C.MODEL), F.lit("item").alias(C.KIND), C.IDX, C.VECTOR
            )
            for fold, rows in _vectors_of(context, folder, model, folds).items()
        ]
        tables.write("vectors", reduce(DataFrame.unionByName, vectors), fold=folds, model=model)
    written = tables.read("vectors", fold=context.main_fold.name, model=model)
    found = written.agg(F.count("*"), F.max(F.size(C.VECTOR))).first()
    assert found is not None
    return {"model": model, "items": f"{found[0]:,} of {tables.read('items').count():,}", "dim": f"{found[1] or 0}"}


def _vectors_of(context: StageContext, folder: SharedFolder, model: str, folds: list[str]) -> dict[str, DataFrame]:
    """Each fold's rows ``idx``, ``vector``; those of the catalogue and of the shop are the same in all."""
    tables, settings = context.tables, context.settings
    if model == word2vec.MODEL:
        return {
            fold: word2vec.word2vec_vectors(
                tables.read("training_events", fold=fold), settings.item_vectors, fold=fold, seed=settings.seed
            )
            for fold in folds
        }
    items = tables.read("items")
    if model == text_svd.MODEL:
        rows = text_svd.text_svd_vectors(
            items, settings.content, dim=settings.item_vectors.dim, seed=settings.seed, folder=folder
        )
        return dict.fromkeys(folds, folder.keep(rows))
    given = item_vectors.load_item_vectors(context.spark, settings.item_vectors)
    rows = item_vectors.of_known_items(given, items, settings.item_vectors)
    return dict.fromkeys(folds, rows)


if __name__ == "__main__":
    main("make_item_vectors", run)
