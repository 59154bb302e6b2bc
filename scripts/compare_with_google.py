"""Measure how far this package and Refiners' built-in adapter are from the outputs of Google's own code.

    python -m scripts.compare_with_google

The inputs, weights and outputs are those of tests/golden: a self-attention of a set of 3 with guidance, in float32.
"""

import json
from pathlib import Path

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.style_aligned import StyleAlignedAdapter as RefinersStyleAlignedAdapter
from torch import Tensor

from scripts.mini_training.checkpoints import load_tensors
from style_aligned import StyleAlignedAdapter

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "google_attention.safetensors"


@torch.no_grad()
def main() -> None:
    tensors, metadata = load_tensors(GOLDEN)
    attention = fl.SelfAttention(embedding_dim=64, num_heads=4, use_bias=False)
    for linear, name in zip(attention.layers(fl.Linear), ("q", "k", "v", "out"), strict=True):
        linear.weight.copy_(tensors[f"{name}.weight"])
    attention.layer(-1, fl.Linear).bias.copy_(tensors["out.bias"])
    chain = fl.Chain(attention)

    print("| options | this package | built-in adapter |\n|---|---|---|")
    for case, google_options in json.loads(metadata["cases"]).items():
        options = {name.removeprefix("shared_score_"): option for name, option in google_options.items()}
        expected = tensors[f"y.{case}"]

        def error(expected: Tensor = expected) -> str:
            wrong: Tensor = chain(tensors["x"]) - expected
            return f"{float((wrong.square().sum() / expected.square().sum()).sqrt()):.1e}"

        with StyleAlignedAdapter(chain, set_size=3, **options):
            ours = error()
        builtin = "no such option"
        if set(options) <= {"scale"}:
            adapter = RefinersStyleAlignedAdapter(chain, **options).inject()  # pyright: ignore
            builtin = error()
            adapter.eject()
        given = ", ".join(f"`{name}={option:.4g}`" for name, option in options.items()) or "defaults"
        print(f"| {given} | {ours} | {builtin} |")


if __name__ == "__main__":
    main()
