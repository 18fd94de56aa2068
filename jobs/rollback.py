"""rollback: returns the readers of recommendations to an earlier version, in seconds; without --to it lists the versions.

./spark-submit.sh jobs/rollback.py
./spark-submit.sh jobs/rollback.py --to 12
"""

import argparse

from rich.table import Table as Grid

from xrec.config import add_arguments, load_settings
from xrec.runs.progress import build_console
from xrec.runs.stage import exit_on_error
from xrec.session import build_session
from xrec.storage.tables import Tables

TABLE = "recommendations"


def main() -> None:
    """Read the command line, and restore or list."""
    parser = argparse.ArgumentParser(
        prog="jobs/rollback.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=int, metavar="VERSION", help="the version that readers get again")
    add_arguments(parser)
    arguments = parser.parse_args()
    with exit_on_error():
        settings, console = load_settings(arguments.config, arguments.overrides), build_console()
        tables = Tables(build_session("xrec rollback"), settings.storage)
        if arguments.to is not None:
            now = tables.restore(TABLE, arguments.to)
            console.print(f"{TABLE}: readers get the rows of version {arguments.to} again, as version {now}")
            return
        grid = Grid("version", "written (UTC)", "operation", title=f"{TABLE} at {tables.location(TABLE)}, newest first")
        for version in tables.versions(TABLE):
            grid.add_row(str(version.number), f"{version.written:%Y-%m-%d %H:%M:%S}", version.operation)
        console.print(grid)


if __name__ == "__main__":
    main()
