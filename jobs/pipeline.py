"""pipeline: from the raw log to the recommendations table, every stage in order, and a summary.

./spark-submit.sh jobs/pipeline.py                                        the default log, Complete Journey
./spark-submit.sh jobs/pipeline.py --config conf/my_shop.yaml             your log
./spark-submit.sh jobs/pipeline.py --config conf/my_shop.yaml --changed-since latest      no sequence model is trained
./spark-submit.sh jobs/pipeline.py --from candidates                      again from a stage on
./spark-submit.sh jobs/pipeline.py --only evaluate                        one stage
./spark-submit.sh jobs/pipeline.py --dry-run                              what would run, on which versions
"""

import argparse

from xrec.config import add_arguments, load_settings
from xrec.runs.progress import build_console
from xrec.runs.running import Run
from xrec.runs.stage import exit_on_error, new_run_id
from xrec.runs.stages import STAGE_NAMES, needed_sources, select_stages
from xrec.runs.summary import print_plan, print_summary
from xrec.session import build_session
from xrec.storage.tables import Tables


def main() -> None:
    """Run the chosen stages; each is the ``run`` of its job file."""
    parser = argparse.ArgumentParser(prog="jobs/pipeline.py", description=__doc__)
    parser.add_argument("--from", dest="first", choices=STAGE_NAMES, metavar="STAGE", help="start with this stage")
    parser.add_argument("--until", dest="last", choices=STAGE_NAMES, metavar="STAGE", help="stop after this stage")
    parser.add_argument("--only", action="append", default=[], choices=STAGE_NAMES, metavar="STAGE", help="repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, on which versions, and stop")
    parser.epilog = f"stages, in order: {', '.join(STAGE_NAMES)}"
    add_arguments(parser)
    arguments = parser.parse_args()
    with exit_on_error():
        settings = load_settings(arguments.config, arguments.overrides)
        chosen = select_stages(arguments.first, arguments.last, arguments.only, needed_sources(settings))
        spark, console, run_id = build_session("xrec pipeline"), build_console(), new_run_id(settings)
        print_plan(console, Tables(spark, settings.storage), chosen, settings)
        if arguments.dry_run:
            return
        run = Run(
            spark=spark,
            console=console,
            run_id=run_id,
            settings=settings,
            config=arguments.config,
            overrides=arguments.overrides,
        )
        run.run(chosen)
        print_summary(console, run.context(), chosen)


if __name__ == "__main__":
    main()
