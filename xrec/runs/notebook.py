"""A run's settings and tables, for a notebook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import xrec
from xrec.config import load_settings
from xrec.runs.stage import StageContext
from xrec.session import build_session


def open_run(config: str, overrides: Sequence[str] = ()) -> StageContext:
    """The settings and tables that stages with this config have; ``overrides`` are as for ``--set``.

    A notebook begins in its own folder. In a checkout the working directory becomes the checkout's, from where the relative paths
    of configs start.
    """
    checkout = Path(xrec.__file__).resolve().parents[1]
    if (checkout / "conf").is_dir():
        os.chdir(checkout)
    settings = load_settings([config], overrides)
    return StageContext(spark=build_session("xrec notebook"), settings=settings, run_id="notebook")
