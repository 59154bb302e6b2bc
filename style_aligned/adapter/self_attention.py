"""The places in a model where sharing happens, and one sub-adapter for each."""

from collections.abc import Iterator
from typing import TypeVar

from jaxtyping import Float
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import MiddleBlock as SD1MiddleBlock
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import MiddleBlock as SDXLMiddleBlock
from torch import Tensor

from style_aligned.adapter.attention import FullySharedAttention, SharedAttention
from style_aligned.adapter.layers import StyleAligned
from style_aligned.adapter.sharing import get_sharing

TLayer = TypeVar("TLayer", bound=fl.Module)


class AttentionAdapter(  # pyright: ignore[reportIncompatibleVariableOverride]
    fl.Chain, Adapter[fl.ScaledDotProductAttention], fl.ScaledDotProductAttention
):
    """Put attention that is shared with the reference in place of a `ScaledDotProductAttention`.

    It is a `ScaledDotProductAttention` itself: adapters that look for one, to put layers right before it (such as
    self-attention guidance), find it whether they are injected before or after.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows tokens dim"]): The keys.
        value (Float[Tensor, "rows tokens dim"]): The values.

    Returns:
        (Float[Tensor, "rows tokens dim"]): The attended values.
    """

    def __init__(self, target: fl.ScaledDotProductAttention, *layers: fl.Module) -> None:
        """Initialize the AttentionAdapter.

        Args:
            target: The attention.
            layers: The layers that take its place, and hold it.
        """
        with self.setup_adapter(target):
            super().__init__(*layers)
        self.num_heads = target.num_heads
        self.is_optimized = target.is_optimized
        self.slice_size = target.slice_size
        self.dot_product = target.dot_product

    def structural_copy(self) -> fl.ScaledDotProductAttention:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the original attention: what is copied is the plain model."""
        return self.target

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows tokens dim"],
        value: Float[Tensor, "rows tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        if get_sharing(self).is_plain(query.shape[0]):
            return self.plain_attention(query, key, value)
        return super().forward(query, key, value)

    @property
    def plain_attention(self) -> fl.Module:
        """The original attention, as other adapters may have adapted it since."""
        return self.layer(len(self) - 1, fl.Chain)[0]


class SharedAttentionAdapter(AttentionAdapter):
    """Align queries, keys and values with the reference's, and have the targets attend to it."""

    def __init__(
        self,
        target: fl.ScaledDotProductAttention,
        place: str,
        *,
        adain_queries: bool = True,
        adain_keys: bool = True,
        adain_values: bool = False,
        share_attention: bool = True,
    ) -> None:
        """Initialize the SharedAttentionAdapter.

        Args:
            target: The attention.
            place: The name under which the references are recorded.
            adain_queries: Whether to normalize the queries.
            adain_keys: Whether to normalize the keys.
            adain_values: Whether to normalize the values.
            share_attention: Whether the targets attend to the references.
        """

        def align(features: str, adain: bool, share: bool, scale: bool = False) -> fl.Module:
            return StyleAligned(f"{place}.{features}", adain, share, scale) if adain or share else fl.Identity()

        super().__init__(
            target,
            # queries, keys, values: (rows, tokens, dim)
            fl.Distribute(
                align("queries", adain=adain_queries, share=False),
                align("keys", adain=adain_keys, share=share_attention, scale=share_attention),
                align("values", adain=adain_values, share=share_attention),
            ),
            # queries: (rows, tokens, dim), keys, values: (rows, tokens + reference_tokens, dim)
            SharedAttention(target),
            # (rows, tokens, dim)
        )


class FullySharedAttentionAdapter(AttentionAdapter):
    """Have all rows of a group attend to each other."""

    def __init__(self, target: fl.ScaledDotProductAttention) -> None:
        """Initialize the FullySharedAttentionAdapter.

        Args:
            target: The attention.
        """
        super().__init__(target, FullySharedAttention(target))


def find_self_attentions(target: fl.Chain) -> list[fl.SelfAttention]:
    """Find the self-attentions of a model, in the order in which diffusers counts them: down, up, middle."""
    walked = [self_attention for self_attention, _ in walk(target, fl.SelfAttention)]
    middle = {
        id(self_attention)
        for block_type in (SD1MiddleBlock, SDXLMiddleBlock)
        for block, _ in walk(target, block_type)
        for self_attention, _ in walk(block, fl.SelfAttention)
    }
    return sorted(walked, key=lambda self_attention: id(self_attention) in middle)  # stable


def find_attention(self_attention: fl.SelfAttention) -> fl.ScaledDotProductAttention:
    """Find the attention of a self-attention.

    Args:
        self_attention: The self-attention.

    Raises:
        ValueError: If there is not exactly one, or if it is causal or adapted already.
    """
    attentions = [layer for layer in self_attention if isinstance(layer, fl.ScaledDotProductAttention)]
    if len(attentions) != 1 or attentions[0].is_causal:
        raise ValueError(
            "expected self-attentions with one ScaledDotProductAttention that is not causal,"
            f" got {self_attention.get_path()}"
        )
    return attentions[0]


def only_self(total: int, level: float) -> list[bool]:
    """Tell which self-attentions are left alone at a given `only_self_level`, as Google's `_get_switch_vec` does.

    Args:
        total: The number of self-attentions.
        level: The fraction of them to leave alone, between 0 and 1, which comes out rounded.

    Returns:
        For each self-attention, whether it is left alone.
    """
    flipped = 0.5 < level < 1
    spread = int((1 - level if flipped else level) * total)
    every = total // spread if spread > 0 else total + 1
    alone = [spread > 0 and index % every == 0 for index in range(total)]
    return [not is_alone for is_alone in alone] if flipped else alone


def walk(chain: fl.Chain, layer_type: type[TLayer]) -> Iterator[tuple[TLayer, fl.Chain]]:
    """Walk the layers of the given type, with their parents, that are in the data flow of the chain.

    What a `Passthrough` holds is left out, since its output is dropped: a ControlNet has attentions of its own.
    """

    def is_found(layer: fl.Module, _: fl.Chain) -> bool:
        if isinstance(layer, fl.Passthrough):
            raise StopIteration  # prunes
        return isinstance(layer, layer_type)

    if isinstance(chain, layer_type):
        yield chain, chain.parent or chain
    else:
        yield from chain.walk(is_found)  # pyright: ignore[reportReturnType]
