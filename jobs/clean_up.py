"""clean_up: removes the folds of earlier runs, which no later run reads, and the files that no version needs any more.

./spark-submit.sh jobs/clean_up.py --config conf/my_shop.yaml
./spark-submit.sh jobs/clean_up.py --config conf/my_shop.yaml --set storage.keep_runs=30
"""

from xrec.features.sequence_files import models_used
from xrec.runs.old_folds import FOLDS_FIGURE, old_folds, remove_folds
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute


def run(context: StageContext) -> Figures:
    """Remove the folds of all runs before the newest ``storage.keep_runs``."""
    tables, storage = context.tables, context.settings.storage
    artifacts = absolute(storage.artifacts_root)
    folds = old_folds(tables, artifacts, models=models_used(context.settings), num_runs=storage.keep_runs)
    for line in remove_folds(tables, artifacts, folds):
        context.say(line)
    return {"folds_removed": ", ".join(folds) or "none", FOLDS_FIGURE: " ".join(folds)}


if __name__ == "__main__":
    main("clean_up", run)
