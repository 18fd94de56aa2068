"""loader_overhead: a training that reads Delta through Petastorm beside the same loop over arrays in memory.

    ./spark-submit.sh tests/bench/loader_overhead.py
    ./spark-submit.sh tests/bench/loader_overhead.py --data FOLDER --models transformer

The default log's windows are exported by the pipeline. Then one process on one core with one thread trains epochs in turn: as
always, one Horovod process that reads every shard from its files again each epoch; and with all windows read before, shuffled
the same. The steps are the same steps, so the losses are equal to the bit, which is checked.

- horovod1_to_memory_rate: windows/s of the first to the second, the median over --repeats pairs of epochs, after one to warm up
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import horovod.torch as hvd
import torch
from trainings import add_export, exported, newest_spec, report

from xrec.sequence.loader import Shard, Windows
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.trainer import Trainer

BOUND = 0.90
MODELS = ("gru", "transformer")


@dataclass(frozen=True, kw_only=True)
class ShardInMemory(Shard):
    """A shard that was read before."""

    blocks: list[Windows] = field(repr=False)

    @classmethod
    def of(cls, shard: Shard) -> ShardInMemory:
        """Read a shard."""
        return cls(**{one.name: getattr(shard, one.name) for one in fields(shard)}, blocks=list(shard.read()))

    def read(self) -> Iterator[Windows]:
        """The blocks, which are there."""
        return iter(self.blocks)


def trainers_of(spec: TrainingSpec) -> dict[str, Trainer]:
    """The same training twice: from files, and from memory."""
    both = {name: Trainer(spec, torch.device("cpu"), print) for name in ("files", "memory")}
    both["memory"].train_shards = [ShardInMemory.of(shard) for shard in both["memory"].train_shards]
    return both


def measure(spec: TrainingSpec, repeats: int) -> float:
    """Rate of the training from files to that from memory; the same epoch of both, one after the other, each first in turn."""
    trainers, rates = trainers_of(spec), []
    num_steps = trainers["files"].train_shards[0].num_batches(trainers["files"].batch_rows)
    for epoch in range(1, repeats + 2):
        losses, seconds = {}, {}
        for name in sorted(trainers, reverse=epoch % 2 == 0):
            started = time.perf_counter()
            losses[name] = trainers[name].train_epoch(epoch, num_steps)
            seconds[name] = time.perf_counter() - started
        assert losses["files"] == losses["memory"], f"epoch {epoch}: {losses}, expected the same steps"
        rates.append(seconds["memory"] / seconds["files"])
    return statistics.median(rates[1:])


def main() -> None:
    """Print a line a model; exit with 1 where one is below the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export(parser)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xrec-loader-") as temporary:
        settings, _ = exported(Path(arguments.data or temporary).resolve(), arguments.config, num_processes=1)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        hvd.init()
        rates = {model: measure(newest_spec(model, settings), arguments.repeats) for model in arguments.models}
    for model, rate in rates.items():
        report("horovod1_to_memory_rate", rate, "ratio", f">= {BOUND}", arguments.repeats, model=model)
    sys.exit(0 if min(rates.values()) >= BOUND else 1)


if __name__ == "__main__":
    main()
