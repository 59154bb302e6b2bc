"""The latents of all drawings, as they are and mirrored, so that training never runs the autoencoder."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.mini_training.checkpoints import load_tensors, save_tensors
from scripts.mini_training.dataset import Drawings, to_tensor
from scripts.mini_training.precision import low_precision
from style_aligned.models.mini.autoencoder import MiniAutoencoder

DRAWINGS = "drawings"  # the metadata's entry with their digest


@torch.no_grad()
def encode_drawings(autoencoder: MiniAutoencoder, drawings: Drawings, path: Path, batch_size: int = 16) -> None:
    """Encode every picture of every split, and write them in float16.

    Args:
        autoencoder: The trained autoencoder.
        drawings: The pictures.
        path: The safetensors file; its tensors "straight" and "mirrored" have the shape (count, 4, 32, 32).
        batch_size: How many to encode at once.
    """
    device = str(autoencoder.device)
    straight: list[Tensor] = []
    mirrored: list[Tensor] = []
    for start in range(0, len(drawings.images), batch_size):
        x = to_tensor(np.asarray(drawings.images[start : start + batch_size]), device)
        with low_precision(device):
            straight.append(autoencoder.encode(x).half().cpu())
            mirrored.append(autoencoder.encode(x.flip(-1)).half().cpu())
    save_tensors(path, {"straight": torch.cat(straight), "mirrored": torch.cat(mirrored)}, {DRAWINGS: drawings.digest})


def load_latents(path: Path, drawings: Drawings, indices: list[int]) -> Tensor:
    """The latents of some pictures, of shape (2, count, 4, 32, 32): as they are, and mirrored."""
    tensors, metadata = load_tensors(path)
    if metadata.get(DRAWINGS) != drawings.digest:
        raise ValueError(f"expected {path} to be of the drawings of --data, got those of others: take another --output")
    return torch.stack([tensors["straight"][indices], tensors["mirrored"][indices]])
