"""What takes the place of Refiners' own layers: attentions and normalizations that are shared with the reference."""

import math

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.attentions import scaled_dot_product_attention as fused_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from style_aligned.adapter.blockwise import attend_in_blocks, is_quicker
from style_aligned.adapter.layers import GetReferences, group_size


class SharedScaledDotProductAttention(fl.ScaledDotProductAttention):
    """Attention where the targets attend to their own tokens and to their reference's.

    It takes the place of the `ScaledDotProductAttention` of an adapted self-attention, and calls it. The references
    attend to themselves alone, exactly as they do in plain attention and at its cost.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows 2*tokens dim"]): The keys, followed by those of the references.
        value (Float[Tensor, "rows 2*tokens dim"]): The values, followed by those of the references.

    Returns:
        (Float[Tensor, "rows tokens dim"]): The attended values.
    """

    def __init__(
        self,
        attention: fl.ScaledDotProductAttention,
        shift: float = 0.0,
        set_size: int | None = None,
        references_included: bool = True,
    ) -> None:
        """Initialize the SharedScaledDotProductAttention layer.

        Args:
            attention: The attention to share.
            shift: What is added to the scores of the reference's tokens, `shared_score_shift` of Google's
                implementation. Fused attention adds it as it goes: the scores are never laid out in memory.
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
            references_included: Whether the first row of each group is its reference.
        """
        super().__init__(
            num_heads=attention.num_heads,
            is_optimized=attention.is_optimized,
            slice_size=attention.slice_size,
        )
        self.attention = attention
        self.dot_product = self.shared_dot_product
        self.shift = shift
        self.set_size = set_size
        self.references_included = references_included

    def forward(
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows shared_tokens dim"],
        value: Float[Tensor, "rows shared_tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        # the parent class attends through `shared_dot_product`
        attend_to_shared = super().forward if self.shift != 0 or self.takes_blocks(query, key) else self.attention
        if not self.references_included:
            return attend_to_shared(query, key, value)

        own_tokens = key.shape[-2] // 2
        set_size = group_size(query.shape[0], self.set_size)
        attended: list[Tensor] = []
        for start in range(0, query.shape[0], set_size):
            reference, targets = slice(start, start + 1), slice(start + 1, start + set_size)
            own_key, own_value = key[reference, :own_tokens], value[reference, :own_tokens]
            attended.append(self.attention(query[reference], own_key, own_value))
            if set_size > 1:
                attended.append(attend_to_shared(query[targets], key[targets], value[targets]))
        return torch.cat(attended)

    def takes_blocks(
        self, query: Float[Tensor, "rows tokens dim"], key: Float[Tensor, "rows shared_tokens dim"]
    ) -> bool:
        """Whether to attend in blocks: where that is quicker, and the attention is nothing but Refiners' fused one."""
        attention = self.attention
        is_fused = type(attention) is fl.ScaledDotProductAttention and attention.dot_product is fused_attention
        is_changed = any(vars(attention).get(name) for name in ("forward", "_forward_hooks", "_forward_pre_hooks"))
        return is_fused and not is_changed and is_quicker(query, key, self.num_heads)

    def shared_dot_product(
        self,
        query: Float[Tensor, "rows heads tokens head_dim"],
        key: Float[Tensor, "rows heads shared_tokens head_dim"],
        value: Float[Tensor, "rows heads shared_tokens head_dim"],
        is_causal: bool = False,
    ) -> Float[Tensor, "rows heads tokens head_dim"]:
        """Attend with `shift` added to the scores of the second half of the keys, or in blocks where there is none.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
            is_causal: Always False: sharing has no causal form.
        """
        assert not is_causal
        if self.shift == 0:
            return attend_in_blocks(query, key, value)
        own, shared = key.new_zeros(key.shape[-2]).chunk(2)
        limits = torch.finfo(key.dtype)
        bias = torch.cat((own, shared + min(max(self.shift, limits.min), limits.max)))
        if self.is_optimized:
            # a row of scores for all the queries: broadcast, it stays that small
            return scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(query.shape[-2], -1))
        scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1]) + bias
        return scores.softmax(dim=-1).to(dtype=value.dtype) @ value


