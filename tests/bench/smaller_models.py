"""smaller_models: what distillation, int8 and pruning cost in accuracy and win in encoding speed, on Amazon Beauty.

    ./spark-submit.sh tests/bench/smaller_models.py
    ./spark-submit.sh tests/bench/smaller_models.py --quick
    ./spark-submit.sh tests/bench/smaller_models.py --model gru --data FOLDER --tables PATH

The pipeline exports the windows of the fold whose targets are the last items but one, with the settings of beauty_gate.yaml. Then a
large model is trained (dim 128, 2 layers), a small one (dim 64, 1 layer), and the small one with the large one as its teacher, one
process and one seed. All users of the fold are encoded by each, and by the large one in int8, pruned, and both:

- ndcg10: of the target among all items that are not in the user's window, and ndcg10_difference to the large model's in float32,
  with a 95 % interval of a paired bootstrap over users
- rate: users encoded a second, on one core with one thread, by that of the large model in float32: the median over --repeats turns,
  in each of which all models encode the same users
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import horovod.torch as hvd
import numpy as np
import torch
from beauty_gate import CONFIGS, DATA, K, add_log
from numpy.typing import NDArray
from pipelines import read_table, run_pipeline
from trainings import newest_spec, report

from xrec.config import load_settings
from xrec.evaluation.intervals import poisson_weights
from xrec.features.sequence_files import TRAIN, VALIDATION, write_exports
from xrec.sequence.encode import encoder_of
from xrec.sequence.loader import Shard, Windows
from xrec.sequence.models import SequenceModel
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.states import states_of
from xrec.sequence.trainer import Trainer, close
from xrec.sequence.tuning import with_settings
from xrec.sequence.vocabulary import Vocabulary
from xrec.storage.files import exists

TABLES = "warehouse/smaller_models"
LARGE, SMALL = {"dim": 128, "num_layers": 2}, {"dim": 64, "num_layers": 1}
PRUNED, NUM_REPLICATES, BATCH_ROWS = 0.5, 1000, 512


def main() -> None:
    """Train, encode, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, metavar="FOLDER", help="holds interactions.csv.gz and items.csv.gz")
    parser.add_argument("--tables", default=TABLES, metavar="PATH", help=f"where the tables are kept ({TABLES})")
    parser.add_argument("--model", default="transformer", choices=("transformer", "gru"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9, help="turns that speed is measured in")
    parser.add_argument("--quick", action="store_true", help="two epochs and three turns")
    arguments = parser.parse_args()
    epochs, repeats = (2, 3) if arguments.quick else (arguments.epochs, arguments.repeats)
    spec = exported(arguments.model, arguments.data, Path(arguments.tables).resolve(), epochs)
    hvd.init()
    users = every_user(spec)
    targets = read_table(Path(arguments.tables).resolve(), "targets").set_index("user_idx")["item_idx"]
    encoders = trained(spec)
    values = {name: ndcg_of(model, users, Vocabulary.read(spec), targets.to_dict()) for name, model in encoders.items()}
    weights_UB = poisson_weights(users.user_idx, NUM_REPLICATES, seed=0)
    for name, value_U in values.items():
        of = {"model": name, "of": arguments.model}
        report("ndcg10", float(value_U.mean()), "share", None, len(value_U), **of)
        replicates = (weights_UB.T @ (value_U - values["large"]))[1:] / weights_UB.sum(axis=0)[1:]
        interval = [float(f"{end:.3g}") for end in np.percentile(replicates, [2.5, 97.5])]
        difference = float((value_U - values["large"]).mean())
        report("ndcg10_difference", difference, "share", "large", len(value_U), interval=interval, **of)
    for name, rate in rates_of(encoders, users, repeats).items():
        report("rate", rate, "ratio", "large", repeats, model=name, of=arguments.model)


def exported(model: str, data: str, folder: Path, epochs: int) -> TrainingSpec:
    """The training of the fold of the last items but one; the stages up to the export run where it is not there."""
    values = {**add_log(data), "storage.root": folder, "ranking.sources": f"[popularity,{model}]"}
    values |= {"folds.purpose": "select", "folds.num_select": 1, "sequence.num_processes": 1}
    values |= {"sequence.num_negatives": 512, "sequence.epochs": epochs}
    settings = load_settings(CONFIGS, [f"{name}={value}" for name, value in values.items()])
    if not exists(f"{settings.storage.artifacts_root}/exports.json"):
        run_pipeline(values, "--until", "export_sequences", configs=CONFIGS)
    return newest_spec(model, settings)


def trained(spec: TrainingSpec) -> Mapping[str, SequenceModel]:
    """What users are encoded by, by name."""
    ways = {"large": LARGE, "small": SMALL, "small, distilled": SMALL}
    encoders: dict[str, SequenceModel] = {}
    for name, sizes in ways.items():
        own = replace(spec, settings=with_settings(spec, sizes), artifacts=f"{spec.artifacts}/{name}")
        write_exports(own.artifacts, [own.export])
        if name == "small, distilled":
            own = replace(own, teacher=f"{spec.artifacts}/large")
        trainer = Trainer(own, torch.device("cpu"), lambda line, name=name: print(f"{name}: {line}", flush=True))  # type: ignore[misc]
        close(own, trainer.run())
        encoders[name] = trainer.model.eval()
        serving = {
            "int8": {"encoder": "int8"},
            "pruned": {"pruned": PRUNED},
            "pruned int8": {"encoder": "int8", "pruned": PRUNED},
        }
        for way, setting in serving.items():
            if name != "small" and ("pruned" not in way or (name == "large" and own.model == "transformer")):
                encoders[f"{name}, {way}"] = encoder_of(
                    replace(own, settings=with_settings(own, setting)), trainer.model
                )
    return encoders


def every_user(spec: TrainingSpec) -> Windows:
    """The newest window of each user of the fold, those who validate included."""
    shards = [
        Shard.find(spec.export, split, index)
        for split in (TRAIN, VALIDATION)
        for index in range(spec.export.num_shards)
    ]
    rows = Windows.concatenate([block for shard in shards for block in shard.read()])
    return rows.take(np.flatnonzero((rows.window == 0) & (rows.row_weight > 0)))


def states_by(model: SequenceModel, users: Windows) -> torch.Tensor:
    """The state of each user after his newest events."""
    states = []
    with torch.inference_mode():
        for start in range(0, len(users), BATCH_ROWS):
            events = users.take(slice(start, start + BATCH_ROWS)).newest()
            rows = np.arange(len(events.tokens))
            states.append(
                states_of(model, events.tokens, rows, np.full_like(rows, events.tokens.shape[1] - 1), events.context)
            )
    return torch.cat(states)


def ndcg_of(
    model: SequenceModel, users: Windows, vocabulary: Vocabulary, targets: Mapping[int, int]
) -> NDArray[np.float64]:
    """NDCG at 10 of each user's one target; 0 where the vocabulary does not hold it."""
    token_of = {item: token for token, item in enumerate(vocabulary.item_idx_V.tolist())}
    target_U = torch.tensor([token_of.get(targets.get(user, -1), 0) for user in users.user_idx.tolist()])
    gains = []
    for start, hidden_BD in zip(
        range(0, len(users), BATCH_ROWS), states_by(model, users).split(BATCH_ROWS), strict=True
    ):
        with torch.inference_mode():
            logits_BV = model.items.logits(hidden_BD)
        had_BL = torch.from_numpy(users.tokens[start : start + BATCH_ROWS]).long()
        target_B1 = target_U[start : start + BATCH_ROWS, None]
        wanted_B1 = logits_BV.gather(1, target_B1)
        ranks_B = 1 + (logits_BV.scatter(1, had_BL, float("-inf")) > wanted_B1).sum(dim=1)
        gains.append(((ranks_B <= K) & (target_B1[:, 0] > 0)) / torch.log2(ranks_B + 1.0))
    values_U: NDArray[np.float64] = torch.cat(gains).double().numpy()
    return values_U


def rates_of(encoders: Mapping[str, SequenceModel], users: Windows, repeats: int) -> dict[str, float]:
    """Users a second by those of the large model, the medians of the turns' ratios, after a turn to warm up."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    some = users.take(np.random.default_rng(0).permutation(len(users))[: 8 * BATCH_ROWS])
    turns = []
    for turn in range(repeats + 1):
        seconds = {}
        for name in sorted(encoders, reverse=turn % 2 == 0):
            started = time.process_time()
            states_by(encoders[name], some)
            seconds[name] = time.process_time() - started
        turns.append({name: seconds["large"] / own for name, own in seconds.items()})
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in encoders}


if __name__ == "__main__":
    main()
