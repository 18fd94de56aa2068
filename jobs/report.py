"""report: one HTML page of what the runs did and found, which needs nothing else.

./spark-submit.sh jobs/report.py                                          beside the tables, as report.html
./spark-submit.sh jobs/report.py --output s3://bucket/reports/today.html
"""

import argparse
from functools import partial

from xrec.config import add_arguments, as_arguments, load_settings
from xrec.reporting.gather import gather
from xrec.reporting.page import render
from xrec.runs.progress import build_console
from xrec.runs.stage import Figures, StageContext, exit_on_error, new_run_id, run_stage
from xrec.session import build_session
from xrec.storage.files import absolute, write_bytes


def run(context: StageContext, output: str | None = None) -> Figures:
    """Write the page, by default beside the tables (where these are in a catalog: beside the artifacts)."""
    storage = context.settings.storage
    place = absolute(output or f"{storage.artifacts_root if storage.catalog else storage.tables_root}/report.html")
    page = render(gather(context)).encode()
    write_bytes(place, page)
    return {"page": place, "size": f"{len(page) / 1e6:.1f} MB"}


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(prog="jobs/report.py", description=__doc__)
    parser.add_argument("--output", metavar="FILE", help="file or URL (default: report.html beside the tables)")
    parser.add_argument("--run-id", metavar="ID", help="name of the run in the ledger (default: a new one)")
    add_arguments(parser)
    arguments = parser.parse_args()
    with exit_on_error():
        settings = load_settings(arguments.config, arguments.overrides)
        console, run_id = build_console(), arguments.run_id or new_run_id(settings)
        context = StageContext(
            spark=build_session("xrec report"),
            settings=settings,
            run_id=run_id,
            given=as_arguments(arguments.config, arguments.overrides),
        )
        done = run_stage(context, "report", partial(run, output=arguments.output), "report", console)
        console.print(f"    {done.shown['page']} ({done.shown['size']}, {done.seconds:.1f} s)", soft_wrap=True)


if __name__ == "__main__":
    main()
