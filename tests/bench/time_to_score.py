"""time_to_score: seconds of training to NDCG@10 .045 on Amazon Beauty's last items but one, beside RecTools' SASRec.

    ./spark-submit.sh tests/bench/time_to_score.py
    ./spark-submit.sh tests/bench/time_to_score.py --data FOLDER --repeats 1 --tables FOLDER

The Transformer is that of beauty_gate.yaml, in two Horovod processes of one thread each; RecTools' SASRec (in an environment of
its own, made at the first call) has as many blocks, factors, places and heads, its own defaults elsewhere (softmax over all items,
batches of 128, a learning rate of .001), and two threads. Both learn from all but each user's last two items and are judged after
every epoch: the last but one among all items that the user did not have, all users, the same formula. What counts is the time of
the epochs, without starting and without judging, until the first whose NDCG@10 reaches the score. The sides take turns.

RecTools' side is ended after the epoch in which its seconds exceed --give-up times those of xrec in the same turn: it takes at
least these, the ratio is at most what is printed, and ``bounded`` says how many turns ended so.

- seconds_xrec, seconds_rectools: medians over the repeats; ratio_to_rectools: of the two, bound .5, the exit code is 1 above it
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.dataset
from beauty_gate import CONFIGS, DATA, add_log, settings_of
from pipelines import make_environment, read_table, run_pipeline
from trainings import newest_spec, report

from xrec.config import load_settings
from xrec.sequence.spec import TrainingSpec

SCORE, BOUND, K = 0.045, 0.5, 10
RECTOOLS = ("rectools[torch]==0.19.0",)
MODEL, PROCESSES = "transformer", 2
_REACHED, _GAVE_UP = "reached: ", "gave up: "


def main() -> None:
    """Print a line a figure; exit with 1 above the bound."""
    if os.environ.get("HOROVOD_RANK"):
        train_as_rank()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="holds interactions.csv.gz and items.csv.gz")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns, each with another seed")
    parser.add_argument("--score", type=float, default=SCORE, help=f"NDCG@{K} to reach (default {SCORE})")
    parser.add_argument("--give-up", type=float, default=4, metavar="N", help="times xrec's seconds (default 4)")
    parser.add_argument(
        "--tables", metavar="PATH", help="where tables and environment are kept (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    log = add_log(arguments.data)
    with tempfile.TemporaryDirectory(prefix="xrec-score-") as temporary:
        folder = Path(arguments.tables or temporary).resolve()
        python = make_environment(folder / "rectools", RECTOOLS)
        values = settings_of(log, folder / "tables", [MODEL], seed=0, final=False)
        if not (folder / "tables" / "sequences").exists():
            run_pipeline(values, "--until", "export_sequences", configs=CONFIGS)
        taken: dict[str, list[float]] = {"xrec": [], "rectools": []}
        bounded = 0
        for seed in range(arguments.repeats):
            ours = run_xrec(values, seed, arguments.score)
            theirs, has_reached = run_rectools(python, log, values, seed, arguments.score, arguments.give_up * ours)
            taken["xrec"].append(ours)
            taken["rectools"].append(theirs)
            bounded += not has_reached
    middle = {side: statistics.median(seconds) for side, seconds in taken.items()}
    for side, seconds in taken.items():
        report(f"seconds_{side}", middle[side], "s", f"NDCG@{K} {arguments.score}", arguments.repeats, turns=seconds)
    ratio = middle["xrec"] / middle["rectools"]
    report("ratio_to_rectools", ratio, "ratio", f"<= {BOUND}", arguments.repeats, bounded=bounded)
    sys.exit(0 if ratio <= BOUND else 1)


def run_xrec(values: dict[str, object], seed: int, score: float) -> float:
    """Seconds of the epochs until the score."""
    overrides = [
        *[f"{name}={value}" for name, value in values.items()],
        *(f"sequence.num_processes={PROCESSES}", "sequence.threads=1"),
    ]
    told = {"overrides": overrides, "seed": seed, "score": score, "tables": values["storage.root"]}
    horovodrun = str(Path(sys.executable).with_name("horovodrun"))
    command = [horovodrun, "-np", str(PROCESSES), sys.executable, __file__, json.dumps(told, default=str)]
    return seconds_in(command, "xrec")[0]


def run_rectools(
    python: Path, log: dict[str, object], values: dict[str, object], seed: int, score: float, most_seconds: float
) -> tuple[float, bool]:
    """The same of RecTools, and whether it reached it before its seconds were more than the most."""
    sequence = load_settings(
        [str(file) for file in CONFIGS], [f"{name}={value}" for name, value in values.items()]
    ).sequence
    told = {
        "log": str(log["log.file.path"]),
        "seed": seed,
        "score": score,
        "most_seconds": most_seconds,
        "threads": PROCESSES,
        "model": {
            "n_blocks": sequence.num_layers,
            "n_factors": sequence.dim,
            "n_heads": sequence.num_heads,
            "session_max_len": sequence.length,
        },
    }
    script = Path(__file__).with_name("time_to_score_rectools.py")
    return seconds_in([str(python), str(script), json.dumps(told)], "rectools")


def seconds_in(command: Sequence[str], side: str) -> tuple[float, bool]:
    """Run one side, pass its lines on to stderr, and give the seconds that it names, and whether it reached the score."""
    found = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            for what in (_REACHED, _GAVE_UP):
                if what in line:
                    found = (float(line.split(what)[1]), what == _REACHED)
            print(f"{side}: {line.rstrip()}", file=sys.stderr, flush=True)
    if running.returncode or found is None:
        sys.exit(f"error: {side} ended with {running.returncode} before it reached the score; what it said is above")
    return found


def train_as_rank() -> None:
    """Train until the score on this rank; rank 0 judges after each epoch and prints the seconds."""
    import horovod.torch as hvd  # noqa: PLC0415 - of the ranks alone
    import torch  # noqa: PLC0415

    from xrec.sequence.encode import encode_all  # noqa: PLC0415
    from xrec.sequence.progress import Progress  # noqa: PLC0415
    from xrec.sequence.trainer import Trainer  # noqa: PLC0415
    from xrec.storage.files import remove  # noqa: PLC0415

    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    hvd.init()
    settings = load_settings([str(file) for file in CONFIGS], told["overrides"])
    spec = newest_spec(MODEL, settings)  # of the export's seed, which also says who validates
    spec = dataclasses.replace(spec, settings=settings.model_copy(update={"seed": told["seed"]}))
    if hvd.rank() == 0:
        remove(spec.checkpoint)
    hvd.allreduce(torch.zeros(1), name="removed")
    trainer = Trainer(spec, torch.device("cpu"), print if hvd.rank() == 0 else lambda _: None)

    def goes_on(progress: Progress) -> bool:
        encode_all(spec, trainer.model, trainer.model, trainer.vocabulary)
        ndcg = judge(spec, Path(told["tables"])) if hvd.rank() == 0 else 0.0
        ndcg = hvd.broadcast_object(ndcg, root_rank=0, name="ndcg")
        if hvd.rank() == 0:
            print(f"epoch {progress.last}: NDCG@{K} of all users {ndcg:.4f}", flush=True)
            if ndcg >= told["score"]:
                print(f"{_REACHED}{sum(epoch.seconds for epoch in progress.epochs):.2f}", flush=True)
        return bool(ndcg < told["score"])

    trainer.run(goes_on)
    hvd.shutdown()


def judge(spec: TrainingSpec, root: Path) -> float:
    """NDCG@10 of the staged vectors: of each user the target among all items that he did not have."""
    staged = pyarrow.dataset.dataset(spec.staging, format="parquet", exclude_invalid_files=True).to_table().to_pandas()
    users, items = staged[staged["kind"] == "user"], staged[staged["kind"] == "item"]
    fold = f"fold == '{spec.export.fold}'"
    targets = read_table(root, "targets").query(f"{fold} and is_new and not cold_user")
    target_of = dict(zip(targets["user_idx"], targets["item_idx"], strict=True))
    had_of = read_table(root, "interactions").query(fold).groupby("user_idx")["item_idx"].apply(np.array)
    column_of = {item: column for column, item in enumerate(items["idx"])}
    items_IE: npt.NDArray[Any] = np.stack(items["vector"].to_list())
    gain = 0.0
    for first in range(0, len(users), 1024):
        block = users.iloc[first : first + 1024]
        scores_UI = np.stack(block["vector"].to_list()) @ items_IE.T
        for scores_I, user in zip(scores_UI, block["idx"], strict=True):
            target = column_of.get(target_of.get(user))
            if target is None:
                continue
            scores_I[[column_of[item] for item in had_of[user] if item in column_of]] = -np.inf
            rank = 1 + int((scores_I > scores_I[target]).sum())
            gain += 1 / np.log2(rank + 1) if rank <= K else 0.0
    return gain / len(target_of)


if __name__ == "__main__":
    main()
