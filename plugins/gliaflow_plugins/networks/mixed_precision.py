"""Mixed precision for every fit: the only place that decides where bfloat16 is used."""

from __future__ import annotations

import torch


def mixed_precision(device: str) -> torch.autocast:
    """bfloat16 for convolutions where the device computes faster in it: CUDA, CPUs with AVX-512 BF16 or AMX."""
    kind = torch.device(device).type
    able = torch.cuda.is_bf16_supported() if kind == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=bool(able))
