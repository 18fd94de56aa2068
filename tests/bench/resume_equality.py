"""resume_equality: what kill -9 at random moments changes in what a training ends with.

    ./spark-submit.sh tests/bench/resume_equality.py
    ./spark-submit.sh tests/bench/resume_equality.py --data FOLDER --kills 6

The default log's windows are exported by the pipeline. One training runs undisturbed under horovodrun, with two processes. Then the
same runs again and again: each time a rank, or the launcher with all that it started, is killed after a random while, until it has
been killed --kills times or comes to its end before. Both end on the same number of processes and threads. The killed one is saved
every second, so that it goes on within an epoch.

- max_weight_difference: the largest absolute difference of a weight or an optimizer's number after the last epoch; 0 is equal
- rows_seen_once: whether the loader gives every row of the training split in exactly one batch of an epoch, counted over both
  processes' shards
- kills: how many starts were killed while they ran
- resumed_within: how many starts went on within an epoch
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from trainings import add_export, exported, newest_spec, report

from xrec.features.sequence_files import TRAIN
from xrec.sequence.checkpoint import epoch_file, load_tensors
from xrec.sequence.loader import Shard
from xrec.sequence.progress import load_progress
from xrec.sequence.spec import TrainingSpec

ROOT = Path(__file__).resolve().parent.parent.parent
WHOM = ("rank", "launcher")


def main() -> None:
    """Print the figures; exit with 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export(parser)
    parser.add_argument("--model", default="transformer", choices=("gru", "transformer"))
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xrec-resume-") as temporary:
        settings, values = exported(Path(arguments.data or temporary).resolve(), arguments.config, epochs=6)
        spec = newest_spec(arguments.model, settings)
        command = command_of(arguments, values)
        started = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds, undisturbed = time.monotonic() - started, tensors_of(spec)
        shutil.rmtree(spec.checkpoint)
        moments, kills, said = random.Random(arguments.seed), 0, Path(temporary) / "said"
        command += ["--set", "sequence.checkpoint_seconds=1"]
        while kills < arguments.kills:
            if not run_and_kill(command, said, moments.uniform(0.2, 0.4) * seconds, WHOM[kills % len(WHOM)]):
                break
            kills += 1
        else:
            with said.open("a") as file:
                subprocess.run(command, cwd=ROOT, check=True, stdout=file)
        resumed, within = tensors_of(spec), said.read_text().count(" steps of the next from ")
        once = rows_seen_once(spec)
    assert resumed.keys() == undisturbed.keys(), "the trainings hold different tensors"
    worst = max(float((resumed[name] - tensor).abs().max()) for name, tensor in undisturbed.items())
    report("kills", kills, "processes", None, arguments.kills, model=arguments.model)
    report("resumed_within", within, "starts", None, kills, model=arguments.model)
    report("max_weight_difference", worst, "absolute", "0", len(undisturbed), model=arguments.model)
    report("rows_seen_once", once, "all rows", "true", spec.export.num_shards, model=arguments.model)
    sys.exit(0 if worst == 0 and once and kills and within else 1)


def command_of(arguments: argparse.Namespace, values: dict[str, object]) -> list[str]:
    """The training under horovodrun, as on a GPU host."""
    command = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", sys.executable]
    command.append(str(ROOT / "jobs" / f"train_{arguments.model}.py"))
    for file in arguments.config:
        command += ["--config", file]
    for name, value in {**values, "sequence.launcher": "horovodrun"}.items():
        command += ["--set", f"{name}={value}"]
    return command


def run_and_kill(command: list[str], said: Path, seconds: float, whom: str) -> bool:
    """Start, and after some seconds kill -9 one rank or everything; False where it had come to its end before."""
    with said.open("a") as file:
        running = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    if running.poll() is not None:
        return False
    family = psutil.Process(running.pid).children(recursive=True)
    ranks = [one for one in family if "train_" in " ".join(one.cmdline()) and "python" in one.name()]
    for victim in ranks[-1:] if whom == "rank" else [psutil.Process(running.pid), *family]:
        os.kill(victim.pid, signal.SIGKILL)
    running.wait(timeout=300)
    psutil.wait_procs(family, timeout=300)
    return True


def tensors_of(spec: TrainingSpec) -> dict[str, torch.Tensor]:
    """Weights and optimizer of the last epoch."""
    progress = load_progress(spec.checkpoint)
    assert progress is not None
    assert progress.closed, "the training did not end"
    return load_tensors(epoch_file(spec.checkpoint, progress.last))


def rows_seen_once(spec: TrainingSpec) -> bool:
    """Whether the batches of an epoch hold every row of the shards once."""
    seen: Counter[tuple[int, int]] = Counter()
    rows: Counter[tuple[int, int]] = Counter()
    batch_rows = spec.settings.sequence.batch_rows // spec.export.num_shards
    for index in range(spec.export.num_shards):
        shard = Shard.find(spec.export, TRAIN, index)
        for batches, found in ((shard.shuffled_batches(batch_rows, seed=0, epoch=1), seen), (shard.read(), rows)):
            for batch in batches:
                real = batch.take((batch.row_weight > 0).nonzero()[0])
                found.update(zip(real.user_idx.tolist(), real.window.tolist(), strict=True))
    return seen == rows and set(seen.values()) == {1}


if __name__ == "__main__":
    main()
