"""Tensors that the ranks exchange, which lie in a GPU or in the host's memory.

Horovod is built for processors unless it is told otherwise (``HOROVOD_GPU_OPERATIONS=NCCL``), and then ends the process that hands
it a GPU's tensor: such a tensor goes through the host's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import horovod.torch as hvd
import torch
from torch import Tensor

from xrec.sequence.spec import LaunchError


def choose_device(num_gpus: int) -> torch.device:
    """The rank's own GPU of those of its machine, shared where there are too few and Horovod can do so; without any, the processor.

    Raises
    ------
    LaunchError
        NCCL, which wants a GPU for each process, has fewer.
    """
    if not num_gpus:
        return torch.device("cpu")
    if hvd.local_size() > num_gpus and hvd.nccl_built():
        raise LaunchError(
            f"sequence.num_processes: found {hvd.local_size()} processes on a machine of {num_gpus} GPUs, expected at most one a "
            "GPU, because Horovod was built with NCCL; start fewer processes on a machine"
        )
    return torch.device("cuda", hvd.local_rank() % num_gpus)


def sum_over_ranks(tensors: Sequence[Tensor], name: str) -> None:
    """Sum tensors over all ranks, in place."""
    if hvd.size() > 1:
        with _in_reach(tensors) as reached:
            hvd.grouped_allreduce_(reached, op=hvd.Sum, name=name)


def share_first(tensors: Mapping[str, Tensor]) -> None:
    """Set tensors to rank 0's, in place."""
    if hvd.size() > 1:
        with _in_reach([*tensors.values()]) as reached:
            hvd.broadcast_parameters(dict(zip(tensors, reached, strict=True)), root_rank=0)


@contextmanager
def _in_reach(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that Horovod can change: the same, or copies in the host's memory that are copied back."""
    if not any(goes_through_host(tensor.device) for tensor in tensors):
        yield [*tensors]
        return
    copies = [tensor.to("cpu", copy=True) for tensor in tensors]
    yield copies
    for tensor, copy in zip(tensors, copies, strict=True):
        tensor.copy_(copy)


def goes_through_host(device: torch.device) -> bool:
    """Whether Horovod, as it was built, cannot reach a device's memory."""
    return device.type != "cpu" and not hvd.nccl_built()
