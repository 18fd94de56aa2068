"""The ledger: a row for every stage that ended, with what it wrote and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import Row, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.storage.tables import Tables, rows_from


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage that ended."""

    run_id: str
    stage: str
    started_ts: datetime
    seconds: float
    settings_hash: str
    outputs: Mapping[str, int]
    figures: Mapping[str, str]

    @property
    def shown(self) -> dict[str, str]:
        """The figures that are for people; a name that begins with an underscore is for a later run."""
        return {name: value for name, value in self.figures.items() if not name.startswith("_")}


def record(tables: Tables, run: StageRun) -> None:
    """Write a stage's row; a stage that is run again in the same run replaces it."""
    rows = rows_from(
        tables.spark,
        "stage_runs",
        [{name: getattr(run, name) for name in StageRun.__dataclass_fields__}],
    )
    tables.write("stage_runs", rows, run_id=run.run_id, stage=run.stage)


def runs_of(tables: Tables, run_id: str) -> list[StageRun]:
    """The stages of a run that ended, in the order in which they began."""
    if not tables.exists("stage_runs"):
        return []
    tables.read_versions.pop("stage_runs", None)
    rows = tables.read("stage_runs", run_id=run_id).collect()
    return sorted((_to_run(row) for row in rows), key=lambda run: run.started_ts)


def runs_of_stages(tables: Tables, *stages: str) -> list[StageRun]:
    """The runs of these stages that ended, the newest first."""
    if not tables.exists("stage_runs"):
        return []
    tables.read_versions.pop("stage_runs", None)
    rows = tables.read("stage_runs").where(F.col(C.STAGE).isin(*stages)).collect()
    return sorted((_to_run(row) for row in rows), key=lambda run: run.started_ts, reverse=True)


def runs_before(tables: Tables, moment: datetime) -> list[str]:
    """The runs of which every stage began before a moment, but those that have the newest row of a stage."""
    newest_first = Window.partitionBy(C.STAGE).orderBy(F.desc(C.STARTED_TS))
    tables.read_versions.pop("stage_runs", None)
    rows = tables.read("stage_runs").withColumn("age", F.row_number().over(newest_first))
    runs = rows.groupBy(C.RUN_ID).agg(F.max(C.STARTED_TS).alias("last"), F.min("age").alias("age"))
    return sorted(row[0] for row in runs.where((F.col("last") < F.lit(moment)) & (F.col("age") > 1)).collect())


def newest_runs(tables: Tables) -> dict[str, StageRun]:
    """The newest row of each stage; empty where nothing ran yet."""
    if not tables.exists("stage_runs"):
        return {}
    newest_first = Window.partitionBy(C.STAGE).orderBy(F.desc(C.STARTED_TS))
    tables.read_versions.pop("stage_runs", None)
    rows = tables.read("stage_runs").withColumn("age", F.row_number().over(newest_first)).where("age = 1").collect()
    # Nothing is made from the ledger.
    tables.read_versions.pop("stage_runs", None)
    return {row[C.STAGE]: _to_run(row) for row in rows}


def _to_run(row: Row) -> StageRun:
    return StageRun(**{name: row[name] for name in StageRun.__dataclass_fields__})
