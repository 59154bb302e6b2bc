"""Small chains to adapt, what to run through them, and what to compare of them."""

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import SD1UNet, SDXLUNet
from torch import Tensor


def features(rows: int, tokens: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random features, with a mean and a deviation of their own in each row and channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, dim, generator=generator)
    deviation = torch.rand(rows, 1, dim, generator=generator) + 0.5
    return (x * deviation + torch.randn(rows, 1, dim, generator=generator)).to(dtype)


class Blocks(fl.Chain):
    """A few self-attentions, a cross-attention and a group normalization."""

    def __init__(self) -> None:
        super().__init__(
            fl.GroupNorm(channels=10, num_groups=2),
            fl.Residual(fl.SelfAttention(embedding_dim=16, num_heads=2)),
            fl.Residual(
                fl.Parallel(
                    fl.Identity(),
                    fl.UseContext(context="blocks", key="prompt"),
                    fl.UseContext(context="blocks", key="prompt"),
                ),
                fl.Attention(embedding_dim=16, num_heads=2),
            ),
            fl.Residual(fl.SelfAttention(embedding_dim=16, num_heads=4)),
        )


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def run(chain: fl.Chain, x: Tensor) -> Tensor:
    chain.set_context("blocks", {"prompt": features(len(x), 5, 16, seed=7)})
    return chain(x)


def snapshot(chain: fl.Chain) -> list[tuple[str, int, str, str]]:
    """Every module at any depth: its path, identity and contexts, and the identity of its parent."""
    return [
        (
            path,
            id(module),
            repr(module.provider.contexts) if isinstance(module, fl.Chain) else "",
            str(id(module.parent)) if isinstance(module, fl.Chain) else "",
        )
        for path, module in chain.named_modules()
    ]


def meta_unet(unet_type: type[SD1UNet] | type[SDXLUNet]) -> SD1UNet | SDXLUNet:
    with torch.device("meta"):  # `device` does not reach every layer of Refiners' U-Net of Stable Diffusion 1
        unet = unet_type(in_channels=4, device="meta")
    unet.set_context("unet", {"residuals": [0.0] * 13})  # spreads the contexts over the tree, as any use of it does
    return unet
