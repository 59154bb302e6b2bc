"""The autoencoder of a model in half precision, which must not be in half precision itself."""

from collections.abc import Callable
from typing import Any

import torch
from refiners.foundationals.latent_diffusion import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_1.model import SD1Autoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import SDXLAutoencoder
from torch import Tensor, dtype as DType

from style_aligned.models.finite import check_finite


class PreciseAutoencoder(LatentDiffusionAutoencoder):
    """An autoencoder that works in a precision of its own, whatever that of the latents.

    The activations of SDXL's decoder exceed 65504, the largest number of float16: the pictures come out black. So what
    puts the model into float16 leaves the autoencoder in the type that it has.

    Attributes:
        latents_dtype: The type of the latents that `encode` gives: that of the U-Net.
    """

    latents_dtype: DType = torch.float32

    def encode(self, x: Tensor) -> Tensor:
        """Encode images.

        Args:
            x: Images of shape (batch, 3, height, width) and any type, with values in [-1, 1].

        Returns:
            Latents of shape (batch, 4, height/8, width/8), of the type `latents_dtype`.

        Raises:
            NonFiniteError: If they hold NaN or infinity.
        """
        latents = super().encode(x.to(dtype=self.dtype))
        check_finite(latents, "lda", self, "the latents of an image")
        return latents.to(dtype=self.latents_dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Decode latents.

        Args:
            x: Latents of shape (batch, 4, height/8, width/8) and any type.

        Returns:
            Images of shape (batch, 3, height, width), of the autoencoder's own type, with values in about [-1, 1].

        Raises:
            NonFiniteError: If they hold NaN or infinity.
        """
        images = super().decode(x.to(dtype=self.dtype))
        check_finite(images, "lda", self, "the numbers of an image")
        return images

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Do what `.to`, `.half` and the like do, but for the way to float16."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(device=moved.device) if moved.dtype == torch.float16 else moved

        dtypes = {fn(torch.empty(0, dtype=dtype)).dtype for dtype in (torch.float32, torch.float16)}
        if len(dtypes) == 1:  # a way to another type, and not to another device alone
            self.latents_dtype = dtypes.pop()

        return super()._apply(keep_precision, recurse)  # pyright: ignore[reportUnknownMemberType]


class PreciseSDXLAutoencoder(PreciseAutoencoder, SDXLAutoencoder):
    """Stable Diffusion XL's autoencoder, in a precision of its own."""


class PreciseSD1Autoencoder(PreciseAutoencoder, SD1Autoencoder):
    """Stable Diffusion 1.5's autoencoder, in a precision of its own."""


def autoencoder_dtype(dtype: DType) -> DType:
    """Say in which type to run the autoencoder of a model of the given type: float32 where that is float16."""
    return torch.float32 if dtype == torch.float16 else dtype
