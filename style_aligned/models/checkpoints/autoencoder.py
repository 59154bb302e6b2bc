"""The autoencoder of a model in half precision, which must not be in half precision itself."""

import torch
from refiners.foundationals.latent_diffusion import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_1.model import SD1Autoencoder
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import SDXLAutoencoder
from torch import Tensor, dtype as DType


class PreciseAutoencoder(LatentDiffusionAutoencoder):
    """An autoencoder that works in a precision of its own, whatever that of the latents.

    The activations of SDXL's decoder exceed 65504, the largest number of float16: the pictures come out black.

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
        """
        return super().encode(x.to(dtype=self.dtype)).to(dtype=self.latents_dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Decode latents.

        Args:
            x: Latents of shape (batch, 4, height/8, width/8) and any type.

        Returns:
            Images of shape (batch, 3, height, width), of the autoencoder's own type, with values in about [-1, 1].
        """
        return super().decode(x.to(dtype=self.dtype))


class PreciseSDXLAutoencoder(PreciseAutoencoder, SDXLAutoencoder):
    """Stable Diffusion XL's autoencoder, in a precision of its own."""


class PreciseSD1Autoencoder(PreciseAutoencoder, SD1Autoencoder):
    """Stable Diffusion 1.5's autoencoder, in a precision of its own."""


def autoencoder_dtype(dtype: DType) -> DType:
    """Say in which type to run the autoencoder of a model of the given type: float32 where that is float16."""
    return torch.float32 if dtype == torch.float16 else dtype
