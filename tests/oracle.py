"""StyleAligned written again from the equations of the paper: a loop over images and heads, in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    set_size: int = 3
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    share_attention: bool = True
    full_attention_share: bool = False
    scale: float = 1.0
    shift: float = 0.0
    strength: float = 1.0
    halves: Literal["both", "positive"] = "both"
    mask: Tensor | None = None


QKV = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one image, each of shape (tokens, dim)."""


def adain(x: Tensor, *references: Tensor, shares: Sequence[float] = (1.0,), mask: Tensor | None = None) -> Tensor:
    """Equation 2 of the paper, with Google's epsilon, for a mixture of references of which a mask leaves a part."""
    columns: list[Tensor] = []
    for channel in range(x.shape[1]):
        own = x[:, channel]
        own_variance = sum((own - own.mean()) ** 2) / (len(own) - 1)
        means: list[Tensor] = []
        variances: list[Tensor] = []
        for reference in references:
            style, tokens = reference[:, channel], len(reference)
            weights = torch.ones(tokens).double() if mask is None else mask.double()
            mean = (weights * style).sum() / weights.sum()
            means.append(mean)
            variances.append((weights * (style - mean) ** 2).sum() / weights.sum() * tokens / (tokens - 1))
        mean = sum(share * one for share, one in zip(shares, means, strict=True))
        variance = sum(
            share * (one + (its_mean - mean) ** 2)
            for share, one, its_mean in zip(shares, variances, means, strict=True)
        )
        columns.append((own - own.mean()) / (own_variance + 1e-5) ** 0.5 * (variance + 1e-5) ** 0.5 + mean)
    return torch.stack(columns, dim=1)


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, weights: Tensor) -> Tensor:
    """Equation 1 of the paper, head by head, where each token is there as often as its weight says."""
    dim = query.shape[1] // num_heads
    heads: list[Tensor] = []
    for head in range(num_heads):
        part = slice(head * dim, (head + 1) * dim)
        scores = query[:, part] @ key[:, part].T / dim**0.5
        scores = torch.exp(scores - scores.max()) * weights
        heads.append(scores @ value[:, part] / scores.sum(dim=1, keepdim=True))
    return torch.cat(heads, dim=1)


def attend_to_references(
    target: QKV, references: Sequence[QKV], num_heads: int, options: Options, shares: Sequence[float] = (1.0,)
) -> Tensor:
    """Attention of one target, whose references may have other numbers of tokens."""
    amount = min(options.strength, 1)
    normalize = (options.adain_queries, options.adain_keys, options.adain_values)
    query, key, value = (
        (1 - amount) * own + amount * adain(own, *styles, shares=shares, mask=options.mask) if is_normalized else own
        for own, styles, is_normalized in zip(target, zip(*references, strict=True), normalize, strict=True)
    )
    tokens = len(key)
    weights = torch.ones(tokens).double()
    for share, (_, style_key, style_value) in zip(shares, references, strict=True):
        if options.share_attention:
            # together the references count as an image of the target's size
            weight = options.strength * share * math.exp(options.shift) * tokens / len(style_key)
            mask = torch.ones(len(style_key)).double() if options.mask is None else options.mask.double()
            key = torch.cat((key, options.scale * style_key))
            value = torch.cat((value, style_value))
            weights = torch.cat((weights, weight * mask))
    return attention(query, key, value, num_heads, weights)


def shared_attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, options: Options) -> Tensor:
    """Attend, row by row, with the first row of each group as the reference of the others."""
    rows: list[QKV] = list(zip(queries.double(), keys.double(), values.double(), strict=True))
    outputs: list[Tensor] = []
    for index, row in enumerate(rows):
        first = index - index % options.set_size
        is_negative = index < len(rows) // 2
        if options.full_attention_share:
            group = rows[first : first + options.set_size]
            key, value = torch.cat([key for _, key, _ in group]), torch.cat([value for _, _, value in group])
            outputs.append(attention(row[0], key, value, num_heads, torch.ones(len(key)).double()))
        elif index == first or (is_negative and options.halves == "positive"):
            outputs.append(attention(*row, num_heads, torch.ones(len(row[1])).double()))
        else:
            outputs.append(attend_to_references(row, [rows[first]], num_heads, options))
    return torch.stack(outputs)


def shared_group_norm(
    x: Tensor,
    reference: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    strength: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Group normalization of one image of shape (channels, ...) with the moments of it and `strength` references."""
    own, style = x.double(), reference.double()
    counts = torch.ones(style.shape[1:]).double() if mask is None else mask.double()
    strength = strength * float(counts.mean())
    parts: list[Tensor] = []
    for part, style_part in zip(own.chunk(num_groups), style.chunk(num_groups), strict=True):
        channel_counts = counts.expand_as(style_part)
        style_mean = (channel_counts * style_part).sum() / channel_counts.sum()
        mean = (part.mean() + strength * style_mean) / (1 + strength)
        style_spread = (channel_counts * (style_part - mean) ** 2).sum() / channel_counts.sum()
        spread = ((part - mean) ** 2).mean() + strength * style_spread
        parts.append((part - mean) / (spread / (1 + strength) + eps) ** 0.5)
    shape = (-1, *(1 for _ in x.shape[1:]))
    return torch.cat(parts) * weight.double().reshape(shape) + bias.double().reshape(shape)


def relative_error(x: Tensor, expected: Tensor) -> float:
    """The distance to what is expected, relative to its norm."""
    x, expected = x.detach().double(), expected.detach().double()
    return float((x - expected).norm() / expected.norm())
