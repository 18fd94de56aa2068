"""What the windows just written promise to torch: a contract for each fold, with what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

from xrec.config import Sequence, Settings
from xrec.evaluation.folds import Fold
from xrec.features.context import context_sizes
from xrec.features.sequence_files import TRAIN, VALIDATION, Export, ExportError, export_settings, window_fields
from xrec.storage.files import absolute, count_rows, data_files
from xrec.storage.tables import Tables


def describe_exports(
    tables: Tables,
    folds: Many[Fold],
    sizes: Mapping[str, int],
    settings: Settings,
    *,
    num_categories: int,
    cold: Mapping[str, float],
) -> list[Export]:
    """The contracts of the folds just written, one each, with the rows of a shard taken from the Parquet footers.

    ``sizes`` are those of their vocabularies, ``cold`` the shares of :func:`xrec.features.item_content.cold_shares`; none: 0.

    Raises
    ------
    ExportError
        The shards of a fold are not equal, or none of the last one's rows can be trained on.
    """
    sequence = settings.sequence
    table, version = absolute(tables.path("sequences")), tables.written_versions["sequences"]
    context = context_sizes(settings)
    exports = []
    for fold in folds:
        rows = {
            split: rows_of_each_shard(table, version, fold.name, split, sequence.num_shards)
            for split in (TRAIN, VALIDATION)
        }
        if not rows[TRAIN] and fold is folds[-1]:
            raise ExportError(
                f"fold {fold.name}: found no user to train on, expected at least one; set sequence.validation_share lower "
                f"(it is {sequence.validation_share})"
            )
        exports.append(
            Export(
                fold=fold.name,
                as_of=fold.as_of.isoformat(),
                skip_last=fold.skip_last,
                table=table,
                version=version,
                vocabulary_table=absolute(tables.path("vocabulary")),
                vocabulary_version=tables.written_versions["vocabulary"],
                vocabulary_size=sizes[fold.name],
                cold_share=cold.get(fold.name, 0.0),
                num_categories=num_categories,
                context=context,
                length=sequence.length,
                num_shards=sequence.num_shards,
                rows=rows,
                fields=window_fields(sequence.length, num_categories, len(context)),
                settings=export_settings(settings),
            )
        )
    return exports


def summarise(exports: Many[Export], sequence: Sequence) -> dict[str, str]:
    """The last fold's export, and which earlier ones are too thin to train on, for the summary."""
    export, thin = exports[-1], [one.fold for one in exports if not one.can_train]
    return {
        "objective": sequence.objective,
        "item_vectors": sequence.item_vectors or "none",
        "item_content": ", ".join(sequence.item_content) or "none",
        "context": ", ".join(sequence.context) or "none",
        "vocabulary": f"{export.vocabulary_size:,} items",
        "training windows": f"{export.rows[TRAIN] * export.num_shards:,}",
        "validation windows": f"{export.rows[VALIDATION] * export.num_shards:,}",
        "shards": f"{export.num_shards}",
        **({"too thin to train on": ", ".join(thin)} if thin else {}),
    }


def rows_of_each_shard(table: str, version: int, fold: str, split: str, num_shards: int) -> int:
    """Rows of every shard of a split, from the Parquet footers; raises :class:`ExportError` where they are not equal."""
    counts = {
        shard: count_rows(data_files(table, version, fold=fold, split=split, shard=shard))
        for shard in range(num_shards)
    }
    if len(set(counts.values())) != 1:
        raise ExportError(
            f"{table}, version {version}, fold {fold}, split {split}: found rows {counts}, expected equal shards"
        )
    return counts[0]
