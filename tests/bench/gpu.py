"""gpu: rows/s and memory of a training step of both sequence models, by batch size and precision.

    ./spark-submit.sh tests/bench/gpu.py
    ./spark-submit.sh tests/bench/gpu.py --vocabulary 1000000 --dim 128
    ./spark-submit.sh tests/bench/gpu.py --device cpu --batches 128

A step is what a rank does with a batch, but for the exchange with the others: forward, sampled softmax, backward, clipping and
AdamW, on drawn windows without padding whose tokens are skewed as a log's are; every state foretells the next token.
Per model, precision (fp32, bf16) and batch:

- rows_a_second: windows a second, the median of --repeats turns of --steps steps, after as many steps to warm up
- memory_mib: most memory that tensors took on the device within a turn
- bf16_to_fp32_rate: rows/s of bf16 to those of fp32, same batch, same run
- loss_difference_to_cpu: the largest relative difference of the loss of 20 steps from the CPU's, fp32, dropout 0, same batches

Needs what the models import alone: no Spark, no Horovod. The exit code is 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.config import Sequence
from xrec.sequence.losses import Loss, windows_loss
from xrec.sequence.models import SequenceModel, build_model, model_settings
from xrec.sequence.objective import Asked

MODELS = ("gru", "transformer")
MAX_GRADIENT_NORM = 1.0
ZIPF = 1.0
"""Exponent of the items' popularity."""


class Training:
    """A model, its optimizer and drawn batches on a device."""

    def __init__(self, model: str, sequence: Sequence, vocabulary: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model: SequenceModel = build_model(model_settings(model, sequence, vocabulary)).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=sequence.learning_rate, fused=True)
        shares = 1 / np.arange(1, vocabulary + 1) ** ZIPF
        self.q = np.concatenate([[0.0], shares / shares.sum()])
        q = torch.from_numpy(self.q)
        self.loss = Loss.choose(sequence, q, q > 0, device)
        self.sequence, self.device = sequence, device

    def batches(self, rows: int, number: int, seed: int = 0) -> Iterator[tuple[NDArray[np.int32], Asked, Tensor]]:
        """Windows, their next tokens and negatives, the same on every device."""
        rng, cumulative = np.random.default_rng(seed), self.q.cumsum()

        def draw(*shape: int) -> NDArray[np.int64]:
            return np.searchsorted(cumulative, rng.random(shape), side="right").clip(1, len(cumulative) - 1)

        for step in range(number):
            tokens = draw(rows, self.sequence.length + 1)
            asked = Asked(
                rows_N=np.repeat(np.arange(rows), self.sequence.length),
                places_N=np.tile(np.arange(self.sequence.length), rows),
                states_P=np.arange(rows * self.sequence.length),
                tokens_P=tokens[:, 1:].ravel(),
                weights_P=np.ones(rows * self.sequence.length, np.float32),
                touched_at_RC=None,
            )
            yield tokens[:, :-1].astype(np.int32), asked, self.loss.draw(seed + step)

    def step(self, tokens: NDArray[np.int32], asked: Asked, negatives: Tensor, precision: str) -> Tensor:
        """One step; gives the mean loss of a target (nats)."""
        self.optimizer.zero_grad()
        loss = windows_loss(self.model, tokens, asked, negatives, self.loss.function, precision=precision)
        loss = loss / len(asked.states_P)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        return loss.detach()

    def turn(self, batches: list[tuple[NDArray[np.int32], Asked, Tensor]], precision: str) -> float:
        """Seconds of a turn."""
        self._wait()
        started = time.perf_counter()
        for batch in batches:
            self.step(*batch, precision)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def report(figure: str, value: float, unit: str, against: str | None, n: int, **of: Any) -> None:
    """Print a figure as a line of JSON."""
    line = {"figure": figure, "value": float(f"{value:.4g}"), "unit": unit, "against": against, "n": n, **of}
    print(json.dumps(line), flush=True)


def measure(model: str, rows: int, precision: str, arguments: argparse.Namespace, device: torch.device) -> float:
    """Print rows/s and memory of a batch size; gives the rows/s."""
    sequence = Sequence(dim=arguments.dim, length=arguments.length, loss="sampled_softmax")
    training = Training(model, sequence, arguments.vocabulary, device)
    batches = list(training.batches(rows, arguments.steps))
    training.turn(batches, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(training.turn(batches, precision) for _ in range(arguments.repeats))
    rate = rows * len(batches) / seconds
    of = {"model": model, "batch": rows, "precision": precision}
    report("rows_a_second", rate, "windows/s", None, arguments.repeats, **of)
    if device.type == "cuda":
        report("memory_mib", torch.cuda.max_memory_allocated(device) / 2**20, "MiB", None, arguments.repeats, **of)
    return rate


def difference_to_cpu(model: str, device: torch.device, vocabulary: int = 1000, steps: int = 20) -> float:
    """The largest relative difference of the losses of some steps."""
    losses = []
    for where in (torch.device("cpu"), device):
        training = Training(model, Sequence(dropout=0.0, loss="sampled_softmax"), vocabulary, where)
        losses.append([float(training.step(*batch, "fp32")) for batch in training.batches(32, steps)])
    return max(abs(there - here) / abs(here) for here, there in zip(*losses, strict=True))


def main() -> None:
    """Print a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 1024, 4096])
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=Sequence().dim)
    parser.add_argument("--length", type=int, default=Sequence().length, help="tokens a window")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "error: --device cuda: found no GPU that torch can use, expected one; --device cpu measures the processor"
        )
        sys.exit(2)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "vocabulary": arguments.vocabulary}), flush=True)
    for model in MODELS:
        if device.type == "cuda":
            report("loss_difference_to_cpu", difference_to_cpu(model, device), "relative", "CPU, fp32", 1, model=model)
        for rows in arguments.batches:
            rate = {precision: measure(model, rows, precision, arguments, device) for precision in ("fp32", "bf16")}
            against = "fp32, same batch"
            ratio = rate["bf16"] / rate["fp32"]
            report("bf16_to_fp32_rate", ratio, "ratio", against, arguments.repeats, model=model, batch=rows)


if __name__ == "__main__":
    main()
