"""Numbers that are not finite: found before they become a black picture, with the part that gave them."""

from typing import Literal

import torch
from PIL import Image
from refiners.fluxion import layers as fl
from refiners.fluxion.utils import tensor_to_image
from refiners.foundationals.latent_diffusion import LatentDiffusionAutoencoder
from torch import Tensor

Part = Literal["clip_text_encoder", "unet", "lda"]
NAMES: dict[Part, str] = {"clip_text_encoder": "text encoder", "unet": "U-Net", "lda": "autoencoder"}
BLOCK = 1 << 22  # numbers to look at a time


class NonFiniteError(ValueError):
    """A part of a model gave NaN or infinity."""


def find_non_finite(module: fl.Module) -> str | None:
    """Return the name of the first weight of a module that holds NaN or infinity, or None where all are finite."""
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        if any(not block.float().isfinite().all() for block in flat.split(BLOCK)):
            return name
    return None


def check_finite(values: Tensor, part: Part, module: fl.Module, what: str) -> None:
    """Check that what a part of a model gave is finite.

    Args:
        values: What it gave.
        part: The part.
        module: The part itself, whose weights are looked at where the values are not finite.
        what: What the values are, for the message: `"the latents of 'a fox'"`.

    Raises:
        NonFiniteError: If they are not, with the first weight at fault, or else with what to change.
    """
    if values.isfinite().all():
        return
    name, dtype = NAMES[part], str(values.dtype).removeprefix("torch.")
    if (weight := find_non_finite(module)) is not None:
        raise NonFiniteError(
            f"{what} hold NaN or infinity: the {name} has a weight that does, {weight!r}; expected a checkpoint whose"
            " weights are finite"
        )
    remedy = "expected bfloat16 or float32" if values.dtype == torch.float16 else "expected finite inputs"
    if part == "unet":
        remedy = f"expected a scale, a shift and a guidance that {dtype} can hold"
    raise NonFiniteError(f"{what} overflowed to NaN or infinity in the {name} ({dtype}): {remedy}")


def check_latents(latents: Tensor, prompt: str, unet: fl.Chain) -> None:
    """Check that latents have not overflowed.

    Args:
        latents: The latents.
        prompt: What they show.
        unet: The U-Net that they come from.

    Raises:
        NonFiniteError: If they have.
    """
    check_finite(latents, "unet", unet, f"the latents of {prompt!r}")


@torch.no_grad()
def decode_image(lda: LatentDiffusionAutoencoder, latents: Tensor, what: str) -> Image.Image:
    """Decode latents to an image, which is never black for want of numbers.

    Args:
        lda: The autoencoder.
        latents: Latents of shape (1, 4, height/8, width/8).
        what: What it is, for messages: `"the image of 'a fox'"`.

    Raises:
        NonFiniteError: If the autoencoder gives NaN or infinity.
    """
    values = lda.decode(latents)
    check_finite(values, "lda", lda, what)
    return tensor_to_image((values + 1) / 2)
