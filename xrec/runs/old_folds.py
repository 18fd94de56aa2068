"""Folds of earlier runs: every night has folds of its own, and their rows and models stay until somebody removes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xrec import columns as C
from xrec.features.sequence_files import forget_exports, read_folds_in_use
from xrec.features.vector_files import read_newest_trained
from xrec.runs.ledger import StageRun, runs_before, runs_of_stages
from xrec.schemas import TABLES
from xrec.storage.files import exists, remove
from xrec.storage.tables import Tables

FOLDS_FIGURE = "_folds"
"""What is left in the ledger: by the stage fold the names of all folds of its run, by clean_up of those that it removed."""


def old_folds(tables: Tables, artifacts: str, *, models: Sequence[str], num_runs: int) -> list[str]:
    """The folds of runs before the newest ``num_runs``, as the ledger knows them, but those that are still read.

    These are the folds of the newest runs and of the newest exports, and those by whose ``models`` other nights encode: the ones
    that the newest nights were encoded by, and the newest that were trained, which a later export that never was does not replace.
    What the ledger does not know, such as the folds of a run that is going on, stays.
    """
    runs = runs_of_stages(tables, "fold", "clean_up")
    newest = [run for run in runs if run.stage == "fold"][:num_runs]
    kept = {fold for run in newest for fold in _named(run)}
    return sorted(_there(runs) - kept - read_folds_in_use(artifacts) - read_newest_trained(artifacts, models))


def old_runs(tables: Tables, removed: Sequence[str]) -> list[str]:
    """The runs that the ledger need not know any more once these folds are ``removed``.

    They began before the oldest run of whose folds one is still there, which a later call has to know of, and none has the newest
    row of a stage, which the next run asks for.
    """
    runs = runs_of_stages(tables, "fold", "clean_up")
    there = _there(runs).difference(removed)
    begun = [run.started_ts for run in runs if run.stage == "fold" and not there.isdisjoint(_named(run))]
    return runs_before(tables, min(begun)) if begun else []


def _named(run: StageRun) -> list[str]:
    return run.figures.get(FOLDS_FIGURE, "").split()


def _there(runs: Sequence[StageRun]) -> set[str]:
    """The folds that these runs, the newest first, made and did not remove."""
    there: set[str] = set()
    for run in reversed(runs):
        there = there.union(_named(run)) if run.stage == "fold" else there.difference(_named(run))
    return there


def remove_folds(tables: Tables, artifacts: str, folds: Sequence[str]) -> Iterator[str]:
    """Remove models and rows of the folds, one commit a table, and the files that no version within its retention needs.

    Killed midway it has removed less; the same call goes on. Gives a line for each thing that was done.
    """
    forget_exports(artifacts, folds)
    for fold in folds:
        if exists(location := f"{artifacts}/{fold}"):
            remove(location)
            yield f"{location}: removed"
    for name in TABLES:
        if not tables.exists(name):
            continue
        if C.FOLD in TABLES[name].owned_by and folds and tables.remove_rows(name, C.FOLD, folds):
            yield f"{name}: rows of these folds removed"
        tables.vacuum(name)
    yield f"files that no version of the last {tables.storage.retention_days} days needs: removed"
