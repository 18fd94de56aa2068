"""Helpers that run the real pipeline as a process, watch what it writes, and read its tables without Spark."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import deltalake
import pandas as pd
import pyarrow.dataset

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "jobs" / "pipeline.py"
SHORT_LIVED_JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
"""Java's second compiler takes half of the processor in a run of minutes, and pays off only in longer ones."""
_SMALL = {
    "spark.driver.memory": "2g",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": f"-XX:+UseParallelGC {SHORT_LIVED_JVM}",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
}


class PipelineRun:
    """A ``spark-submit jobs/pipeline.py`` in a process group of its own, with its output kept."""

    def __init__(self, config: Path, *arguments: str, job: Path = PIPELINE, event_logs: Path | None = None) -> None:
        command = ["spark-submit", "--master", "local[2]"]
        options = dict(_SMALL)
        if event_logs is not None:
            event_logs.mkdir(parents=True)
            options |= {"spark.eventLog.enabled": "true", "spark.eventLog.dir": f"file://{event_logs}"}
            options |= {"spark.eventLog.compress": "false", "spark.eventLog.rolling.enabled": "false"}
        for key, value in options.items():
            command += ["--conf", f"{key}={value}"]
        command += [str(job), "--config", str(config), *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def finish(self, timeout_seconds: float = 1800) -> int:
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._close()
        return code

    def kill(self) -> None:
        """kill -9 of everything that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close()

    def kill_when_writing(self, folders: Sequence[Path], stage: str, timeout_seconds: float = 300) -> None:
        """kill -9 as soon as the stage has begun and a new file stands in one of the folders.

        Raises AssertionError where the run ended, or wrote nothing in time: then nothing was tested.
        """
        deadline = time.monotonic() + timeout_seconds
        while not any(f"{stage}: " in line or line.startswith(f"{stage} ...") for line in self.lines):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)
        before = _files(folders)
        while _files(folders) <= before:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.002)
        self.kill()

    def _close(self) -> None:
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


def read_table(root: Path, name: str, version: int | None = None) -> pd.DataFrame:
    """A table, read without Spark or xrec, as a downstream system would."""
    table = deltalake.DeltaTable(str(root / name), version=version)
    return pyarrow.dataset.dataset(table.file_uris()).to_table().to_pandas()


def _files(folders: Sequence[Path]) -> set[Path]:
    found = set()
    for folder in folders:
        for parent, _, names in os.walk(folder):
            found |= {Path(parent, name) for name in names if not name.endswith(".crc")}
    return found