class FullySharedScaledDotProductAttention(fl.ScaledDotProductAttention):
    """Attention where every row of a group attends to the tokens of all its rows.

    It takes the place of the `ScaledDotProductAttention` of an adapted self-attention, and calls it. This is
    `full_attention_share` of Google's implementation.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows tokens dim"]): The keys.
        value (Float[Tensor, "rows tokens dim"]): The values.

    Returns:
        (Float[Tensor, "rows tokens dim"]): The attended values.
    """

    def __init__(self, attention: fl.ScaledDotProductAttention, set_size: int | None = None) -> None:
        """Initialize the FullySharedScaledDotProductAttention layer.

        Args:
            attention: The attention to share.
            set_size: The number of consecutive rows that make a group. None means half of the rows: the two guidance
                halves of one set.
        """
        super().__init__(
            num_heads=attention.num_heads,
            is_optimized=attention.is_optimized,
            slice_size=attention.slice_size,
        )
        self.attention = attention
        self.set_size = set_size

    def forward(
        self,
        query: Float[Tensor, "rows *size"],
        key: Float[Tensor, "rows *size"],
        value: Float[Tensor, "rows *size"],
    ) -> Float[Tensor, "rows *size"]:
        if query.ndim != 3:
            raise ValueError(
                "expected features of rank 3 (rows, tokens, dim), got a tensor of"
                f" rank {query.ndim} and shape {tuple(query.shape)}"
            )
        set_size = group_size(query.shape[0], self.set_size)
        groups, dim = query.shape[0] // set_size, query.shape[-1]
        attended = self.attention(*(x.reshape(groups, -1, dim) for x in (query, key, value)))
        return attended.reshape(query.shape)


class SharedGroupNorm(fl.Chain):
    """Group normalization with statistics over the row and its reference together.

    It takes the place of a `GroupNorm`, and holds it. Google's `share_group_norm` concatenates the two images to take
    their common statistics; these follow from the moments of each.

    Receives:
        x (Float[Tensor, "rows channels *size"]): The features of references and targets.

    Returns:
        (Float[Tensor, "rows channels *size"]): The normalized features.
    """

    def __init__(self, group_norm: fl.GroupNorm, set_size: int | None = None, references_included: bool = True) -> None:
        """Initialize the SharedGroupNorm layer.

        Args:
            group_norm: The normalization to share.
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
            references_included: Whether the first row of each group is its reference.
        """
        self.references_included = references_included
        super().__init__(
            group_norm,
            GetReferences(set_size=set_size),  # of the moments
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "rows *size"]
    ) -> Float[Tensor, "rows *size"]:
        group_norm, get_references = self.layer(0, fl.GroupNorm), self.layer(1)
        if x.ndim < 2 or x.shape[1] != group_norm.channels:
            raise ValueError(
                f"expected features of shape (rows, {group_norm.channels}, ...), got shape {tuple(x.shape)}"
            )

        # statistics in float32 and by sums, as for AdaIN: `torch.var_mean` is eight times slower on the CPU
        grouped = x.reshape(x.shape[0], group_norm.num_groups, -1)
        grouped = grouped.to(dtype=torch.promote_types(x.dtype, torch.float32))
        mean = grouped.mean(dim=-1, keepdim=True)
        centered = grouped - mean
        variance = centered.square().mean(dim=-1, keepdim=True)
        moments: Tensor = torch.cat((variance, mean), dim=-1)  # (rows, num_groups, 2)
        references: Tensor = get_references(moments)  # (groups, num_groups, 2)
        set_size = len(x) // len(references)
        if self.references_included and set_size == 1:
            return group_norm(x)
        reference_variance, reference_mean = references.repeat_interleave(set_size, dim=0).chunk(2, dim=-1)

        # the two images have as many pixels each: their common variance is the mean of theirs, and of their distance
        distance = (mean - reference_mean) / 2
        deviation = ((variance + reference_variance) / 2 + distance.square() + group_norm.eps).sqrt()
        # as factor and summand of each channel, which takes a single pass over the features
        weight, bias = (
            parameter.to(dtype=grouped.dtype).reshape(group_norm.num_groups, -1)
            for parameter in (group_norm.weight, group_norm.bias)
        )
        factor = weight / deviation  # (rows, num_groups, channels of each)
        summand = bias + distance * factor
        shape = (*x.shape[:2], *(1 for _ in x.shape[2:]))
        normalized = torch.addcmul(summand.reshape(shape), centered.reshape(x.shape), factor.reshape(shape))
        normalized = normalized.to(dtype=x.dtype)
        if self.references_included:
            normalized[::set_size] = group_norm(x[::set_size])
        return normalized

    def _pre_structural_copy(self) -> None:
        raise RuntimeError("SharedGroupNorm cannot be copied, since nothing would eject it: eject the adapter first.")
