"""Content: items that the catalogue describes like those that the user had; also items that nobody had yet.

An item's words are those of its label and of its category path, and each beginning of the path as a whole. They are weighted by
TF-IDF: tf(w, j) (ln((1 + n) / (1 + n(w))) + 1), n the items with words, n(w) those with w, divided by the length of j's vector
(Salton, Buckley 1988). A user's vector is the sum of those of his items, cut to its heaviest words, of length one (Rocchio's
centroid; Pazzani, Billsus 2007), and

    score(u, j) = cosine(u, j) x (1 + buyers of j) ^ popularity_power,

because a catalogue describes many items alike, and most of them are hardly bought.

Array names carry their shape: U users of a block, I items, W words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from xrec import columns as C
from xrec.features.buyers import num_buyers_of
from xrec.generators.neighbours import (
    EDGES_ARROW,
    EDGES_SCHEMA,
    PROFILE,
    PROFILE_WEIGHTS,
    PROFILES_ARROW,
    PROFILES_SCHEMA,
    as_lists,
    heaviest_of,
    largest,
    score_profiles,
)
from xrec.ranking.topk import Array, flatten
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Content, Ranking

SOURCE = "content"
_NUM_HASHES = 1 << 20
"""Words are known by their hash: no vocabulary has to be made, and of 10,000 words 1 in 100 shares its number."""
_ROWS_A_BLOCK = 1024
_NUM_ITEMS = "num_items"
_WORD = re.compile(r"\w\w+")


class ContentError(ValueError):
    """More words of items than one task may hold; the message says how many and which setting bounds it."""


def content_candidates(
    users: DataFrame,
    eligible: DataFrame,
    items: DataFrame,
    interactions: DataFrame,
    content: Content,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    ``items`` has ``label`` and ``category_path``. Each Python process holds the words of all items: 12 bytes each, twice.

    Raises
    ------
    ContentError
        There are more words of items than ``max_nonzeros``.
    """
    words = checked_words(items, content, folder)
    had = heaviest_of(interactions, content.max_items_per_user)
    profiles = profiles_of(had, folder.share(words), content.max_words_per_user)
    buyers = num_buyers_of(interactions).withColumnRenamed(C.ITEM_IDX, C.NEIGHBOUR_IDX)
    liked = F.pow(1 + F.coalesce(C.NUM_BUYERS, F.lit(0)), F.lit(content.popularity_power))
    lead_to = words.join(buyers, C.NEIGHBOUR_IDX, how="left").select(
        C.PROFILE_IDX, C.NEIGHBOUR_IDX, (F.col(C.SIMILARITY) * liked).cast("float").alias(C.SIMILARITY)
    )
    return score_profiles(users, profiles, lead_to, eligible, ranking, folder)


def checked_words(items: DataFrame, content: Content, folder: SharedFolder) -> DataFrame:
    """The rows of :func:`words_of`, kept in the folder; raises :class:`ContentError` where they are too many."""
    words = folder.keep(words_of(items, folder))
    num_nonzeros = words.count()
    if num_nonzeros > content.max_nonzeros:
        raise ContentError(
            f"content.max_nonzeros: found {num_nonzeros} words of items, expected at most {content.max_nonzeros}; raise it if an "
            "executor has 24 bytes for each, or leave 'content' out of ranking.sources (and text_svd out of sequence.item_vectors)"
        )
    return words


