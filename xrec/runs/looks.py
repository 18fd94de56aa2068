"""The record of every look at a test fold: who looks often enough finds something, and this shows how often it was."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.runs.stage import StageContext
from xrec.runs.versions import code_version
from xrec.storage.tables import rows_from


def record_look(context: StageContext, figures: Mapping[str, str]) -> str:
    """Write a row of ``looks`` for each judged test fold; return how often the newest of them has been looked at."""
    tables, settings, folds = context.tables, context.settings, context.judged_folds
    rows = [
        {
            C.RUN_ID: context.run_id,
            C.FOLD: fold.name,
            C.LOOKED_TS: datetime.now(timezone.utc),
            C.CODE_VERSION: code_version(),
            C.SETTINGS_HASH: settings.digest(),
            C.SETTINGS: settings.model_dump_json(),
            C.FIGURES: dict(figures),
        }
        for fold in folds
    ]
    tables.write("looks", rows_from(context.spark, "looks", rows), run_id=context.run_id)
    name = folds[-1].name
    number = tables.read("looks").where(F.col(C.FOLD) == name).count()
    return f"{number} at {name} (each with its settings in the table looks)"
