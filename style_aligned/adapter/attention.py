"""Attention that is shared with the reference."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from style_aligned.adapter.sharing import get_sharing


class SharedAttention(fl.Chain):
    """Attention where the targets attend to their own tokens and to their reference's.

    The references attend to themselves alone, exactly as in plain attention and at its cost.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows tokens+reference_tokens dim"]): The keys, followed by those of the references.
        value (Float[Tensor, "rows tokens+reference_tokens dim"]): The values, followed by those of the references.

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
        super().__init__(attention)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows shared_tokens dim"],
        value: Float[Tensor, "rows shared_tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        attend, tokens = self[0], query.shape[1]
        if key.shape[1] == tokens:  # nothing is shared
            return attend(query, key, value)
        sharing = get_sharing(self)
        if sharing.mode == "replay":
            return self.attend_to_shared(query, key, value)

        set_size = sharing.shared_group_size(query.shape[0])
        attended: list[Tensor] = []
        for start in range(0, query.shape[0], set_size):
            reference, targets = slice(start, start + 1), slice(start + 1, start + set_size)
            attended.append(attend(query[reference], key[reference, :tokens], value[reference, :tokens]))
            attended.append(self.attend_to_shared(query[targets], key[targets], value[targets]))
        return torch.cat(attended)

    def attend_to_shared(
        self,
        query: Float[Tensor, "targets tokens dim"],
        key: Float[Tensor, "targets shared_tokens dim"],
        value: Float[Tensor, "targets shared_tokens dim"],
    ) -> Float[Tensor, "targets tokens dim"]:
        """Attend with the weights of the references added to the scores of their tokens.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
        """
        tokens, limits = query.shape[1], torch.finfo(key.dtype)
        log_weights = get_sharing(self).log_weights(self._place, key, tokens)
        if not isinstance(log_weights, Tensor):
            if log_weights == 0:
                return self[0](query, key, value)
            log_weights = key.new_tensor(min(max(log_weights, limits.min), limits.max)).expand(key.shape[1] - tokens)
        bias = torch.cat((key.new_zeros(tokens), log_weights.clamp(limits.min, limits.max).to(dtype=key.dtype)))
        with bias_scores(self.ensure_find(fl.ScaledDotProductAttention), bias):
            return self[0](query, key, value)  # with what other adapters have put around it


@contextmanager
def bias_scores(attention: fl.ScaledDotProductAttention, bias: Float[Tensor, "keys"]) -> Generator[None, None, None]:
    """Have an attention add something to the scores of each key, for as long as the context lasts.

    Args:
        attention: The attention.
        bias: What is added to the scores of each key.
    """
    dot_product = attention.dot_product
    attention.dot_product = partial(biased_dot_product, bias=bias, is_optimized=attention.is_optimized)
    try:
        yield
    finally:
        attention.dot_product = dot_product


def biased_dot_product(
    query: Float[Tensor, "rows heads tokens dim"],
    key: Float[Tensor, "rows heads keys dim"],
    value: Float[Tensor, "rows heads keys dim"],
    is_causal: bool = False,
    *,
    bias: Float[Tensor, "keys"],
    is_optimized: bool,
) -> Float[Tensor, "rows heads tokens dim"]:
    """Compute attention with something added to the scores of each key.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        is_causal: False: attentions that are causal do not share.
        bias: What is added to the scores of each key. Fused attention adds it as it goes: the scores of all queries
            are never laid out in memory.
        is_optimized: Whether to take PyTorch's fused attention.
    """
    if is_optimized:
        # a row of scores for all the queries: broadcast, it stays that small
        mask = bias.expand(query.shape[-2], -1)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1]) + bias
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
        return self[0](*laid_end_to_end).reshape(query.shape)
