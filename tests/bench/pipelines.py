"""What the benches share: the pipeline as a process of its own, and its tables without a JVM."""

from __future__ import annotations

import subprocess
import sys
import venv
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


def make_environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment of its own that has some packages; pip installs them the first time."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        installed = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=False)
        if installed.returncode:
            sys.exit(f"error: {packages[0]} could not be installed into {folder}: pip's message is above")
    return python


def read_lists(root: Path) -> pd.DataFrame:
    """The lists of the table candidates, one row an item, with its rank."""
    lists = read_table(root, "candidates").drop(columns="scores").rename(columns={"items": "item_idx"})
    rows = lists.explode("item_idx", ignore_index=True).astype({"item_idx": "int32"})
    return rows.assign(rank=rows.groupby(["fold", "source", "scope", "user_idx"], observed=True).cumcount() + 1)


def read_table(root: Path, name: str) -> pd.DataFrame:
    """All rows of a table's newest version."""
    files = deltalake.DeltaTable(str(root / name)).file_uris()
    return pyarrow.dataset.dataset(files, partitioning="hive").to_table().to_pandas()
