"""The command line of the training jobs, under both launchers."""

from __future__ import annotations

import argparse
import sys

from xrec.config import add_arguments, load_settings
from xrec.sequence.launch import run_as_rank, train_under_spark


def main(model: str) -> None:
    """Run ``jobs/train_<model>.py``: as a Spark application, or as one of the ranks that horovodrun started."""
    parser = argparse.ArgumentParser(prog=f"jobs/train_{model}.py", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--run-id", metavar="ID", help="name of the run in the ledger (default: a new one)")
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.config, arguments.overrides)
        if settings.sequence.launcher == "horovodrun":
            run_as_rank(model, settings)
            return
    except ValueError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    from xrec.runs import stage  # noqa: PLC0415 - it starts with pyspark, which a rank on a GPU host does not have

    stage.main(f"train_{model}", lambda context: train_under_spark(context, model))
