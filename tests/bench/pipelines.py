"""What the benches share: the pipeline as a process of its own, and its tables without a JVM."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import deltalake
import pandas as pd
import pyarrow.dataset

ROOT = Path(__file__).resolve().parent.parent.parent


def run_pipeline(settings: Mapping[str, object], *stages: str, configs: Sequence[Path] = ()) -> None:
    """Run jobs/pipeline.py with ``--set`` of each setting; ``stages`` are its options that choose stages."""
    command = ["spark-submit", str(ROOT / "jobs" / "pipeline.py"), *stages]
    for config in configs:
        command += ["--config", str(config)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, cwd=ROOT, check=True)


def read_table(root: Path, name: str) -> pd.DataFrame:
    """All rows of a table's newest version."""
    files = deltalake.DeltaTable(str(root / name)).file_uris()
    return pyarrow.dataset.dataset(files, partitioning="hive").to_table().to_pandas()
