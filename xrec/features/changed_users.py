"""Nights on which no model is trained: only users whose newest events changed are encoded (``sequence.changed_since``).

A user's vector is a function of the model and of his newest ``sequence.length`` tokens with their context, and of nothing else::

    trained fold    S   windows, checkpoint, vectors of all users and items        Sunday
    fold            T   newest windows, in the tokens of S                         any later night
                        a user's is that of S:   split unchanged, his vector of S is taken over
                        it differs, or S has none: split changed, the model of S encodes it

So changed is found by comparing the windows themselves, by a hash of 64 bits of what the model reads of each. When events came is
not asked: a late row, a return that voids an earlier purchase, two persons who turn out to be one, all show in the window or
change nothing. A user without an event that still counts (opted out, all returned) has no window and no vector. It is always S
that is compared with, not the night before: a night may be left out, and with the next training few are changed again.

Each fold of the run, the select folds too, takes the newest trained fold whose as-of is not later than its own: its model knows
nothing that the fold must not know, and what serves is chosen by lists of models about as old as the one that serves. Items have
the vectors of S; those that came later have none until the next training, also where ``sequence.item_content`` describes them.

What belongs together is checked and never guessed: the settings of S are those of the run, the version of its windows is the one
that was compared with, and the weights that encode are those that made the vectors that are taken over. The tables are read as they
were at S, which Delta keeps for ``storage.retention_days``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as Many

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Sequence, Settings, SettingsError
from xrec.evaluation.folds import Fold, parse_time
from xrec.features.sequence_export import rows_of_each_shard
from xrec.features.sequence_files import (
    CHANGED,
    UNCHANGED,
    ContractMismatchError,
    Export,
    as_trained,
    models_used,
    read_as_ofs,
    read_export,
    read_trained_export,
    window_fields,
)
from xrec.features.staged_vectors import find_staged, read_vectors
from xrec.features.vector_files import is_trained
from xrec.features.windows import cut_windows, padding_rows
from xrec.storage.files import absolute, count_rows, data_files
from xrec.storage.tables import Tables

_SEEN = "seen_by_model"


def trained_exports(folds: Many[Fold], settings: Settings) -> dict[str, Export]:
    """By fold, in their order, the export of the newest trained fold that ended no later, and until ``sequence.changed_since``.

    Raises
    ------
    SettingsError
        There is none, or ``changed_since`` is later than the fold that is encoded last.
    FilesError, ContractMismatchError
        It was made with other settings.
    """
    key, since = "sequence.changed_since", settings.sequence.changed_since
    assert since is not None
    latest, artifacts = folds[-1].as_of, absolute(settings.storage.artifacts_root)
    until = latest if since == "latest" else parse_time(key, since)
    if until > latest:
        raise SettingsError(
            f"{key}: found {since}, expected latest or a time no later than the as-of of fold {folds[-1].name}, {latest}: a model "
            "that knows later events must not encode it"
        )
    models, found = models_used(settings), {}
    # An export counts once it is trained: that of a training that died, or that is still to come, has no model.
    as_ofs = {name: as_of for name, as_of in read_as_ofs(artifacts).items() if is_trained(artifacts, name, models)}
    for fold in folds:
        earlier = [(as_of, name) for name, as_of in as_ofs.items() if as_of <= min(until, fold.as_of)]
        if not earlier:
            known = ", ".join(f"{name} (as of {as_of})" for name, as_of in sorted(as_ofs.items())) or "none"
            raise SettingsError(
                f"{key}: found trained folds {known}, expected one whose as-of is not later than that of {fold.name}, "
                f"{fold.as_of}, nor than {until}; train first (the same command without {key}), or set folds.num_select lower"
            )
        found[fold.name] = read_export(artifacts, max(earlier)[1], as_trained(settings))
    return found


def take_vocabulary(tables: Tables, fold: str, trained: Export, eligible: DataFrame) -> DataFrame:
    """The vocabulary of a trained fold as another fold's: the same tokens, and the category codes of today's ``eligible`` items."""
    rows = tables.read("vocabulary", version=trained.vocabulary_version, fold=trained.fold).drop(C.VERSIONS)
    codes = eligible.select(C.ITEM_IDX, C.CATEGORY_CODE)
    coded = rows.drop(C.CATEGORY_CODE).join(codes, C.ITEM_IDX, how="left").fillna(-1, [C.CATEGORY_CODE])
    return coded.withColumn(C.FOLD, F.lit(fold)).select(*rows.columns)


def seen_before(tables: Tables, fold: str, trained: Export, sequence: Sequence) -> DataFrame:
    """The users of a trained fold, under the name of the fold that takes them over: a hash of what the model read of each."""
    rows = tables.read("sequences", version=trained.version, fold=trained.fold)
    newest = rows.where((F.col(C.WINDOW) == 0) & (F.col(C.ROW_WEIGHT) > 0))
    return _with_seen(newest, sequence).select(F.lit(fold).alias(C.FOLD), C.USER_IDX, F.col(_SEEN).alias("before"))


def build_changed(
    training_events: DataFrame,
    vocabulary: DataFrame,
    eligible: DataFrame,
    before: DataFrame,
    settings: Settings,
    *,
    num_categories: int,
) -> DataFrame:
    """Events of any number of folds to rows of ``sequences``: each user's newest window, in the split changed or unchanged.

    ``before`` has the rows of :func:`seen_before`, ``vocabulary`` those of :func:`take_vocabulary`; the changed are padded.
    """
    sequence = settings.sequence
    newest_alone = settings.model_copy(update={"sequence": sequence.model_copy(update={"max_windows": 1})})
    windows = cut_windows(training_events, vocabulary, eligible, newest_alone, num_categories=num_categories)
    known = _with_seen(windows, sequence).join(before, [C.FOLD, C.USER_IDX], how="left")
    split = F.when(F.col(_SEEN).eqNullSafe(F.col("before")), F.lit(UNCHANGED)).otherwise(F.lit(CHANGED))
    rows = known.withColumn(C.SPLIT, split).select(*windows.columns)
    changed = rows.where(F.col(C.SPLIT) == CHANGED).groupBy(C.FOLD, C.SPLIT, C.SHARD)
    counts = changed.agg(F.count("*").cast("int").alias(C.NUM_ROWS))
    return rows.unionByName(padding_rows(counts, sequence, num_categories))


def _with_seen(windows: DataFrame, sequence: Sequence) -> DataFrame:
    """Windows with a hash of what a model reads of them to encode: all but the oldest token."""
    size, length = len(sequence.context), sequence.length
    context = F.slice(C.CONTEXT, size + 1, length * size) if size else F.array().cast("array<int>")
    return windows.withColumn(_SEEN, F.xxhash64(F.slice(C.TOKENS, 2, length), context))


def describe_changed(
    tables: Tables, trained: Mapping[str, Export], folds: Many[Fold], num_categories: int
) -> list[Export]:
    """The contracts of the folds just written, each that of its trained fold but for what is its own."""
    table, version = absolute(tables.path("sequences")), tables.written_versions["sequences"]
    exports = []
    for fold in folds:
        of = trained[fold.name]
        own = dataclasses.replace(
            of,
            fold=fold.name,
            as_of=fold.as_of.isoformat(),
            table=table,
            version=version,
            vocabulary_version=tables.written_versions["vocabulary"],
            num_categories=num_categories,
            rows={CHANGED: rows_of_each_shard(table, version, fold.name, CHANGED, of.num_shards)},
            fields=window_fields(of.length, num_categories, len(of.context)),
            trained_on=of.fold,
            trained_version=of.version,
        )
        exports.append(own)
    return exports


def summarise_changed(tables: Tables, export: Export, eligible: DataFrame, sequence: Sequence) -> dict[str, str]:
    """One fold's users and new items, for the summary."""
    rows = tables.read("sequences", fold=export.fold).where(F.col(C.ROW_WEIGHT) > 0)
    found = rows.agg(
        F.count_if(F.col(C.SPLIT) == CHANGED).alias(CHANGED), F.count_if(F.col(C.SPLIT) == UNCHANGED).alias(UNCHANGED)
    ).first()
    assert found is not None
    buyers = (
        tables.read("training_events", fold=export.fold).groupBy(C.ITEM_IDX).agg(F.countDistinct(C.USER_IDX).alias("n"))
    )
    new = (
        buyers.where(F.col("n") >= sequence.min_buyers)
        .join(eligible, C.ITEM_IDX, how="left_semi")
        .join(tables.read("vocabulary", fold=export.fold), C.ITEM_IDX, how="left_anti")
    )
    return {
        "trained_on": f"{export.trained_on}",
        "users to encode": f"{found[CHANGED]:,} of {found[CHANGED] + found[UNCHANGED]:,}",
        "items without a vector": f"{new.count():,} of those with {sequence.min_buyers} buyers",
    }


