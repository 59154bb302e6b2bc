"""What an adapter asks of its input."""

import torch
from jaxtyping import Float
from torch import Tensor

from style_aligned.adapter.layers import group_size


def check_rows(x: Float[Tensor, "rows channels height width"], set_size: int | None) -> None:
    """Check that the rows of a U-Net's input are laid out in sets.

    Args:
        x: The latents.
        set_size: The number of images in a set, the reference included. None means that the batch holds the two
            guidance halves of a single set.

    Raises:
        ValueError: If the rows cannot be split into sets, if `set_size` is None and the two halves of the batch differ
            (it is no classifier-free guidance batch of one set), or if it is one and `set_size` takes both halves for a
            set.
    """
    group_size(x.shape[0], set_size)
    if set_size is None and not torch.equal(*x.chunk(2)):
        raise ValueError(
            f"got a batch of {x.shape[0]} rows whose halves differ, expected the same latents twice, as in"
            " classifier-free guidance with one set: without guidance, or for several sets in one batch, give the"
            " adapter a set_size"
        )
    if set_size == len(x) and len(x) % 2 == 0 and torch.equal(*x.chunk(2)) and not (x == x[:1]).all():
        raise ValueError(
            f"got a batch of {len(x)} rows whose halves are equal, as in classifier-free guidance, and a set_size"
            f" of {set_size}: expected {len(x) // 2}, or targets would follow the other half's reference"
        )
