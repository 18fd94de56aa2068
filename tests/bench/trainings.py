"""What the benches of the training share: real exported windows, and the figures as lines of JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import Any

from pipelines import run_pipeline

from xrec.config import Settings, load_settings
from xrec.features.sequence_files import read_exported_folds
from xrec.sequence.spec import TrainingSpec
from xrec.storage.files import exists

ONE_FOLD = {"folds.num_select": 0, "ranking.sources": "[popularity,gru]", "sequence.max_windows": 2}
"""What is exported: one fold, with the item vectors that the models are given; few windows a user, so that epochs are short."""


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained on."""
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="the log (default Complete Journey)"
    )
    parser.add_argument("--data", metavar="PATH", help="where the tables are kept (default: a temporary folder)")


def exported(folder: Path, configs: Ordered[str], **sequence: object) -> tuple[Settings, dict[str, object]]:
    """Settings whose windows are in ``folder``, and what sets them; the stages up to the export run where they are not there."""
    values: dict[str, object] = {**ONE_FOLD, "storage.root": folder}
    values |= {f"sequence.{name}": value for name, value in sequence.items()}
    settings = load_settings(configs, [f"{name}={value}" for name, value in values.items()])
    if not exists(f"{settings.storage.artifacts_root}/exports.json"):
        run_pipeline(values, "--until", "export_sequences", configs=[Path(file) for file in configs])
    return settings, values


def newest_spec(model: str, settings: Settings) -> TrainingSpec:
    """The training of the newest exported fold."""
    return TrainingSpec.plan(model, read_exported_folds(settings.storage.artifacts_root)[-1:], settings)[0]


def report(figure: str, value: float | bool, unit: str, against: str | None, n: int, **of: Any) -> None:
    """Print a figure as a line of JSON."""
    shown = value if isinstance(value, bool) else float(f"{value:.4g}")
    print(json.dumps({"figure": figure, "value": shown, "unit": unit, "against": against, "n": n, **of}), flush=True)
