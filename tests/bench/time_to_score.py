"""time_to_score: seconds of training until NDCG@10 is .045, the Transformer here and RecTools' SASRec, on Amazon Beauty.

    ./spark-submit.sh tests/bench/time_to_score.py
    ./spark-submit.sh tests/bench/time_to_score.py --tables FOLDER --repeats 3

What is trained on leaves out each user's last two items, the last but one is asked for, among all items that he did not have, and
judged after every epoch by the same few lines; only training counts, not judging, reading the log or making batches the first time.
Here two Horovod processes of one thread each train with the settings of beauty_gate.yaml; RecTools (an environment of its own below
--tables, made at the first call by pip) trains in one process of two threads with the same sizes, learning rate and batch, and its
softmax over all items; its own sizes (256 factors, two blocks, 100 items) are slower on a processor. They take turns.

- seconds_to_score, rectools_seconds_to_score: medians over --repeats
- ratio_to_rectools: of the two; bound 0.5
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

import horovod.torch as hvd
import numpy as np
import torch
from beauty_gate import CONFIGS, DATA, add_log, settings_of
from numpy.typing import NDArray
from pipelines import make_environment, read_table, run_pipeline
from trainings import newest_spec, report

from xrec.config import load_settings
from xrec.features.sequence_files import TRAIN, VALIDATION
from xrec.sequence.loader import Shard
from xrec.sequence.states import states_of
from xrec.sequence.trainer import Trainer
from xrec.storage.files import exists

BOUND, SCORE, K = 0.5, 0.045, 10
RECTOOLS = ("rectools[torch]==0.19.0",)
RANKS = 2
_SECONDS = "seconds: "


def main() -> None:
    """Export, train in turns, print the figures; exit with 1 where the bound does not hold."""
    if os.environ.get("HOROVOD_RANK"):
        train_as_rank(*json.loads(sys.argv[1]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="holds interactions.csv.gz and items.csv.gz")
    parser.add_argument("--tables", metavar="PATH", help="where the tables are kept (default: a temporary folder)")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    log = add_log(arguments.data)
    with tempfile.TemporaryDirectory(prefix="xrec-score-") as temporary:
        folder = Path(arguments.tables or temporary).resolve()
        values = settings_of(log, folder, ["transformer"], seed=0, final=False)
        if not exists(f"{folder}/_artifacts/exports.json"):
            run_pipeline(values, "--until", "export_sequences", configs=CONFIGS)
        python = make_environment(folder / "rectools", RECTOOLS)
        overrides = [f"{key}={value}" for key, value in values.items()]
        horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(RANKS), sys.executable, __file__]
        sequence = load_settings(CONFIGS, overrides).sequence
        theirs = Path(__file__).with_name("time_to_score_rectools.py")
        commands = {
            "seconds_to_score": [*horovodrun, json.dumps([overrides, str(folder)])],
            "rectools_seconds_to_score": [
                str(python),
                str(theirs),
                str(log["log.file.path"]),
                json.dumps({"score": SCORE, "threads": RANKS, **sequence.model_dump(mode="json")}),
            ],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                seconds[name].append(run(command))
    ours, their = (statistics.median(values) for values in seconds.values())
    for name, values_of in seconds.items():
        report(name, statistics.median(values_of), "s", f"NDCG@{K} {SCORE}", arguments.repeats, of_repeats=values_of)
    report("ratio_to_rectools", ours / their, "ratio", f"<= {BOUND}", arguments.repeats)
    sys.exit(int(ours / their > BOUND))


def run(command: list[str]) -> float:
    """The seconds that a training prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONPATH": os.environ.get("PYTHONPATH", "") if "horovodrun" in command[0] else ""
    }
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in ran.stdout.splitlines() if _SECONDS in line]
    if ran.returncode or not lines:
        sys.exit(f"error: {command[0]} ended with {ran.returncode}:\n{ran.stdout[-4000:]}{ran.stderr[-4000:]}")
    return round(float(lines[-1].split(_SECONDS)[1]), 1)


def train_as_rank(overrides: list[str], folder: str) -> None:
    """Train until the score is reached; rank 0 judges and prints."""
    hvd.init()
    torch.set_num_threads(1)
    spec = newest_spec("transformer", load_settings(CONFIGS, overrides))
    trainer = Trainer(spec, torch.device("cpu"), print)
    targets = read_table(Path(folder), "targets")
    wanted = dict(zip(targets["user_idx"], targets["item_idx"], strict=True))
    num_steps, seconds = trainer.train_shards[0].num_batches(trainer.batch_rows), 0.0
    for epoch in range(1, spec.epochs + 1):
        started = time.perf_counter()
        trainer.train_epoch(epoch, num_steps)
        seconds += time.perf_counter() - started
        score = ndcg(trainer, wanted) if hvd.rank() == 0 else 0.0
        score = float(hvd.broadcast_object(score, root_rank=0, name="score"))
        if hvd.rank() == 0:
            print(f"epoch {epoch}: {seconds:.1f} s, NDCG@{K} {score:.4f}", flush=True)
        if score >= SCORE:
            break
    if hvd.rank() == 0:
        if score < SCORE:
            sys.exit(f"error: NDCG@{K} is {score:.4f} after {spec.epochs} epochs, expected {SCORE}")
        print(f"{_SECONDS}{seconds:.1f}", flush=True)
    hvd.shutdown()


def ndcg(trainer: Trainer, wanted: dict[int, int]) -> float:
    """Of the item that each user gets next, among all that he did not have."""
    model, export = trainer.model.eval(), trainer.spec.export
    token_of = {item: token for token, item in enumerate(trainer.vocabulary.item_idx_V)}
    total, number = 0.0, 0
    for split in (TRAIN, VALIDATION):
        for index in range(export.num_shards):
            for block in Shard.find(export, split, index).read():
                rows = block.take(np.flatnonzero((block.window == 0) & (block.row_weight > 0)))
                target_R = np.array([token_of.get(wanted.get(user, -1), 0) for user in rows.user_idx])
                total += float(sum(gains(model, rows.tokens[:, 1:], target_R)))
                number += len(rows)
    return total / number


def gains(model: torch.nn.Module, tokens_RL: NDArray[np.int32], target_R: NDArray[np.int64]) -> list[float]:
    """NDCG@K of each row's target; 0 where it has no token."""
    found: list[float] = []
    for start in range(0, len(tokens_RL), 512):
        tokens, target = tokens_RL[start : start + 512], torch.from_numpy(target_R[start : start + 512])
        every = np.arange(len(tokens))
        with torch.inference_mode():
            states = states_of(model, tokens, every, np.full(len(tokens), tokens.shape[1] - 1))  # type: ignore[arg-type]
            logits = model.items.logits(states)  # type: ignore[union-attr, operator]
            logits.scatter_(1, torch.from_numpy(tokens.astype(np.int64)), float("-inf"))
            ranks = (logits > logits[torch.arange(len(tokens)), target][:, None]).sum(dim=1) + 1
        is_hit = (ranks <= K) & (target > 0)
        found += (is_hit / torch.log2(ranks + 1.0)).tolist()
    return found


if __name__ == "__main__":
    main()
