"""How many threads a task computes with: sums in another order have other last digits, so it is set, not found."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def use_threads(count: int) -> None:
    """Torch and BLAS use ``count`` threads from here on, in this process."""
    torch.set_num_threads(count)
    threadpool_limits(count)  # BLAS threads that spin while they wait take the cores of other tasks
