"""Attention that is shared with the reference."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.attentions import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_non_optimized,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused_attention

from style_aligned.adapter.sharing import get_sharing

OR_ONCE = "or have the reference count once (strength 1, shift 0, no mask, one reference of the targets' size)"
"""What else can be done where references cannot be given weights. Without them, any attention serves."""


class SharedAttention(fl.Chain):
    """Attention where the targets attend to their own tokens and to their reference's.

    The references attend to themselves alone, exactly as in plain attention and at its cost.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows keys+reference_keys dim"]): The keys, followed by those of the references. There may
            be more of them than queries.
        value (Float[Tensor, "rows keys+reference_keys dim"]): The values, followed by those of the references.

    Returns:
        (Float[Tensor, "rows tokens dim"]): The attended values.
    """

    def __init__(self, attention: fl.ScaledDotProductAttention, place: str) -> None:
        """Initialize the SharedAttention layer.

        Args:
            attention: The attention to share.
            place: The name of the place, which may have a strength of its own.
        """
        self._place = place
        self._attention = [attention]  # other adapters may come between
        super().__init__(attention)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows shared_keys dim"],
        value: Float[Tensor, "rows shared_keys dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        sharing, attend = get_sharing(self), super().forward
        if sharing.mode.name == "record":  # nothing is shared
            return attend(query, key, value)
        if sharing.mode.name == "replay":
            return self.attend_to_shared(query, key, value)

        set_size, own = sharing.shared_group_size(query.shape[0]), sharing.own_tokens(self._place, key)
        attended: list[Tensor] = []
        for start in range(0, query.shape[0], set_size):
            reference, targets = slice(start, start + 1), slice(start + 1, start + set_size)
            attended.append(attend(query[reference], key[reference, :own], value[reference, :own]))
            attended.append(self.attend_to_shared(query[targets], key[targets], value[targets]))
        return torch.cat(attended)

    def attend_to_shared(
        self,
        query: Float[Tensor, "targets tokens dim"],
        key: Float[Tensor, "targets shared_keys dim"],
        value: Float[Tensor, "targets shared_keys dim"],
    ) -> Float[Tensor, "targets tokens dim"]:
        """Attend with the weights of the references added to the scores of their tokens.

        Args:
            query: The queries.
            key: The keys.
            value: The values.

        Raises:
            ValueError: If references have weights, and other adapters do not let them through to the attention.
        """
        sharing, limits = get_sharing(self), torch.finfo(key.dtype)
        own = sharing.own_tokens(self._place, key)
        log_weights = sharing.log_weights(self._place, key, own)
        if not isinstance(log_weights, Tensor):
            if log_weights == 0:
                return super().forward(query, key, value)
            log_weights = key.new_tensor(min(max(log_weights, limits.min), limits.max)).expand(key.shape[1] - own)
        bias = torch.cat((key.new_zeros(own), log_weights.clamp(limits.min, limits.max).to(dtype=key.dtype)))

        # heads and slices are the attention's, and what other adapters have put around it stays: only its dot product
        # is another one for now
        attention = self._attention[0]
        dot_product = attention.dot_product
        attention.dot_product = biased = BiasedDotProduct(dot_product, bias)
        try:
            attended = super().forward(query, key, value)
        finally:
            attention.dot_product = dot_product
        if not biased.is_used:
            raise ValueError(
                f"expected {self._place} to compute with the dot product of its ScaledDotProductAttention, which gives"
                f" references their weights, got {', '.join(type(layer).__name__ for layer in self)} that goes without:"
                f" eject it, {OR_ONCE}"
            )
        return attended


class BiasedDotProduct:
    """The dot product of a `ScaledDotProductAttention`, with something added to the scores of each key.

    Attributes:
        is_used: Whether it was called.
    """

    def __init__(self, dot_product: Callable[..., Tensor], bias: Float[Tensor, "keys"]) -> None:
        """Initialize the BiasedDotProduct.

        Args:
            dot_product: The dot product without.
            bias: What is added to the scores of each key. Fused attention adds it as it goes: the scores of all queries
                are never laid out in memory.

        Raises:
            ValueError: If the dot product is none of Refiners' two.
        """
        if dot_product not in (scaled_dot_product_attention, scaled_dot_product_attention_non_optimized):
            name = getattr(dot_product, "__name__", type(dot_product).__name__)
            raise ValueError(
                "expected a ScaledDotProductAttention with one of Refiners' dot products, which references can be"
                f" given their weights in, got {name}: set it back, {OR_ONCE}"
            )
        self.is_optimized = dot_product is scaled_dot_product_attention
        self.bias = bias
        self.is_used = False

    def __call__(
        self,
        query: Float[Tensor, "rows heads tokens dim"],
        key: Float[Tensor, "rows heads keys dim"],
        value: Float[Tensor, "rows heads keys dim"],
        is_causal: bool = False,
    ) -> Float[Tensor, "rows heads tokens dim"]:
        """Attend.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
            is_causal: False: a causal attention is not shared.

        Raises:
            ValueError: If another adapter has changed the number of keys.
        """
        self.is_used = True
        if key.shape[-2] != len(self.bias):
            raise ValueError(
                f"expected the {len(self.bias)} keys of targets and references, which have weights, got"
                f" {key.shape[-2]} from another adapter: eject it, {OR_ONCE}"
            )
        if self.is_optimized:
            # a row of scores for all the queries: broadcast, it stays that small
            return fused_attention(query, key, value, attn_mask=self.bias.expand(query.shape[-2], -1))
        scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1]) + self.bias
        return scores.softmax(dim=-1).to(dtype=value.dtype) @ value


class FullySharedAttention(fl.Chain):
    """Attention where every row of a group attends to the tokens of all its rows.

    This is `full_attention_share` of Google's implementation.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows tokens dim"]): The keys.
        value (Float[Tensor, "rows tokens dim"]): The values.

    Returns:
        (Float[Tensor, "rows tokens dim"]): The attended values.
    """

    def __init__(self, attention: fl.ScaledDotProductAttention) -> None:
        """Initialize the FullySharedAttention layer.

        Args:
            attention: The attention to share.
        """
        super().__init__(attention)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows tokens dim"],
        value: Float[Tensor, "rows tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        groups = query.shape[0] // get_sharing(self).shared_group_size(query.shape[0])
        laid_end_to_end = (x.reshape(groups, -1, x.shape[-1]) for x in (query, key, value))
        return super().forward(*laid_end_to_end).reshape(query.shape)
