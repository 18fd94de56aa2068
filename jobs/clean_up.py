"""clean_up: removes the folds and records of earlier runs, which no later run reads, and files that no version needs any more.

./spark-submit.sh jobs/clean_up.py --config conf/my_shop.yaml
./spark-submit.sh jobs/clean_up.py --config conf/my_shop.yaml --set storage.keep_runs=30
"""

from xrec import columns as C
from xrec.features.sequence_files import models_used
from xrec.runs.old_folds import FOLDS_FIGURE, old_folds, old_runs, remove_folds
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute


def run(context: StageContext) -> Figures:
    """Remove the folds of all runs before the newest ``storage.keep_runs``, and the ledger's rows of runs that left none."""
    tables, storage = context.tables, context.settings.storage
    artifacts = absolute(storage.artifacts_root)
    folds = old_folds(tables, artifacts, models=models_used(context.settings), num_runs=storage.keep_runs)
    for line in remove_folds(tables, artifacts, folds):
        context.say(line)
    # After the folds: a call that was killed midway must know of them.
    if runs := old_runs(tables, folds):
        tables.remove_rows("stage_runs", C.RUN_ID, runs)
    removed = {"folds_removed": ", ".join(folds) or "none", "runs_forgotten": f"{len(runs)}"}
    return {**removed, FOLDS_FIGURE: " ".join(folds)}


if __name__ == "__main__":
    main("clean_up", run)
