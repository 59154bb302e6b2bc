"""The precision that training computes in."""

import torch


def low_precision(device: torch.device | str) -> torch.autocast:
    """Compute in bfloat16, except on a CPU that would have to imitate it, which takes it a hundred times as long."""
    kind = torch.device(device).type
    is_quick = kind != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # pyright: ignore
    return torch.autocast(kind, torch.bfloat16, enabled=is_quick)
