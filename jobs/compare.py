"""compare: baselines and models on one log, judged on the select folds, or with --final on the test fold.

./spark-submit.sh jobs/compare.py                                         the sources of the settings, on three select folds
./spark-submit.sh jobs/compare.py --sources popularity,recent,item_knn,als --folds 4
./spark-submit.sh jobs/compare.py --sources als --trials 12               search ALS's settings first
./spark-submit.sh jobs/compare.py --final                                 test figures, on record in the table looks
"""

import argparse

from xrec.config import add_arguments, load_settings
from xrec.runs.comparison import compare
from xrec.runs.progress import build_console
from xrec.runs.running import Run
from xrec.runs.stage import exit_on_error
from xrec.runs.stages import STAGE_NAMES
from xrec.session import build_session


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(prog="jobs/compare.py", description=__doc__)
    parser.add_argument("--sources", metavar="A,B,...", help="what is compared (default: ranking.sources)")
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="select folds, one horizon apart (default 3)")
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="settings of ALS to try first (default 0)")
    parser.add_argument("--final", action="store_true", help="judge the test fold, once the settings are chosen")
    parser.add_argument("--from", dest="first", choices=STAGE_NAMES, metavar="STAGE", help="start with this stage")
    parser.add_argument("--run-id", metavar="ID", help="name of the run in the ledger (default: a new one)")
    add_arguments(parser)
    arguments = parser.parse_args()
    with exit_on_error():
        settings = load_settings(arguments.config, arguments.overrides)
        run = Run(
            spark=build_session("xrec compare"),
            console=build_console(),
            run_id=arguments.run_id or "",
            settings=settings,
            config=arguments.config,
            overrides=arguments.overrides,
        )
        compare(
            run,
            sources=arguments.sources,
            num_folds=arguments.folds,
            num_trials=arguments.trials,
            is_final=arguments.final,
            first=arguments.first,
        )


if __name__ == "__main__":
    main()
