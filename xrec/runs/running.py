"""Runs stages one after the other: those of a run share its settings, its id and its console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module

from pyspark.sql import SparkSession
from rich.console import Console

from xrec.config import Settings, as_arguments, change_settings
from xrec.ranking.rankers import check_slots
from xrec.runs.applications import run_as_application
from xrec.runs.stage import PIPELINE, StageContext, run_stage, tracked
from xrec.runs.stages import StageInfo

RANKERS = "train_rankers"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of several stages; their job files lie beside the one that was submitted."""

    spark: SparkSession
    console: Console
    run_id: str
    settings: Settings
    """As the files were when the run began; who edits them means the next run."""
    config: Sequence[str]
    overrides: Sequence[str]
    """What the settings were made of, for the commands that go on."""
    job: Sequence[str] = PIPELINE
    """See :attr:`StageContext.job`."""

    def context(self) -> StageContext:
        """What a stage of this run is given; each sees the newest tables."""
        given = as_arguments(self.config, self.overrides)
        return StageContext(spark=self.spark, settings=self.settings, run_id=self.run_id, given=given, job=self.job)

    def with_overrides(self, *overrides: str) -> Run:
        """The same run with further settings."""
        settings = change_settings(self.settings, overrides)
        return replace(self, settings=settings, overrides=[*self.overrides, *overrides])

    def run(self, stages: Sequence[StageInfo]) -> None:
        """Run the stages in this order, and log them as one run.

        Raises
        ------
        RankerError
            The rankers, a late stage, ask for more task slots than there are.
        """
        if RANKERS in {info.name for info in stages}:
            check_slots(self.spark, self.settings.ranker)
        with tracked(self.context(), self.console):
            for number, info in enumerate(stages, start=1):
                title = f"[{number}/{len(stages)}] {info.name}: {info.does}"
                if info.own_application:
                    run_as_application(info, self.context(), title, self.console)
                else:
                    run_stage(self.context(), info.name, import_module(info.name).run, title, self.console)
