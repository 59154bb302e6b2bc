"""Measure attention in blocks against PyTorch's fused attention, at the sizes of SDXL's shared self-attentions.

    python scripts/benchmark_attention.py [--rounds 9] [--scores 2.0]

Each size is that of one target: its queries, and as many keys of its own and of its reference's, in bfloat16 and on the
CPU. Printed are the medians over rounds of both, of their ratio in the same round, and their relative errors against
float64. Attention in blocks is taken only on CPUs on which it is quicker; here it is measured on any.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from style_aligned.adapter.blockwise import attend_in_blocks, has_bfloat16_products

HEAD_DIM = 64
SIZES = {64: ((1024, 10),), 96: ((2304, 10), (576, 20)), 128: ((4096, 10), (1024, 20))}
"""For height and width of the latents: tokens and heads of the self-attentions that have many tokens."""


def draw(tokens: int, heads: int, deviation: float) -> Tensor:
    """Features of some tokens, as self-attentions split them: views of (1, tokens, heads * HEAD_DIM)."""
    features = deviation * torch.randn(1, tokens, heads * HEAD_DIM)
    return features.bfloat16().reshape(1, tokens, heads, HEAD_DIM).transpose(1, 2)


def error(attended: Tensor, exact: Tensor) -> float:
    """The relative error, as a root mean square."""
    return float(((attended.double() - exact).square().mean() / exact.square().mean()).sqrt())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure attention in blocks against PyTorch's fused attention.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scores", type=float, default=2.0, help="standard deviation of the scores")
    options = parser.parse_args()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    taken = "taken" if has_bfloat16_products() else "not taken"
    print(f"scores of deviation {options.scores:g}, torch {torch.__version__}, blocks are {taken} on this CPU")
    print("| latents | tokens, keys, heads | fused ms | blocks ms | ratio | fused error | blocks error |")
    print("|---|---|---|---|---|---|---|")
    for latents, sizes in SIZES.items():
        for tokens, heads in sizes:
            deviation = options.scores**0.5  # of queries and keys; a score is their product, over the root of HEAD_DIM
            query, key = draw(tokens, heads, deviation), draw(2 * tokens, heads, deviation)
            value = draw(2 * tokens, heads, 1.0)
            exact = scaled_dot_product_attention(query.double(), key.double(), value.double())
            contestants = {"fused": scaled_dot_product_attention, "blocks": attend_in_blocks}
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            errors: dict[str, float] = {}
            for number in range(-1, options.rounds):  # the first one warms up
                for name, attend in contestants.items():
                    start = time.perf_counter()
                    attended = attend(query, key, value)
                    if number >= 0:
                        seconds[name].append(time.perf_counter() - start)
                    else:
                        errors[name] = error(attended, exact)
            ratios = [ours / fused for fused, ours in zip(seconds["fused"], seconds["blocks"], strict=True)]
            fused, blocks = (f"{1000 * statistics.median(seconds[name]):.1f}" for name in contestants)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(
                f"| {latents}x{latents} | {tokens}, {2 * tokens}, {heads} | {fused} | {blocks} | {ratio} |"
                f" {errors['fused']:.4f} | {errors['blocks']:.4f} |"
            )


if __name__ == "__main__":
    main()
