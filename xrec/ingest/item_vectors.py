"""The shop's own vectors of its items, of a sentence encoder or of images: a file that ``item_vectors`` names."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import ItemVectors
from xrec.ingest.mapping import require_columns, text_of
from xrec.ingest.reader import InputError, count_rows, read_raw, reading

MODEL = "file"
_SECTION, _KEY = "item_vectors", "item_vectors.file"
_TEXT, _LENGTH = "text", "length"


def load_item_vectors(spark: SparkSession, item_vectors: ItemVectors) -> DataFrame:
    """The file that ``item_vectors`` names, as one row an item: ``item_id``, ``vector``; items that the log does not know too.

    Raises
    ------
    InputError
        The file cannot be read, is empty or lacks a column; or a row is malformed, has no key, no list of numbers, one of another
        length than the others, or another vector than another row of the same item.
    """
    file = item_vectors.file
    assert file is not None, "the settings ask for it"
    raw = read_raw(spark, file, key=_KEY)
    wanted = {f"{_SECTION}.item_id": item_vectors.item_id, f"{_SECTION}.vector": item_vectors.vector}
    require_columns(raw, wanted, file)
    num_rows = count_rows(raw, file, key=_KEY)
    numbers = F.from_json(text_of(item_vectors.vector), "array<float>")
    is_finite = F.forall(numbers, lambda x: x.isNotNull() & ~F.isnan(x) & (F.abs(x) < float("inf")))
    rows = raw.select(
        C.MALFORMED,
        text_of(item_vectors.item_id).alias(C.ITEM_ID),
        text_of(item_vectors.vector).alias(_TEXT),
        F.when(is_finite & (F.size(numbers) > 0), numbers).alias(C.VECTOR),
    ).withColumn(_LENGTH, F.size(C.VECTOR))
    faults = {
        "the well-formed rows of a table": (F.col(C.MALFORMED).isNotNull(), F.col(C.MALFORMED)),
        f"an item in column '{item_vectors.item_id}'": (F.col(C.ITEM_ID).isNull(), F.lit("nothing")),
        f"a list of numbers in column '{item_vectors.vector}'": (
            F.col(C.VECTOR).isNull(),
            F.concat(F.left(F.coalesce(_TEXT, F.lit("nothing")), F.lit(60)), F.lit(" of item "), F.col(C.ITEM_ID)),
        ),
    }
    with reading(file, key=_KEY):
        found = rows.agg(
            *[F.count_if(holds) for holds, _ in faults.values()],
            *[F.min(F.when(holds, example)) for holds, example in faults.values()],
            *[side(F.struct(_LENGTH, C.ITEM_ID)) for side in (F.min, F.max)],
        ).first()
    assert found is not None
    for place, expected in enumerate(faults):
        if found[place]:
            raise InputError(
                f"{_KEY}.path: found {found[place + len(faults)]} in {file.path} ({found[place]:,} such rows of {num_rows:,}), "
                f"expected {expected}; mend the file"
            )
    shortest, longest = found[2 * len(faults) :]
    if shortest[_LENGTH] != longest[_LENGTH]:
        raise InputError(
            f"{_KEY}.path: found a vector of length {shortest[_LENGTH]} (item {shortest[C.ITEM_ID]}) and one of length "
            f"{longest[_LENGTH]} (item {longest[C.ITEM_ID]}) in {file.path}, expected one length; mend the file"
        )
    distinct = rows.select(C.ITEM_ID, C.VECTOR).distinct()
    twice = distinct.groupBy(C.ITEM_ID).count().where("count > 1").first()
    if twice is not None:
        raise InputError(
            f"{_KEY}.path: found {twice['count']} different vectors of item {twice[C.ITEM_ID]} in {file.path}, expected one; mend "
            "the file"
        )
    return distinct


def of_known_items(vectors: DataFrame, items: DataFrame, item_vectors: ItemVectors) -> DataFrame:
    """Rows of :func:`load_item_vectors` to ``idx``, ``vector`` of the items of the log; raises InputError where there is none."""
    known = vectors.join(items.select(C.ITEM_ID, F.col(C.ITEM_IDX).alias(C.IDX)), C.ITEM_ID, how="inner")
    if known.isEmpty():
        one, other = (rows.select(F.min(C.ITEM_ID)).first() for rows in (vectors, items))
        assert one is not None
        assert other is not None
        raise InputError(
            f"{_SECTION}.item_id: found none of the log's items in column '{item_vectors.item_id}' (there {one[0]}, in the log "
            f"{other[0]}, for instance), expected the same keys; name the column that has them"
        )
    return known.select(C.IDX, C.VECTOR)
