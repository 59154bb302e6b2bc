"""StyleAligned written again from the equations of the paper: a loop over images and heads, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    set_size: int
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    share_attention: bool = True
    full_attention_share: bool = False
    scale: float = 1.0
    shift: float = 0.0


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


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Tensor) -> Tensor:
    """Equation 1 of the paper, head by head."""
    dim = query.shape[1] // num_heads
    heads: list[Tensor] = []
    for head in range(num_heads):
        part = slice(head * dim, (head + 1) * dim)
        scores = query[:, part] @ key[:, part].T / dim**0.5 + bias
        weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
        heads.append(weights @ value[:, part] / weights.sum(dim=1, keepdim=True))
    return torch.cat(heads, dim=1)


def shared_attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, options: Options) -> Tensor:
    """Attend, row by row, with the first row of each group as the reference of the others."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    tokens = queries.shape[1]
    outputs: list[Tensor] = []
    for row in range(len(queries)):
        first = row - row % options.set_size
        query, key, value = queries[row], keys[row], values[row]
        bias = torch.zeros(tokens).double()
        if options.full_attention_share:
            group = range(first, first + options.set_size)
            key, value = torch.cat([keys[i] for i in group]), torch.cat([values[i] for i in group])
            bias = torch.zeros(len(key)).double()
        elif row != first:
            query = adain(query, queries[first]) if options.adain_queries else query
            key = adain(key, keys[first]) if options.adain_keys else key
            value = adain(value, values[first]) if options.adain_values else value
            if options.share_attention:
                key = torch.cat((key, options.scale * keys[first]))
                value = torch.cat((value, values[first]))
                bias = torch.cat((bias, torch.full((tokens,), options.shift).double()))
        outputs.append(attention(query, key, value, num_heads, bias))
    return torch.stack(outputs)


def shared_group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, set_size: int) -> Tensor:
    """Group normalization of each row and its reference, laid side by side."""
    outputs: list[Tensor] = []
    for row in range(len(x)):
        both = torch.stack((x[row], x[row - row % set_size])).double().flatten(start_dim=2)  # (2, channels, pixels)
        parts: list[Tensor] = []
        for part in both.chunk(num_groups, dim=1):
            parts.append((part - part.mean()) / (part.var(correction=0) + eps) ** 0.5)
        normalized = torch.cat(parts, dim=1)[0]
        parts = [normalized * weight.double()[:, None] + bias.double()[:, None]]
        outputs.append(parts[0].reshape(x[row].shape))
    return torch.stack(outputs)


def relative_error(x: Tensor, expected: Tensor) -> float:
    """The distance to what is expected, relative to its norm."""
    x, expected = x.detach().double(), expected.detach().double()
    return float((x - expected).norm() / expected.norm())
