"""Word2Vec by MLlib (Mikolov et al. 2013): items that stand in the same places of users' histories get vectors alike.

A user's events in their order are a sentence, whatever he did (views too), and an item is a word (Grbovic et al. 2015, "prod2vec").
"""

from __future__ import annotations

from pyspark.ml.feature import Word2Vec
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import ItemVectors

MODEL = "word2vec"
_SENTENCE, _WORD_VECTOR = "sentence", "word_vector"


class Word2VecError(ValueError):
    """Events that no vector can be learned from; the message names the fold."""


def word2vec_vectors(training_events: DataFrame, item_vectors: ItemVectors, *, fold: str, seed: int) -> DataFrame:
    """A fold's training events to one row an item: ``idx``, ``vector``; items with fewer than ``min_events`` events have none.

    The driver holds two vectors an item while it learns. Events of one time come in the order of a hash: no order of a
    basket is known.

    Raises
    ------
    Word2VecError
        No item has so many events.
    """
    place = F.struct(C.EVENT_TS, F.xxhash64(C.EVENT_ID).alias("tie"), C.EVENT_ID, C.ITEM_IDX)
    in_order = F.sort_array(F.collect_list(place))
    words = F.transform(in_order, lambda event: event[C.ITEM_IDX].cast("string"))
    users = training_events.groupBy(C.USER_IDX).agg(words.alias(_SENTENCE))
    sentences = users.repartition(C.USER_IDX).sortWithinPartitions(
        C.USER_IDX
    )  # MLlib learns in the order in which they come
    counts = training_events.groupBy(C.ITEM_IDX).count().where(F.col("count") >= item_vectors.min_events)
    if counts.isEmpty():
        raise Word2VecError(
            f"fold '{fold}': no item has item_vectors.min_events ({item_vectors.min_events}) events, expected at least one; lower "
            "item_vectors.min_events"
        )
    model = Word2Vec(
        vectorSize=item_vectors.dim,
        windowSize=item_vectors.window,
        maxIter=item_vectors.max_iter,
        numPartitions=item_vectors.num_partitions,
        minCount=item_vectors.min_events,
        seed=seed,
        inputCol=_SENTENCE,
        outputCol=_WORD_VECTOR,
    ).fit(sentences)
    vector = vector_to_array(F.col("vector"), "float32")
    return model.getVectors().select(F.col("word").cast("int").alias(C.IDX), vector.alias(C.VECTOR))