def vectors_taken_over(tables: Tables, settings: Settings, fold: str, model: str) -> tuple[DataFrame, str]:
    """Rows of ``vectors`` that a fold takes over, of unchanged users and of all items, and a line that tells how many.

    Reading them fails where an unchanged user has no vector.

    Raises
    ------
    FilesError, ContractMismatchError
        The vectors are not there, or the fold's users were encoded by a model of other weights.
    """
    artifacts = absolute(settings.storage.artifacts_root)
    export = read_export(artifacts, fold, settings)
    trained = read_trained_export(artifacts, export, settings)
    folder, before = find_staged(as_trained(settings), trained.fold, model)
    changed_folder, changed = find_staged(settings, fold, model)
    if changed.weights != before.weights:
        raise ContractMismatchError(
            f"{changed_folder}: found vectors by a model of weights {changed.weights}, expected {before.weights}, which made those "
            f"of {folder}; run the stage train_{model} again with the same settings"
        )
    vectors = read_vectors(tables.spark, folder, before).withColumn(C.FOLD, F.lit(fold))
    if not before.parts:
        return vectors, f"none: {trained.fold} had nothing to learn from"
    of_users = vectors.where(F.col(C.KIND) == "user").drop(C.FOLD, C.MODEL, C.KIND)
    windows = tables.read("sequences", version=export.version, fold=fold).where(F.col(C.SPLIT) == UNCHANGED)
    lacks_one = F.raise_error(
        F.concat(F.lit(f"{folder}: found no vector of user_idx "), F.col(C.IDX), F.lit(", expected one; train again"))
    )
    users = windows.select(F.col(C.USER_IDX).alias(C.IDX)).join(of_users, C.IDX, how="left")
    users = users.select(
        F.lit(fold).alias(C.FOLD),
        F.lit(model).alias(C.MODEL),
        F.lit("user").alias(C.KIND),
        C.IDX,
        F.when(F.col(C.VECTOR).isNotNull(), F.col(C.VECTOR)).otherwise(lacks_one).alias(C.VECTOR),
    )
    num_users = count_rows(data_files(export.table, export.version, fold=fold, split=UNCHANGED))
    told = f"{changed.users:,} users encoded, {num_users:,} users and {before.items:,} items taken over from {trained.fold}"
    return users.unionByName(vectors.where(F.col(C.KIND) == "item")), f"{told}, dim {changed.dim}"
