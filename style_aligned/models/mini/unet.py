"""The embedded model's U-Net: an `SDXLUNet` in everything but width.

Refiners' adapters find their places by class (`isinstance`) and by class *name* (`unet.layer("UpBlocks")`,
`include=["SDXLCrossAttention"]`), so the blocks below subclass Refiners' own and keep their names.
"""

from typing import cast

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.range_adapter import (
    RangeAdapter2d,
    RangeEncoder,
    compute_sinusoidal_embedding,
)
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import unet as xl
from refiners.foundationals.latent_diffusion.unet import ResidualAccumulator, ResidualBlock, ResidualConcatenator
from torch import Tensor, device as Device, dtype as DType

Widths = tuple[int, int, int]

CHANNELS: Widths = (48, 64, 112)
HEAD_CHANNELS = 16
NUM_GROUPS = 16
CONTEXT_DIM = 128
POOLED_DIM = 64
TIMESTEP_DIM = 192
SINUSOIDAL_DIM = 64


class TextTimeEmbedding(xl.TextTimeEmbedding):
    """Embed the pooled text and the time ids (original size, crop, target size).

    Receives:
        Context "diffusion": pooled_text_embedding (Float[Tensor, "batch pooled_dim"]), time_ids (Tensor "batch 6").

    Returns:
        (Float[Tensor, "batch timestep_dim"]):
    """

    def __init__(
        self,
        pooled_dim: int = POOLED_DIM,
        timestep_dim: int = TIMESTEP_DIM,
        time_id_dim: int = 16,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.timestep_embedding_dim = timestep_dim
        self.time_ids_embedding_dim = time_id_dim
        self.text_time_embedding_dim = pooled_dim + 6 * time_id_dim
        fl.Chain.__init__(
            self,
            fl.Concatenate(
                fl.UseContext(context="diffusion", key="pooled_text_embedding"),
                fl.Chain(
                    fl.UseContext(context="diffusion", key="time_ids"),
                    fl.Unsqueeze(dim=-1),
                    fl.Lambda(func=self.compute_sinusoidal_embedding),
                    fl.Reshape(-1),
                ),
                dim=1,
            ),
            fl.Converter(set_device=False, set_dtype=True),
            fl.Linear(self.text_time_embedding_dim, timestep_dim, device=device, dtype=dtype),
            fl.SiLU(),
            fl.Linear(timestep_dim, timestep_dim, device=device, dtype=dtype),
        )

    def compute_sinusoidal_embedding(self, x: Tensor) -> Tensor:
        return compute_sinusoidal_embedding(x=x, embedding_dim=self.time_ids_embedding_dim)


class TimestepEncoder(xl.TimestepEncoder):
    """Embed the timestep, the pooled text and the time ids, and set the result as the "range_adapter" context."""

    def __init__(
        self,
        context_key: str = "timestep_embedding",
        pooled_dim: int = POOLED_DIM,
        timestep_dim: int = TIMESTEP_DIM,
        sinusoidal_dim: int = SINUSOIDAL_DIM,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.timestep_embedding_dim = timestep_dim
        fl.Passthrough.__init__(
            self,
            fl.Sum(
                fl.Chain(
                    fl.UseContext(context="diffusion", key="timestep"),
                    RangeEncoder(
                        sinusoidal_embedding_dim=sinusoidal_dim, embedding_dim=timestep_dim, device=device, dtype=dtype
                    ),
                ),
                TextTimeEmbedding(pooled_dim=pooled_dim, timestep_dim=timestep_dim, device=device, dtype=dtype),
            ),
            fl.SetContext(context="range_adapter", key=context_key),
        )


class SDXLCrossAttention(xl.SDXLCrossAttention):
    """A transformer of self-attention, cross-attention to the text and feed-forward, on image features.

    Receives:
        (Float[Tensor, "batch channels height width"]):

    Returns:
        (Float[Tensor, "batch channels height width"]):
    """

    def __init__(
        self,
        channels: int,
        context_dim: int = CONTEXT_DIM,
        num_attention_layers: int = 1,
        head_channels: int = HEAD_CHANNELS,
        num_groups: int = NUM_GROUPS,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super(xl.SDXLCrossAttention, self).__init__(  # past the constructor that fixes SDXL's widths
            channels=channels,
            context_embedding_dim=context_dim,
            context_key="clip_text_embedding",
            num_attention_layers=num_attention_layers,
            num_attention_heads=channels // head_channels,
            num_groups=num_groups,
            use_bias=False,
            use_linear_projection=True,
            device=device,
            dtype=dtype,
        )


def residual(in_channels: int, out_channels: int, device: Device | str | None, dtype: DType | None) -> ResidualBlock:
    return ResidualBlock(in_channels, out_channels, num_groups=NUM_GROUPS, device=device, dtype=dtype)


def attention(channels: int, context_dim: int, device: Device | str | None, dtype: DType | None) -> SDXLCrossAttention:
    return SDXLCrossAttention(channels, context_dim=context_dim, device=device, dtype=dtype)


class DownBlocks(xl.DownBlocks):
    """The way down: nine blocks, of which four (at the second and third level) attend.

    Receives:
        (Float[Tensor, "batch in_channels height width"]):

    Returns:
        (Float[Tensor, "batch channels[2] height/4 width/4"]):
    """

    def __init__(
        self,
        in_channels: int,
        channels: Widths = CHANNELS,
        context_dim: int = CONTEXT_DIM,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        first, second, third = channels
        fl.Chain.__init__(
            self,
            fl.Chain(fl.Conv2d(in_channels, first, kernel_size=3, padding=1, device=device, dtype=dtype)),
            # first level: no attention
            fl.Chain(residual(first, first, device, dtype)),
            fl.Chain(residual(first, first, device, dtype)),
            fl.Chain(fl.Downsample(channels=first, scale_factor=2, padding=1, device=device, dtype=dtype)),
            # second level
            fl.Chain(residual(first, second, device, dtype), attention(second, context_dim, device, dtype)),
            fl.Chain(residual(second, second, device, dtype), attention(second, context_dim, device, dtype)),
            fl.Chain(fl.Downsample(channels=second, scale_factor=2, padding=1, device=device, dtype=dtype)),
            # third level
            fl.Chain(residual(second, third, device, dtype), attention(third, context_dim, device, dtype)),
            fl.Chain(residual(third, third, device, dtype), attention(third, context_dim, device, dtype)),
        )


class MiddleBlock(xl.MiddleBlock):
    """The lowest level, at a quarter of the latents' size.

    Receives:
        (Float[Tensor, "batch channels height width"]):

    Returns:
        (Float[Tensor, "batch channels height width"]):
    """

    def __init__(
        self,
        channels: int = CHANNELS[2],
        context_dim: int = CONTEXT_DIM,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        fl.Chain.__init__(
            self,
            residual(channels, channels, device, dtype),
            attention(channels, context_dim, device, dtype),
            residual(channels, channels, device, dtype),
        )


class UpBlocks(xl.UpBlocks):
    """The way up: nine blocks, each of which first takes the skip connection of its twin on the way down.

    Receives:
        (Float[Tensor, "batch channels[2] height/4 width/4"]):

    Returns:
        (Float[Tensor, "batch channels[0] height width"]):
    """

    def __init__(
        self,
        channels: Widths = CHANNELS,
        context_dim: int = CONTEXT_DIM,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        first, second, third = channels
        fl.Chain.__init__(
            self,
            # third level
            fl.Chain(residual(third + third, third, device, dtype), attention(third, context_dim, device, dtype)),
            fl.Chain(residual(third + third, third, device, dtype), attention(third, context_dim, device, dtype)),
            fl.Chain(
                residual(third + second, third, device, dtype),
                attention(third, context_dim, device, dtype),
                fl.Upsample(channels=third, device=device, dtype=dtype),
            ),
            # second level
            fl.Chain(residual(third + second, second, device, dtype), attention(second, context_dim, device, dtype)),
            fl.Chain(residual(second + second, second, device, dtype), attention(second, context_dim, device, dtype)),
            fl.Chain(
                residual(second + first, second, device, dtype),
                attention(second, context_dim, device, dtype),
                fl.Upsample(channels=second, device=device, dtype=dtype),
            ),
            # first level: no attention
            fl.Chain(residual(second + first, first, device, dtype)),
            fl.Chain(residual(first + first, first, device, dtype)),
            fl.Chain(residual(first + first, first, device, dtype)),
        )


class OutputBlock(xl.OutputBlock):
    """Turn the features into the predicted noise.

    Receives:
        (Float[Tensor, "batch channels height width"]):

    Returns:
        (Float[Tensor, "batch 4 height width"]):
    """

    def __init__(
        self, channels: int = CHANNELS[0], device: Device | str | None = None, dtype: DType | None = None
    ) -> None:
        fl.Chain.__init__(
            self,
            fl.GroupNorm(channels=channels, num_groups=NUM_GROUPS, device=device, dtype=dtype),
            fl.SiLU(),
            fl.Conv2d(channels, 4, kernel_size=3, stride=1, padding=1, device=device, dtype=dtype),
        )


class MiniUNet(xl.SDXLUNet):
    """An `SDXLUNet` of a few million parameters: same blocks, contexts and setters, smaller widths.

    Refiners' `add_lcm_lora` takes it with `check_validity=False`: that check looks for the name of SDXL's class.

    Receives:
        (Float[Tensor, "batch in_channels height width"]): the noisy latents, of any height and width.

    Returns:
        (Float[Tensor, "batch 4 height width"]): the predicted noise.
    """

    def __init__(
        self,
        in_channels: int = 4,
        channels: Widths = CHANNELS,
        context_dim: int = CONTEXT_DIM,
        pooled_dim: int = POOLED_DIM,
        timestep_dim: int = TIMESTEP_DIM,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Initialize the U-Net.

        Args:
            in_channels: Number of input channels.
            channels: Number of channels at the three levels, each a multiple of 16.
            context_dim: Number of channels of the text embedding.
            pooled_dim: Number of channels of the pooled text embedding.
            timestep_dim: Number of channels of the timestep embedding.
            device: Device to use for computation.
            dtype: Data type to use for computation.
        """
        self.in_channels = in_channels
        self.channels = channels
        self.context_dim = context_dim
        self.pooled_dim = pooled_dim
        self.timestep_dim = timestep_dim
        fl.Chain.__init__(
            self,
            TimestepEncoder(pooled_dim=pooled_dim, timestep_dim=timestep_dim, device=device, dtype=dtype),
            DownBlocks(in_channels, channels=channels, context_dim=context_dim, device=device, dtype=dtype),
            MiddleBlock(channels[2], context_dim=context_dim, device=device, dtype=dtype),
            fl.Residual(fl.UseContext(context="unet", key="residuals").compose(lambda residuals: residuals[-1])),
            UpBlocks(channels=channels, context_dim=context_dim, device=device, dtype=dtype),
            OutputBlock(channels[0], device=device, dtype=dtype),
        )
        for block in self.layers(ResidualBlock):
            chain = block.layer("Chain", fl.Chain)
            RangeAdapter2d(
                target=chain.layer("Conv2d_1", fl.Conv2d),
                channels=block.out_channels,
                embedding_dim=timestep_dim,
                context_key="timestep_embedding",
                device=device,
                dtype=dtype,
            ).inject(chain)
        for n, block in enumerate(cast(list[fl.Chain], self.DownBlocks)):
            block.append(ResidualAccumulator(n=n))
        for n, block in enumerate(cast(list[fl.Chain], self.UpBlocks)):
            block.insert(0, ResidualConcatenator(n=-n - 2))
