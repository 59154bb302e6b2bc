"""StyleAligned written again from the equations of the paper: a loop over images and heads, in float64."""

import math
from dataclasses import dataclass

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


QKV = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one image, each of shape (tokens, dim)."""


def adain(x: Tensor, reference: Tensor) -> Tensor:
    """Equation 2 of the paper, with Google's epsilon."""
    columns: list[Tensor] = []
    for channel in range(x.shape[1]):
        own, style = x[:, channel], reference[:, channel]
        own_variance = sum((own - own.mean()) ** 2) / (len(own) - 1)
        style_variance = sum((style - style.mean()) ** 2) / (len(style) - 1)
        columns.append(
            (own - own.mean()) / (own_variance + 1e-5) ** 0.5 * (style_variance + 1e-5) ** 0.5 + style.mean()
        )
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


def attend_to_reference(target: QKV, reference: QKV, num_heads: int, options: Options) -> Tensor:
    """Attention of one target, whose reference may have another number of tokens."""
    amount = min(options.strength, 1)
    normalize = (options.adain_queries, options.adain_keys, options.adain_values)
    query, key, value = (
        (1 - amount) * own + amount * adain(own, style) if is_normalized else own
        for own, style, is_normalized in zip(target, reference, normalize, strict=True)
    )
    weights = torch.ones(len(key)).double()
    if options.share_attention:
        # the reference counts as an image of the target's size
        weight = options.strength * math.exp(options.shift) * len(key) / len(reference[1])
        key = torch.cat((key, options.scale * reference[1]))
        value = torch.cat((value, reference[2]))
        weights = torch.cat((weights, torch.full((len(reference[1]),), weight).double()))
    return attention(query, key, value, num_heads, weights)


def shared_attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, options: Options) -> Tensor:
    """Attend, row by row, with the first row of each group as the reference of the others."""
    rows: list[QKV] = list(zip(queries.double(), keys.double(), values.double(), strict=True))
    outputs: list[Tensor] = []
    for index, row in enumerate(rows):
        first = index - index % options.set_size
        if options.full_attention_share:
            group = rows[first : first + options.set_size]
            key, value = torch.cat([key for _, key, _ in group]), torch.cat([value for _, _, value in group])
            outputs.append(attention(row[0], key, value, num_heads, torch.ones(len(key)).double()))
        elif index == first:
            outputs.append(attention(*row, num_heads, torch.ones(len(row[1])).double()))
        else:
            outputs.append(attend_to_reference(row, rows[first], num_heads, options))
    return torch.stack(outputs)


def shared_group_norm(
    x: Tensor, reference: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, strength: float = 1.0
) -> Tensor:
    """Group normalization of one image of shape (channels, ...) with the moments of it and `strength` references."""
    own, style = x.double(), reference.double()
    parts: list[Tensor] = []
    for part, style_part in zip(own.chunk(num_groups), style.chunk(num_groups), strict=True):
        mean = (part.mean() + strength * style_part.mean()) / (1 + strength)
        spread = ((part - mean) ** 2).mean() + strength * ((style_part - mean) ** 2).mean()
        parts.append((part - mean) / (spread / (1 + strength) + eps) ** 0.5)
    shape = (-1, *(1 for _ in x.shape[1:]))
    return torch.cat(parts) * weight.double().reshape(shape) + bias.double().reshape(shape)


def relative_error(x: Tensor, expected: Tensor) -> float:
    """The distance to what is expected, relative to its norm."""
    x, expected = x.detach().double(), expected.detach().double()
    return float((x - expected).norm() / expected.norm())
