"""The command line of the training jobs, under both launchers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from xrec.config import Settings, add_arguments, load_settings
from xrec.sequence.launch import run_as_rank, train_under_spark, tune_as_rank, tune_under_spark


def main(model: str) -> None:
    """Run ``jobs/train_<model>.py``."""
    _launch(f"train_{model}", partial(train_under_spark, model=model), partial(run_as_rank, model))


def tune() -> None:
    """Run ``jobs/tune_sequence.py``."""
    _launch("tune_sequence", tune_under_spark, tune_as_rank)


def _launch(name: str, under_spark: Callable[..., Any], as_rank: Callable[[Settings], None]) -> None:
    """Run a job: as a Spark application, or as one of the ranks that horovodrun started."""
    parser = argparse.ArgumentParser(prog=f"jobs/{name}.py", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--run-id", metavar="ID", help="name of the run in the ledger (default: a new one)")
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.config, arguments.overrides)
        if settings.sequence.launcher == "horovodrun":
            as_rank(settings)
            return
    except ValueError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    from xrec.runs import stage  # noqa: PLC0415 - it starts with pyspark, which a rank on a GPU host does not have

    stage.main(name, under_spark)
