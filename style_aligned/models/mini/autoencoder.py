"""The embedded model's autoencoder: 256x256 pictures to 4x32x32 latents and back."""

import refiners.fluxion.layers as fl
from refiners.fluxion.context import Contexts
from refiners.foundationals.latent_diffusion.auto_encoder import Resnet
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import SDXLAutoencoder
from torch import Tensor, device as Device, dtype as DType
from torch.nn import PixelShuffle as _PixelShuffle

NUM_GROUPS = 8
LATENT_CHANNELS = 4


class PixelShuffle(_PixelShuffle, fl.Module):
    """Turn channels into pixels: the inverse of `fl.PixelUnshuffle`.

    Receives:
        (Float[Tensor, "batch channels*upscale_factor**2 height width"]):

    Returns:
        (Float[Tensor, "batch channels height*upscale_factor width*upscale_factor"]):
    """

    def __init__(self, upscale_factor: int) -> None:
        _PixelShuffle.__init__(self, upscale_factor=upscale_factor)


def convolution(
    in_channels: int, out_channels: int, device: Device | str | None, dtype: DType | None, stride: int = 1
) -> fl.Conv2d:
    return fl.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, device=device, dtype=dtype)


def resnet(channels: int, device: Device | str | None, dtype: DType | None) -> Resnet:
    return Resnet(channels, channels, num_groups=NUM_GROUPS, device=device, dtype=dtype)


class Encoder(fl.Chain):
    """Encode pictures with values in [-1, 1].

    Receives:
        (Float[Tensor, "batch 3 height width"]): height and width divisible by 8.

    Returns:
        (Float[Tensor, "batch 4 height/8 width/8"]): of about unit variance.
    """

    def __init__(
        self,
        channels: tuple[int, int] = (64, 96),
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        quarter, eighth = channels
        super().__init__(
            fl.PixelUnshuffle(downscale_factor=4),
            convolution(3 * 4**2, quarter, device, dtype),
            fl.Chain(resnet(quarter, device, dtype), convolution(quarter, eighth, device, dtype, stride=2)),
            fl.Chain(resnet(eighth, device, dtype)),
            fl.Chain(
                fl.GroupNorm(channels=eighth, num_groups=NUM_GROUPS, device=device, dtype=dtype),
                fl.SiLU(),
                convolution(eighth, LATENT_CHANNELS, device, dtype),
            ),
        )


class Decoder(fl.Chain):
    """Decode latents to pictures with values in about [-1, 1].

    Receives:
        (Float[Tensor, "batch 4 height/8 width/8"]):

    Returns:
        (Float[Tensor, "batch 3 height width"]):
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (96, 64, 32),
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        eighth, quarter, half = channels
        super().__init__(
            convolution(LATENT_CHANNELS, eighth, device, dtype),
            fl.Chain(resnet(eighth, device, dtype), resnet(eighth, device, dtype)),
            fl.Chain(
                fl.Conv2d(eighth, 4 * quarter, kernel_size=1, device=device, dtype=dtype),
                PixelShuffle(upscale_factor=2),
                resnet(quarter, device, dtype),
                resnet(quarter, device, dtype),
            ),
            fl.Chain(
                fl.Conv2d(quarter, 4 * half, kernel_size=1, device=device, dtype=dtype),
                PixelShuffle(upscale_factor=2),
                resnet(half, device, dtype),
            ),
            fl.Chain(
                fl.GroupNorm(channels=half, num_groups=NUM_GROUPS, device=device, dtype=dtype),
                fl.SiLU(),
                convolution(half, 3 * 2**2, device, dtype),
                PixelShuffle(upscale_factor=2),
            ),
        )


class MiniAutoencoder(SDXLAutoencoder):
    """A latent autoencoder of well under a million parameters, with Refiners' interface.

    Attributes:
        encoder_scale: Latents of half the usual size (0.5 instead of unit variance). SDXL's noise schedule ends before
            the picture's mean colour is drowned in noise: the flatter the pictures and the more latents, the worse.
            Sampling starts from pure noise all the same, so at full size it would only ever draw middling grounds.
            See [[arXiv:2301.10972] On the Importance of Noise Scheduling for Diffusion Models](https://arxiv.org/abs/2301.10972).
    """

    encoder_scale: float = 0.5

    def __init__(self, device: Device | str | None = None, dtype: DType | None = None) -> None:
        """Initialize the autoencoder.

        Args:
            device: The PyTorch device to use.
            dtype: The PyTorch data type to use.
        """
        fl.Chain.__init__(self, Encoder(device=device, dtype=dtype), Decoder(device=device, dtype=dtype))

    def init_context(self) -> Contexts:
        return {}

    @property
    def encoder(self) -> Encoder:
        return self.layer("Encoder", Encoder)

    @property
    def decoder(self) -> Decoder:
        return self.layer("Decoder", Decoder)

    def encode(self, x: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            x: Pictures with values in [-1, 1], of shape (batch, 3, height, width); height and width divisible by 8.

        Returns:
            The scaled latents, of shape (batch, 4, height/8, width/8).
        """
        height, width = x.shape[-2:]
        if height % 8 or width % 8:
            raise ValueError(f"expected a height and a width divisible by 8, got {height}x{width}")
        return super().encode(x)
