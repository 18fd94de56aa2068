"""first_run: seconds and peak memory of each stage of the default run, one JSON line a figure.

    ./spark-submit.sh tests/bench/first_run.py
    ./spark-submit.sh tests/bench/first_run.py --config conf/rees46_sample.yaml

The pipeline runs as its own process, as a user starts it; memory is the resident set of all its processes, JVM and
training included, sampled every half second (shared pages count once a process).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
_BEGINS = re.compile(r"^\[\d+/\d+\] (\w+): .* \.\.\.$")
_ENDS = re.compile(r"^\[\d+/\d+\] (\w+): .* done in ([\d.]+) s$")


def main() -> None:
    """Run the pipeline, watch it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="settings of the run; repeatable")
    arguments = parser.parse_args()
    command = ["spark-submit", str(ROOT / "jobs" / "pipeline.py")]
    for file in arguments.config:
        command += ["--config", file]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    stage, peaks = ["start"], {"start": 0}
    watcher = threading.Thread(target=_watch, args=(process, stage, peaks), daemon=True)
    watcher.start()
    assert process.stdout is not None
    for line in process.stdout:
        if begins := _BEGINS.match(line.strip()):
            stage[0] = begins[1]
        if ends := _ENDS.match(line.strip()):
            _report(f"{ends[1]}_seconds", float(ends[2]), "s")
            _report(f"{ends[1]}_peak_memory", round(peaks.get(ends[1], 0) / 2**20), "MiB")
            stage[0] = "between stages"
    code = process.wait()
    _report("total_seconds", round(time.monotonic() - started, 1), "s")
    _report("total_peak_memory", round(max(peaks.values()) / 2**20), "MiB")
    raise SystemExit(code)


def _watch(process: subprocess.Popen[str], stage: list[str], peaks: dict[str, int]) -> None:
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for one in [tree, *tree.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peaks[stage[0]] = max(peaks.get(stage[0], 0), total)
        time.sleep(0.5)


def _report(figure: str, value: float, unit: str) -> None:
    print(json.dumps({"figure": figure, "value": value, "unit": unit, "against": None, "n": 1}), flush=True)


if __name__ == "__main__":
    main()
