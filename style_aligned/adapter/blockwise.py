"""Attention in blocks of queries, for CPUs on which fused attention leaves the instructions for bfloat16 unused.

PyTorch's fused attention multiplies bfloat16 matrices by AMX where there is one. On other CPUs it goes at the speed of
float32, even where matrix products have instructions for bfloat16 (AMD since Zen 4, Intel's Cooper Lake). There,
attention that is composed of such products takes 0.7 to 0.9 of the time, as measured on two cores.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MANY_KEYS = 1024
WIDE_HEAD = 64
"""Keys, and channels of a head, from which on it takes less time than fused attention."""
MANY_THREADS = 8
"""Threads above which a block is taken to be too little work for all of them: measured were one and two."""
BLOCK_SCORES = 1 << 20
"""Scores of a block for each thread, 2 MB: what is computed with them stays in the processor's cache."""
LARGE_SCORE = 64.0
"""The score above which exp(x) is not 1 + x + x**2 / 2 for its rounding error x, within the precision of bfloat16."""


@cache
def has_bfloat16_products() -> bool:
    """Whether this CPU has instructions for products in bfloat16 that fused attention leaves unused."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # not in older versions
    return capabilities.get("avx512_bf16", False) and not capabilities.get("amx_bf16", False)


def is_quicker(query: Float[Tensor, "rows tokens dim"], key: Float[Tensor, "rows keys dim"], num_heads: int) -> bool:
    """Whether attention in blocks takes less time than fused attention, and can take its place.

    Args:
        query: The queries.
        key: The keys.
        num_heads: The number of heads that they are to be split into.
    """
    is_compiling = getattr(torch.compiler, "is_compiling", bool)()  # not in older versions either
    is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return (
        not is_compiling
        and not is_tracing
        and type(query) is Tensor  # and no stand-in for one
        and query.is_cpu
        and query.dtype == torch.bfloat16
        and key.shape[-2] >= MANY_KEYS
        and key.shape[-1] >= WIDE_HEAD * num_heads
        and not torch.is_grad_enabled()  # all weights would be kept for the gradient
        and torch.get_num_threads() <= MANY_THREADS
        and has_bfloat16_products()
        and bool(torch.backends.mkldnn.enabled)  # computes the products
    )


def attend_in_blocks(
    query: Float[Tensor, "rows heads tokens head_dim"],
    key: Float[Tensor, "rows heads keys head_dim"],
    value: Float[Tensor, "rows heads keys value_dim"],
) -> Float[Tensor, "rows heads tokens value_dim"]:
    """Scaled dot product attention, with 1.6 times the rounding error of fused attention in bfloat16.

    A product of bfloat16 matrices is computed in float32 and rounded in the end. A second product that the first one is
    taken from gives what the rounding has left out, by which the weights are corrected then. With the rounded scores
    alone, the error would be several times as large where scores are.

    Heads whose scores may be large are left to fused attention: their errors are large too, and many of their weights
    so small that products with them are slow.

    Args:
        query: The queries, in bfloat16.
        key: The keys.
        value: The values.

    Returns:
        The attended values.
    """
    rows, heads, tokens, head_dim = query.shape
    keys = key.shape[-2]
    block = min(max(1, BLOCK_SCORES * torch.get_num_threads() // keys), tokens)
    scale = head_dim**-0.5
    # no score is larger than the product of the norms, by the inequality of Cauchy and Schwarz
    is_small = scale * largest_norms(query) * largest_norms(key) <= LARGE_SCORE
    attended = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
    if not is_small.all():
        # with all four dimensions, since it is not fused otherwise
        others = [x[~is_small].unsqueeze(dim=0) for x in (query, key, value)]
        attended[~is_small] = scaled_dot_product_attention(others[0], others[1], others[2]).squeeze(dim=0)

    ones = key.new_ones(keys, 1)
    buffers = query.new_empty(2, block, keys)  # used again by every block, which is quicker than new ones
    for row, head in is_small.nonzero().tolist():
        one_query, one_key, one_value = query[row, head], key[row, head].contiguous(), value[row, head].contiguous()
        for start in range(0, tokens, block):
            part = slice(start, start + block)
            scores, weights = buffers[:, : len(one_query[part])]
            torch.addmm(ones[:1], one_query[part], one_key.t(), beta=0, alpha=scale, out=scores)
            torch.softmax(scores, dim=-1, out=weights)
            rest = scores.addmm_(one_query[part], one_key.t(), beta=-1, alpha=scale)
            weights.addcmul_(weights, rest.addcmul_(rest, rest, value=0.5))
            # the weights sum up to nearly 1: what they exceed it by is small, and precise in bfloat16
            excess = torch.addmm(ones[:1], weights, ones, beta=-1).float()
            torch.div(weights @ one_value, 1 + excess, out=attended[row, head, part])
    return attended


def largest_norms(x: Float[Tensor, "rows heads tokens dim"]) -> Float[Tensor, "rows heads"]:
    """Give the norm of the longest vector of each head."""
    return x.square().sum(dim=-1).amax(dim=-1).float().sqrt()
