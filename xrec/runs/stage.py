"""What every stage is given, and the main function of its job file."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Protocol

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console

from xrec import columns as C
from xrec.config import Settings, SettingsError, add_arguments, as_arguments, load_settings
from xrec.evaluation.folds import Fold, plan_folds, select_folds_before
from xrec.experiments.exposures import read_exposures
from xrec.logrules.identity import persons_opted_out
from xrec.runs.ledger import StageRun, record
from xrec.runs.progress import StageProgress, build_console
from xrec.runs.stages import STAGE_NAMES
from xrec.runs.tracking import FAILED, track
from xrec.session import build_session
from xrec.storage.files import absolute
from xrec.storage.shared import SharedFolder, shared_folder
from xrec.storage.tables import Tables

_FULL_DISK = "No space left on device"
_WRITTEN_TO = re.compile(r"writing rows to (\S+?)\.? ")
_OURS = re.compile(r"^xrec\.[\w.]+Error: (.+)")
"""What a task raised, in the traceback that Spark passes on."""
WHOLE_RUN = "XREC_WHOLE_RUN"
"""Environment variable that tells an application the run that it is a part of."""
EXIT_BAD_INPUT = 2
EXIT_FAILED = 1

PIPELINE = ("jobs/pipeline.py",)

Figures = dict[str, str]
"""What a stage reports: a name and a figure, for the ledger and the summary."""


@dataclass(kw_only=True)
class StageContext:
    """A session, the settings and the tables, for one run of one stage."""

    spark: SparkSession
    settings: Settings
    run_id: str
    given: Sequence[str] = ()
    """The arguments that the settings were made of, as a command takes them."""
    job: Sequence[str] = PIPELINE
    """The job of the run, with options of its own: its ``--from`` goes on with a stage."""
    say: Callable[[str], None] = field(default=print)

    @cached_property
    def tables(self) -> Tables:
        """The tables; each read pins its version for this stage."""
        return Tables(self.spark, self.settings.storage)

    @cached_property
    def folds(self) -> list[Fold]:
        """The run's folds, the main one (test or serve) last."""
        events = self.tables.read("judged_events")
        bounds = events.agg(F.min(C.EVENT_TS), F.max(C.EVENT_TS)).first()
        if bounds is None or bounds[0] is None:
            raise SettingsError(
                f"table 'judged_events' at {self.tables.location('judged_events')} is empty: expected at least one event"
            )
        first, last = (bound.replace(tzinfo=timezone.utc) for bound in bounds)
        longest = None
        if self.settings.folds.kind == "last_out":
            counted = events.where(F.col(C.VOID_TS).isNull()).groupBy(C.USER_ID).count()
            most = counted.agg(F.max("count")).first()
            longest = None if most is None else most[0]
        return plan_folds(self.settings.folds, first, last, longest=longest)

    def shared_folder(self) -> AbstractContextManager[SharedFolder]:
        """A folder for rows that a stage shares with its tasks, within the context."""
        return shared_folder(f"{absolute(self.settings.storage.artifacts_root)}/shared")

    @property
    def main_fold(self) -> Fold:
        """The newest fold: test or serve, but where the settings have select folds alone."""
        return self.folds[-1]

    @property
    def served_fold(self) -> Fold:
        """The fold whose lists are written, test or serve; raises where the settings have select folds alone."""
        if self.settings.folds.purpose == "select":
            raise SettingsError(
                "folds.purpose: found select, expected test or serve: the lists of select folds only choose what serves, and none "
                "of them goes out; compare models by jobs/compare.py, or leave folds.purpose=select out"
            )
        return self.main_fold

    @property
    def judged_folds(self) -> list[Fold]:
        """The folds whose lists are judged: those of the purpose that the settings name."""
        return [fold for fold in self.folds if fold.purpose == self.settings.folds.purpose]

    @property
    def folds_of_targets(self) -> list[Fold]:
        """The folds in which users with targets alone have lists: those by which models only learn and are chosen.

        All users have lists in what is judged, and in the newest fold before it: probabilities are fitted on those.
        """
        older = [select_folds_before(fold, self.folds) for fold in self.judged_folds]
        of_all = {*self.judged_folds, *(known[-1] for known in older if known)}
        return [fold for fold in self.folds if fold not in of_all]

    def scopes_of(self, fold: Fold) -> tuple[str, ...]:
        """The scopes that a fold has lists in: that which serves, and where it is judged the others beside it."""
        return self.settings.scopes if fold in self.judged_folds else (self.settings.ranking.scope,)

    def read_folds(self, table: str) -> DataFrame:
        """A table's rows of the run's folds."""
        return self.tables.read(table).where(F.col(C.FOLD).isin([fold.name for fold in self.folds]))

    def indexed_events(self) -> DataFrame:
        """Judged events with ``user_idx``, ``item_idx``, ``category`` and ``recommendable`` beside their own columns."""
        users = self.tables.read("users").select(C.USER_ID, C.USER_IDX)
        items = self.tables.read("items").select(C.ITEM_ID, C.ITEM_IDX, C.CATEGORY, C.RECOMMENDABLE)
        events = self.tables.read("judged_events").drop(C.VERSIONS)
        return events.join(users, C.USER_ID, how="inner").join(items, C.ITEM_ID, how="inner")

    def users_served(self) -> DataFrame:
        """Rows of ``users`` without those who opted out, also since the candidates were made."""
        tables = self.tables
        users = tables.read("users")
        if not tables.exists("opt_outs"):
            return users
        identities = tables.read("identities") if tables.exists("identities") else None
        left_out = persons_opted_out(tables.read("opt_outs"), identities, self.settings)
        return users.join(left_out.select(C.USER_ID), C.USER_ID, how="left_anti")

    def indexed_exposures(self) -> DataFrame:
        """Exposures that have an item, of those who did not opt out, with ``user_idx`` and ``item_idx``; once each."""
        users = self.tables.read("users").select(C.USER_ID, C.USER_IDX)
        items = self.tables.read("items").select(C.ITEM_ID, C.ITEM_IDX)
        exposures = read_exposures(self.tables, self.settings).where(~F.col(C.OPTED_OUT))
        return exposures.join(users, C.USER_ID, how="inner").join(items, C.ITEM_ID, how="inner")


