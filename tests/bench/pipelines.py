"""What the benches share: the pipeline as a process of its own, and its tables without a JVM."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import deltalake
import numpy as np
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


def only(stages: Sequence[str]) -> list[str]:
    """The options that choose some stages, for :func:`run_pipeline`."""
    return [part for stage in stages for part in ("--only", stage)]


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


def ndcg_of_users(lists: pd.DataFrame, targets: pd.DataFrame, k: int) -> pd.DataFrame:
    """``ndcg``, one row a (model, user with targets), of the lists' first k items; 0 where a model has no list for him."""
    ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))
    num_targets = targets.groupby("user_idx").size()
    best = pd.Series(ideal[np.minimum(num_targets, k) - 1], num_targets.index)
    hits = lists.merge(targets[["user_idx", "item_idx"]], on=["user_idx", "item_idx"])
    gains = (1 / np.log2(hits["rank"] + 1)).groupby([hits["source"], hits["user_idx"]]).sum()
    every = pd.MultiIndex.from_product([sorted(lists["source"].unique()), best.index], names=["model", "user_idx"])
    values = gains.reindex(every, fill_value=0.0) / best.reindex(every.get_level_values("user_idx")).to_numpy()
    return values.rename("ndcg").reset_index()