def words_of(items: DataFrame, folder: SharedFolder) -> DataFrame:
    """Rows of ``items`` to one row a (word's hash ``profile_idx``, item ``neighbour_idx``), with its TF-IDF ``similarity``."""
    texts = items.select(C.ITEM_IDX, C.LABEL, C.CATEGORY_PATH)

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _, counts_IW in _counted(batches):
            # A sum of hits of each word; the last place counts the items that have any.
            num_items_W = np.bincount(counts_IW.indices, minlength=_NUM_HASHES + 1)
            num_items_W[_NUM_HASHES] = np.count_nonzero(np.diff(counts_IW.indptr))
            word = np.flatnonzero(num_items_W)
            yield pa.RecordBatch.from_pydict(
                {C.PROFILE_IDX: pa.array(word, pa.int32()), _NUM_ITEMS: pa.array(num_items_W[word], pa.int64())}
            )

    partial = texts.mapInArrow(count, f"{C.PROFILE_IDX} int, {_NUM_ITEMS} bigint")
    num_items = folder.share(partial.groupBy(C.PROFILE_IDX).agg(F.sum(_NUM_ITEMS).alias(_NUM_ITEMS)))

    def weigh(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for item_idx, counts_IW in _counted(batches):
            counts_IW.data *= _read_idf(num_items)[counts_IW.indices]
            weights_IW = normalize(counts_IW)
            row = np.repeat(np.arange(len(item_idx)), np.diff(weights_IW.indptr))
            columns = (weights_IW.indices, item_idx[row], weights_IW.data)
            arrays = [pa.array(values, type=field.type) for values, field in zip(columns, EDGES_ARROW, strict=True)]
            yield pa.record_batch(arrays, schema=EDGES_ARROW)

    return texts.mapInArrow(weigh, EDGES_SCHEMA)


def _counted(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Array, sparse.csr_matrix]]:
    """Batches of items to blocks of indexes and of how often an item has a word."""
    counter = HashingVectorizer(analyzer=_analyse, n_features=_NUM_HASHES, norm=None, alternate_sign=False)
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_A_BLOCK):
            block = batch.slice(start, _ROWS_A_BLOCK)
            texts = zip(block.column(C.LABEL).to_pylist(), block.column(C.CATEGORY_PATH).to_pylist(), strict=True)
            counts_IW = counter.transform(texts)
            counts_IW.sum_duplicates()
            yield block.column(C.ITEM_IDX).to_numpy(), counts_IW


def _analyse(text: tuple[str | None, list[str] | None]) -> list[str]:
    """The words of an item's label and path; a beginning of the path is one word, which no other has, for it begins with a /."""
    label, path = text[0] or "", text[1] or []
    words: list[str] = _WORD.findall(" ".join([label, *path]).lower())
    return words + ["/" + "/".join(path[: n + 1]) for n in range(len(path))]


@lru_cache(maxsize=1)
def _read_idf(num_items: SharedRows) -> Array:
    table = num_items.read()
    num_items_W = np.zeros(_NUM_HASHES + 1)
    num_items_W[table[C.PROFILE_IDX].to_numpy()] = table[_NUM_ITEMS].to_numpy()
    idf_W: Array = np.log((1 + num_items_W[-1]) / (1 + num_items_W[:-1])) + 1
    return idf_W


def profiles_of(had: DataFrame, words: SharedRows, max_words_per_user: int) -> DataFrame:
    """(``user_idx``, ``item_idx``) to each user's vector: ``user_idx``, ``profile_idx``, ``weight``, for his heaviest words."""
    ones = had.select(C.USER_IDX, F.col(C.ITEM_IDX).alias(C.PROFILE_IDX), F.lit(1.0).alias(C.WEIGHT))

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_A_BLOCK):
                yield _profiles(batch.slice(start, _ROWS_A_BLOCK), _read_words(words), max_words_per_user)

    return as_lists(ones).mapInArrow(run, PROFILES_SCHEMA)


@lru_cache(maxsize=1)
def _read_words(words: SharedRows) -> sparse.csr_matrix:
    """The items' vectors: the matrix (items, words)."""
    table = words.read()
    word, item, weight = (table[name].to_numpy() for name in (C.PROFILE_IDX, C.NEIGHBOUR_IDX, C.SIMILARITY))
    shape = (1 + int(item.max(initial=0)), _NUM_HASHES)
    weights_IW = sparse.csr_matrix((weight.astype(np.float64), (item, word)), shape=shape)
    weights_IW.sort_indices()
    return weights_IW


def _profiles(users: pa.RecordBatch, weights_IW: sparse.csr_matrix, max_words: int) -> pa.RecordBatch:
    (row, item), (_, weight) = flatten(users.column(PROFILE)), flatten(users.column(PROFILE_WEIGHTS))
    known = item < weights_IW.shape[0]
    had_UI = sparse.csr_matrix((weight[known], (row[known], item[known])), shape=(users.num_rows, weights_IW.shape[0]))
    sums_UW = had_UI @ weights_IW
    sums_UW.sort_indices()
    found = []
    for user, user_idx in enumerate(users.column(C.USER_IDX).to_numpy()):
        entries = slice(sums_UW.indptr[user], sums_UW.indptr[user + 1])
        word, total = sums_UW.indices[entries], sums_UW.data[entries]
        kept = np.sort(largest(total, word, min(max_words, len(word))))
        length = np.sqrt(np.square(total[kept]).sum())
        found.append((np.full(len(kept), user_idx), word[kept], total[kept] / length))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, PROFILES_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=PROFILES_ARROW)