class Stage(Protocol):
    """A job file's function: reads tables, calls xrec, writes tables, returns its figures."""

    def __call__(self, context: StageContext) -> Figures:
        """Run the stage."""
        ...  # pragma: no cover


class StageFailedError(RuntimeError):
    """A stage that ran as an application of its own ended with an error, which it has printed."""


def new_run_id(settings: Settings) -> str:
    """A name for one run that sorts by time and tells settings apart."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{settings.digest()}-{secrets.token_hex(2)}"


def run_stage(context: StageContext, name: str, stage: Stage, title: str, console: Console) -> StageRun:
    """Run one stage with its progress shown, and write its row of the ledger."""
    started = datetime.now(timezone.utc)
    try:
        with StageProgress(console, context.spark, title) as progress:
            context.say = progress.say
            figures = stage(context)
    except Exception as error:
        # Whoever submitted it as a part of a run says the command, with the settings' own files.
        if not _is_part_of_run(context):
            error.add_note(
                f"what was written before stays; once this is mended, go on with {command_from(name, context)}"
            )
        raise
    run = StageRun(
        run_id=context.run_id,
        stage=name,
        started_ts=started,
        seconds=progress.seconds,
        settings_hash=context.settings.digest(),
        outputs=context.tables.written_versions,
        figures=figures,
    )
    record(Tables(context.spark, context.settings.storage), run)
    return run


def command_from(name: str, context: StageContext) -> str:
    """The command that goes on with a stage, with the same settings."""
    job = [*context.job, "--from", name] if name in STAGE_NAMES else [f"jobs/{name}.py"]
    return shlex.join(["./spark-submit.sh", *job, *context.given])


@contextmanager
def tracked(context: StageContext, console: Console) -> Iterator[None]:
    """Log the context's run to MLflow when the stages in the block have ended, also where one of them failed."""
    tables = Tables(context.spark, context.settings.storage)
    try:
        yield
    except Exception:
        track(tables, context.settings, context.run_id, console, FAILED)
        raise
    track(tables, context.settings, context.run_id, console)


def main(name: str, stage: Stage, argv: Sequence[str] | None = None) -> None:
    """Run one stage from the command line: the main function of ``jobs/<name>.py``."""
    parser = argparse.ArgumentParser(prog=f"jobs/{name}.py", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--run-id", metavar="ID", help="name of the run in the ledger (default: a new one)")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    with exit_on_error():
        settings = load_settings(arguments.config, arguments.overrides)
        console = build_console()
        context = StageContext(
            spark=build_session(f"xrec {name}"),
            settings=settings,
            run_id=arguments.run_id or new_run_id(settings),
            given=as_arguments(arguments.config, arguments.overrides),
        )
        # A stage that a whole run submits is logged with that run, when it ends.
        with nullcontext() if _is_part_of_run(context) else tracked(context, console):
            run = run_stage(context, name, stage, name, console)
        for figure, value in run.shown.items():
            console.print(f"    {figure}: {value}")


def _is_part_of_run(context: StageContext) -> bool:
    """Whether a run of several stages submitted this process for one of them."""
    return os.environ.get(WHOLE_RUN) == context.run_id


class exit_on_error:  # noqa: N801 - reads as a statement: with exit_on_error()
    """Turns an error into one message and an exit code: 2 for bad input or settings, 1 for what failed underneath.

    With XREC_TRACEBACK=1 the traceback is printed as well.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, SystemExit | KeyboardInterrupt):
            return
        if os.environ.get("XREC_TRACEBACK") == "1":
            traceback.print_exception(error)
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", []))
        print(f"\nerror: {describe_error(error)}{notes}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_FAILED)


def describe_error(error: BaseException) -> str:
    """An error as a person reads it: our own messages whole, Spark's without its Java stack."""
    if isinstance(error, ValueError | StageFailedError):
        return str(error)
    hint = "set XREC_TRACEBACK=1 to see the traceback"
    if isinstance(error, Py4JError | PySparkException):
        lines = [
            line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith("at ")
        ]
        if any(_FULL_DISK in line for line in lines):
            written = next((found[1] for line in lines if (found := _WRITTEN_TO.search(line))), "")
            where = f" while writing to {written}" if written else ""
            return (
                f"no space left on the disk{where}; free some, or choose another storage.root (or spark.local.dir, where Spark "
                f"keeps its temporary files) ({hint})"
            )
        if ours := next((found[1] for line in lines if (found := _OURS.search(line))), None):
            return ours
        causes = [line for line in lines if line.startswith("Caused by")]
        return f"Spark failed: {' | '.join(dict.fromkeys([*lines[:2], *causes[-1:]]))} ({hint})"
    return f"{type(error).__name__}: {error} ({hint})"
