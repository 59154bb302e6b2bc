"""The maths of StyleAligned: small stateless layers, and the chain that they compose.

Rows are laid out in *groups* of `set_size` consecutive rows: a group is one guidance half of one set of images, and its
first row is the reference of the others, the targets. See [[arXiv:2312.02133] Style Aligned Image Generation via Shared
Attention](https://arxiv.org/abs/2312.02133).
"""

import math

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def split_rows(rows: int, set_size: int | None) -> int:
    """Give the number of consecutive rows that make one group.

    Args:
        rows: The number of rows in the batch.
        set_size: The number of images in a set, the reference included. None means that the batch holds the two
            guidance halves of a single set.

    Returns:
        The number of rows in each group.

    Raises:
        ValueError: If the rows cannot be split this way.
    """
    if set_size is None:
        if rows % 2 != 0:
            raise ValueError(
                f"got a batch of {rows} rows, expected the two guidance halves of one set (an even number):"
                " without classifier-free guidance, or for several sets in one batch, give the adapter a set_size"
            )
        return rows // 2
    if rows == 0 or rows % set_size != 0:
        raise ValueError(f"got a batch of {rows} rows, expected a multiple of set_size={set_size}")
    return set_size


class GetReferences(fl.Module):
    """Get the reference of each group, the first of its rows.

    This is `expand_first` of [Google's implementation](https://github.com/google/style-aligned), without the expansion:
    whatever is computed on the references is computed once a group.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.

    Returns:
        references (Float[Tensor, "groups tokens dim"]): The features of the references (a view).

    Raises:
        ValueError: If `features` are not of rank 3, or if their rows cannot be split into groups of `set_size`.
    """

    def __init__(self, set_size: int | None = None) -> None:
        """Initialize the GetReferences layer.

        Args:
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
        """
        super().__init__()
        self.set_size = set_size

    def forward(self, features: Float[Tensor, "rows *size"]) -> Float[Tensor, "groups *size"]:
        if features.ndim != 3:
            raise ValueError(
                "expected features of rank 3 (rows, tokens, dim), got a tensor of"
                f" rank {features.ndim} and shape {tuple(features.shape)}"
            )
        return features[:: split_rows(features.shape[0], self.set_size)]


