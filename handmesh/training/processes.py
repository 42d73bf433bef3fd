"""Several training processes that torchrun started, as one run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import torch
import torch.distributed as dist

AGREE_EVERY = 10  # steps


@contextlib.contextmanager
def process_group(gpu: bool = True) -> Iterator[torch.device]:
    """Join the processes that torchrun started; yields this process's device.

    That is its GPU where CUDA finds any, unless ``gpu`` is false. On a CPU each process is pinned to cores of its own.
    """
    local, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = gpu and torch.cuda.is_available()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world < 2:
        yield device
        return
    if hasattr(os, "sched_setaffinity") and not on_gpu:
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // int(os.environ["LOCAL_WORLD_SIZE"]))
        os.sched_setaffinity(0, cores[local * share : (local + 1) * share] or cores)
        torch.set_num_threads(share)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside of `process_group`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agree(step: int, device: torch.device, *wishes: bool) -> tuple[bool, ...]:
    """What the first process wishes, asked every tenth step: clocks differ, but all must do the same."""
    if not dist.is_initialized():
        return wishes
    if step % AGREE_EVERY:
        return (False,) * len(wishes)
    flags = torch.tensor(wishes, dtype=torch.float32, device=device)
    dist.broadcast(flags, 0)
    return tuple(bool(flag) for flag in flags)


def leave_stopping(_: int) -> None:
    """For loader processes: whoever stops a run signals all its processes, and the first alone decides how it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
