"""Vectors that the training staged as Parquet, to rows of the table ``vectors``."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.features.sequence_files import ContractMismatchError, read_export
from xrec.features.vector_files import Staged, read_staged, staging_location, training_digest
from xrec.storage.files import absolute, count_rows, exists, for_spark
from xrec.storage.tables import rows_from


def find_staged(settings: Settings, fold: str, model: str) -> tuple[str, Staged]:
    """The folder and manifest of a model's vectors, made from the fold's newest export with these settings.

    Raises
    ------
    FilesError, ContractMismatchError
        There is no manifest, or a part is missing or has another number of rows.
    """
    artifacts = absolute(settings.storage.artifacts_root)
    export = read_export(artifacts, fold, settings)
    folder = staging_location(artifacts, export, model, training_digest(settings, model))
    staged = read_staged(folder, model)
    for name, expected in staged.parts.items():
        part = f"{folder}/{name}"
        found = count_rows([part]) if exists(part) else None
        if found != expected:
            raise ContractMismatchError(
                f"{part}: found {'no file' if found is None else f'{found} rows'}, expected {expected} rows; "
                f"run the stage train_{model} again"
            )
    return folder, staged


def read_vectors(spark: SparkSession, folder: str, staged: Staged) -> DataFrame:
    """Rows of ``vectors``, none where the manifest names no part; reading fails on a vector whose length is not the manifest's."""
    if not staged.parts:
        return rows_from(spark, "vectors", [])
    rows = spark.read.parquet(*[for_spark(f"{folder}/{name}") for name in staged.parts])
    vector = F.when(F.size(C.VECTOR) == staged.dim, F.col(C.VECTOR)).otherwise(
        F.raise_error(F.lit(f"{folder}: a vector's length is not {staged.dim}, as its manifest says; train again"))
    )
    return rows.select(C.FOLD, C.MODEL, C.KIND, C.IDX, vector.alias(C.VECTOR))
