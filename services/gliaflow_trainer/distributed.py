"""The processes of torchrun, which share the U-Net's epochs. Without torchrun, a process is the first and only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from torch import cuda, distributed


def rank_and_count() -> tuple[int, int]:
    """The number of this process, from 0, and the number of processes."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def is_first() -> bool:
    """The first process also does the work that is not shared."""
    return rank_and_count()[0] == 0


@contextmanager
def first_process_first() -> Iterator[None]:
    """The other processes enter the block only after the first process has left it, and find its files."""
    if not is_first():
        distributed.barrier()
    yield
    if is_first() and distributed.is_initialized():
        distributed.barrier()


@contextmanager
def process_group(device: str, *consoles: Console) -> Iterator[None]:
    """Under torchrun, join the other processes for the block, on this process's GPU. Only the first one prints."""
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    # the other processes wait while the first cuts a whole cohort
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=1))
    for console in consoles:
        console.quiet = not is_first()
    try:
        if device == "cuda":
            cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield
    finally:
        for console in consoles:
            console.quiet = False
        distributed.destroy_process_group()
