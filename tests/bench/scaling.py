"""scaling: two Horovod processes beside one, each on a core of its own with one thread, the same batch a process.

    ./spark-submit.sh tests/bench/scaling.py
    ./spark-submit.sh tests/bench/scaling.py --data FOLDER --models transformer

The default log's windows are exported by the pipeline. Then horovodrun starts one process and two in turn; each is bound to its
core before it imports torch, so that Petastorm's and Horovod's threads share it. An epoch is what a training's is: reading,
steps and all-reduce, no validation.

- two_to_one_rate: windows/s of all processes, two to one, medians over --repeats starts of the epochs after the first
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUND = 1.6
MODELS = ("gru", "transformer")
ROWS_OF_A_PROCESS = 64
_RATE = "windows/s: "


def main() -> None:
    """Print a line a model; exit with 1 where one is below the bound."""
    if os.environ.get("HOROVOD_RANK"):
        train_as_rank()
        return
    from trainings import add_export, exported, report  # noqa: PLC0415 - a rank binds itself to its core first

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export(parser)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--repeats", type=int, default=3, help="starts of one and of two processes")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a start; the first does not count")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit(
            "error: found one core that this process may use, expected two; without a core each there is nothing to scale"
        )
    with tempfile.TemporaryDirectory(prefix="xrec-scaling-") as temporary:
        _, values = exported(Path(arguments.data or temporary).resolve(), arguments.config)
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.repeats):
            for model in arguments.models:
                for processes in (1, 2):
                    rate = start(model, processes, arguments, values)
                    rates.setdefault((model, processes), []).append(rate)
    ratios = {}
    for model in arguments.models:
        one, two = (statistics.median(rates[model, processes]) for processes in (1, 2))
        ratios[model] = two / one
        report("windows_a_second", one, "windows/s", None, arguments.repeats, model=model, processes=1)
        report("windows_a_second", two, "windows/s", None, arguments.repeats, model=model, processes=2)
        report("two_to_one_rate", two / one, "ratio", f">= {BOUND}", arguments.repeats, model=model)
    sys.exit(0 if min(ratios.values()) >= BOUND else 1)


def start(model: str, processes: int, arguments: argparse.Namespace, values: dict[str, object]) -> float:
    """Windows/s of all processes of one start."""
    told = {"model": model, "epochs": arguments.epochs, "configs": arguments.config}
    told["overrides"] = [
        *[f"{name}={value}" for name, value in values.items()],
        f"sequence.num_processes={processes}",
        f"sequence.batch_rows={ROWS_OF_A_PROCESS * processes}",
    ]
    horovodrun = str(Path(sys.executable).with_name("horovodrun"))
    command = [horovodrun, "-np", str(processes), sys.executable, __file__, json.dumps(told, default=str)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in ran.stdout.splitlines() if _RATE in line]
    if ran.returncode or not lines:
        sys.exit(f"error: {processes} processes of {model} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return float(lines[-1].split(_RATE)[1])


def train_as_rank() -> None:
    """Train some epochs on this rank's core; rank 0 prints the median rate of all ranks together."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["HOROVOD_LOCAL_RANK"])]})
    os.environ["OMP_NUM_THREADS"] = "1"
    import horovod.torch as hvd  # noqa: PLC0415 - after the process is bound to its core
    import torch  # noqa: PLC0415
    from trainings import newest_spec  # noqa: PLC0415

    from xrec.config import load_settings  # noqa: PLC0415
    from xrec.features.sequence_files import TRAIN  # noqa: PLC0415
    from xrec.sequence.trainer import Trainer  # noqa: PLC0415

    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    hvd.init()
    spec = newest_spec(told["model"], load_settings(told["configs"], told["overrides"]))
    trainer = Trainer(spec, torch.device("cpu"), print)
    num_steps = trainer.train_shards[0].num_batches(trainer.batch_rows)
    windows = spec.export.rows[TRAIN] * spec.export.num_shards
    rates = []
    for epoch in range(1, told["epochs"] + 1):
        hvd.allreduce(torch.zeros(1), name=f"start_{epoch}")
        started = time.perf_counter()
        trainer.train_epoch(epoch, num_steps)
        rates.append(windows / (time.perf_counter() - started))
    if hvd.rank() == 0:
        print(f"{_RATE}{statistics.median(rates[1:])}", flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main()
