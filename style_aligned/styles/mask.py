"""Masks: which part of a reference gives the style."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from style_aligned.models.family import PIXELS
from style_aligned.models.model import tensor_bytes
from style_aligned.notes import Note
from style_aligned.styles.picture import open_mask


def prepare_mask(
    mask: Tensor | Image.Image | str | Path, size: tuple[int, int], name: str = "reference_mask", of: str = "reference"
) -> Float[Tensor, "latents_height latents_width"]:
    """Bring a mask to the size of an image's latents, by area.

    Args:
        mask: The mask: a tensor of shape (height, width) with weights between 0 and 1, a picture, of which the alpha
            channel counts if it has one and the brightness otherwise, or the path of a picture.
        size: The height and width of the image, in pixels. A mask of another size is resized, with a warning.
        name: What errors call it.
        of: What errors call the image.

    Raises:
        ValueError: If a weight is not between 0 and 1, or nothing is left.
    """
    if isinstance(mask, str | Path | Image.Image):
        channel = open_mask(mask)
        mask = torch.from_numpy(np.asarray(channel, dtype=np.float32) / 255)  # pyright: ignore[reportUnknownMemberType]
    if mask.ndim != 2 or not mask.isfinite().all() or mask.min() < 0 or mask.max() > 1:
        raise ValueError(f"expected {name} of shape (height, width) with weights between 0 and 1")
    if mask.max() == 0:
        raise ValueError(f"expected {name} to leave something of the {of}, got zeros alone")
    latents_size = size[0] // PIXELS, size[1] // PIXELS
    if tuple(mask.shape) not in (size, latents_size):
        height, width = mask.shape
        warnings.warn(
            f"the {name} of {width}x{height} was resized to the {of}'s {size[1]}x{size[0]}", Note, stacklevel=3
        )
    return adaptive_avg_pool2d(mask.detach().float().cpu()[None], latents_size)[0]


def digest_mask(mask: Float[Tensor, "latents_height latents_width"]) -> str:
    """Return a fingerprint of a mask."""
    return hashlib.sha256(tensor_bytes(mask)).hexdigest()[:16]