class AdaIn(fl.Module):
    """Give the features of each row the mean and the deviation of its reference's, channel by channel.

    See [[arXiv:1703.06868] Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization](https://arxiv.org/abs/1703.06868).
    The deviation is Google's, `sqrt(unbiased variance + epsilon)`. Statistics are taken in float32, whatever the
    precision of the features. Rows that are their own reference are left as they are, bit for bit.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features to normalize.
        references (Float[Tensor, "groups reference_tokens dim"]): The features of the references.

    Returns:
        features (Float[Tensor, "rows tokens dim"]): The normalized features.
        references (Float[Tensor, "groups reference_tokens dim"]): The features of the references (unchanged).
    """

    def __init__(self, epsilon: float = 1e-5, references_included: bool = True) -> None:
        """Initialize the AdaIn layer.

        Args:
            epsilon: What is added to the variance, so that constant channels do not divide by zero.
            references_included: Whether the first row of each group is its reference.
        """
        super().__init__()
        self.epsilon = epsilon
        self.references_included = references_included

    def forward(
        self,
        features: Float[Tensor, "rows tokens dim"],
        references: Float[Tensor, "groups reference_tokens dim"],
    ) -> tuple[Float[Tensor, "rows tokens dim"], Float[Tensor, "groups reference_tokens dim"]]:
        groups, rows = references.shape[0], features.shape[0]
        _, reference_mean, reference_deviation = self._standardize(references)
        centered, _, deviation = self._standardize(features)

        reference_mean = reference_mean.repeat_interleave(rows // groups, dim=0)  # (rows, 1, dim)
        reference_deviation = reference_deviation.repeat_interleave(rows // groups, dim=0)
        normalized = torch.addcmul(reference_mean, centered, reference_deviation / deviation).to(dtype=features.dtype)
        if self.references_included:
            normalized[:: rows // groups] = references

        return normalized, references

    def _standardize(self, x: Float[Tensor, "rows tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Give the centered features, their mean and their deviation over the tokens, in float32 or better."""
        # Sums, since `torch.std` and `torch.var_mean` over this axis are ten times slower on the CPU.
        x = x.to(dtype=torch.promote_types(x.dtype, torch.float32))
        mean = x.mean(dim=-2, keepdim=True)
        centered = x - mean
        variance = centered.square().sum(dim=-2, keepdim=True) / max(x.shape[-2] - 1, 1)
        return centered, mean, (variance + self.epsilon).sqrt()


class ScaleReferences(fl.Module):
    """Scale the features of the references, for the targets to attend to them more or less.

    This is `shared_score_scale` of Google's implementation.

    Receives:
        references (Float[Tensor, "groups tokens dim"]): The features of the references.

    Returns:
        references (Float[Tensor, "groups tokens dim"]): The scaled features.
    """

    def __init__(self, scale: float = 1.0) -> None:
        """Initialize the ScaleReferences layer.

        Args:
            scale: The factor. At 1 the features are passed on as they are.
        """
        super().__init__()
        self.scale = scale

    def forward(self, references: Float[Tensor, "groups tokens dim"]) -> Float[Tensor, "groups tokens dim"]:
        return references if self.scale == 1 else references * self.scale


class ShareReferences(fl.Module):
    """Append to the tokens of each row the tokens of its reference.

    This is `concat_first` of Google's implementation.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.
        references (Float[Tensor, "groups reference_tokens dim"]): The features of the references.

    Returns:
        shared_features (Float[Tensor, "rows tokens+reference_tokens dim"]): The concatenated features.
    """

    def forward(
        self,
        features: Float[Tensor, "rows tokens dim"],
        references: Float[Tensor, "groups reference_tokens dim"],
    ) -> Float[Tensor, "rows shared_tokens dim"]:
        groups, rows = references.shape[0], features.shape[0]
        grouped = features.reshape(groups, -1, *features.shape[1:])  # (groups, set_size, tokens, dim)
        shared = references.unsqueeze(dim=1).expand(-1, rows // groups, -1, -1)
        return torch.cat((grouped, shared), dim=-2).flatten(start_dim=0, end_dim=1)


class StyleAligned(fl.Chain):
    """Align the queries, the keys or the values of a self-attention with those of the references.

    Three of them stand right before the `ScaledDotProductAttention` of a self-attention, one each for queries, keys and
    values. See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133),
    figure 4, and the article of Refiners' authors, <https://blog.finegrain.ai/posts/implementing-style-aligned/>.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.

    Returns:
        features (Float[Tensor, "rows tokens dim"] | Float[Tensor, "rows 2*tokens dim"]): The aligned features, followed
            by those of the references where they are shared.
    """

    def __init__(
        self,
        adain: bool,
        share: bool,
        scale: float | None = None,
        set_size: int | None = None,
    ) -> None:
        """Initialize the StyleAligned chain.

        Args:
            adain: Whether to give the features the mean and the deviation of their reference's.
            share: Whether to append the features of the reference.
            scale: The factor for the appended features. None leaves no place for one.
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
        """
        self.adain = adain
        self.share = share
        super().__init__(
            # features: (rows, tokens, dim)
            fl.Parallel(
                fl.Identity(),
                GetReferences(set_size=set_size),
            ),
            # features: (rows, tokens, dim), references: (groups, tokens, dim)
            AdaIn(),
            fl.Distribute(
                fl.Identity(),
                ScaleReferences(scale=1.0 if scale is None else scale),
            ),
            ShareReferences(),
            # features: (rows, 2 * tokens, dim)
        )

        if not adain:
            self.remove(self.layer("AdaIn", AdaIn))

        if scale is None:
            self.remove(self.layer("Distribute", fl.Distribute))

        if not share:
            self.replace(self.layer("ShareReferences", ShareReferences), fl.GetArg(index=0))


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
        self.dot_product = self.shifted_dot_product
        self.shift = shift
        self.set_size = set_size
        self.references_included = references_included

    def forward(
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows shared_tokens dim"],
        value: Float[Tensor, "rows shared_tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        # the parent class attends through `shifted_dot_product`
        attend_to_shared = self.attention if self.shift == 0 else super().forward
        if not self.references_included:
            return attend_to_shared(query, key, value)

        own_tokens = key.shape[-2] // 2
        set_size = split_rows(query.shape[0], self.set_size)
        attended: list[Tensor] = []
        for start in range(0, query.shape[0], set_size):
            reference, targets = slice(start, start + 1), slice(start + 1, start + set_size)
            own_key, own_value = key[reference, :own_tokens], value[reference, :own_tokens]
            attended.append(self.attention(query[reference], own_key, own_value))
            if set_size > 1:
                attended.append(attend_to_shared(query[targets], key[targets], value[targets]))
        return torch.cat(attended)

    def shifted_dot_product(
        self,
        query: Float[Tensor, "rows heads tokens head_dim"],
        key: Float[Tensor, "rows heads shared_tokens head_dim"],
        value: Float[Tensor, "rows heads shared_tokens head_dim"],
        is_causal: bool = False,
    ) -> Float[Tensor, "rows heads tokens head_dim"]:
        """Attend with `shift` added to the scores of the second half of the keys.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
            is_causal: Always False: sharing has no causal form.
        """
        assert not is_causal
        own, shared = key.new_zeros(key.shape[-2]).chunk(2)
        bias = torch.cat((own, shared + self.shift))
        if self.is_optimized:
            # a row of scores for all the queries: broadcast, it stays that small
            return scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(query.shape[-2], -1))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
        return scores.softmax(dim=-1) @ value


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
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows tokens dim"],
        value: Float[Tensor, "rows tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        set_size = split_rows(query.shape[0], self.set_size)
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

    def __init__(self, group_norm: fl.GroupNorm, set_size: int | None = None) -> None:
        """Initialize the SharedGroupNorm layer.

        Args:
            group_norm: The normalization to share.
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
        """
        super().__init__(
            group_norm,
            GetReferences(set_size=set_size),  # of the moments
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "rows channels *size"]
    ) -> Float[Tensor, "rows channels *size"]:
        group_norm, get_references = self.layer(0, fl.GroupNorm), self.layer(1)

        # statistics in float32, as for AdaIN
        grouped = x.reshape(x.shape[0], group_norm.num_groups, -1)
        grouped = grouped.to(dtype=torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(grouped, dim=-1, correction=0)
        moments: Tensor = torch.stack((variance, mean), dim=1)  # (rows, 2, num_groups)
        references: Tensor = get_references(moments)  # (groups, 2, num_groups)
        reference_variance, reference_mean = references.repeat_interleave(len(x) // len(references), dim=0).unbind(1)

        # the two images have as many pixels each: their common variance is the mean of theirs, and of their distance
        variance = (variance + reference_variance) / 2 + ((mean - reference_mean) / 2).square()
        mean = (mean + reference_mean) / 2
        normalized = (grouped - mean.unsqueeze(-1)) * (variance + group_norm.eps).rsqrt().unsqueeze(-1)
        channels_first = (-1, *(1 for _ in x.shape[2:]))
        weight, bias = group_norm.weight.reshape(channels_first), group_norm.bias.reshape(channels_first)
        return normalized.reshape(x.shape).to(dtype=x.dtype) * weight + bias
