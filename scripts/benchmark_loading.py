"""Measure loading, ours against Refiners' own way: time and peak memory, each in a process of its own.

    python scripts/benchmark_loading.py [--architecture xl] [--repeat 3]

Random bfloat16 weights are written to a temporary folder first (6.9 GB for Stable Diffusion XL). Refiners' own way
peaks at twice that.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL

from style_aligned.models.checkpoints import load_model
from style_aligned.models.checkpoints.architectures import STABLE_DIFFUSION_1, STABLE_DIFFUSION_XL
from style_aligned.models.checkpoints.files import write_safetensors

PARTS = ("unet", "lda", "clip_text_encoder")
CLASSES = {"xl": StableDiffusion_XL, "1": StableDiffusion_1}
ARCHITECTURES = {"xl": STABLE_DIFFUSION_XL, "1": STABLE_DIFFUSION_1}


def write_random_model(architecture: str, folder: Path) -> None:
    model = ARCHITECTURES[architecture].build()
    noise = torch.randn(1 << 27).mul_(0.02).bfloat16()
    for part in PARTS:
        shapes = {key: tuple(weight.shape) for key, weight in getattr(model, part).state_dict().items()}
        write_safetensors(
            folder / f"{part}.safetensors",
            entries=[(key, torch.bfloat16, shape) for key, shape in shapes.items()],
            tensor=lambda key, shapes=shapes: noise[: torch.Size(shapes[key]).numel()].reshape(shapes[key]),
            metadata={},
        )


def measure(method: str, architecture: str, folder: Path) -> dict[str, float]:
    """Load a model, then read every page of it, as the first picture will."""
    start = time.perf_counter()
    if method == "style-aligned":
        model = load_model(folder, dtype=torch.bfloat16)
    else:
        model = CLASSES[architecture](dtype=torch.bfloat16)
        for part in PARTS:
            getattr(model, part).load_from_safetensors(folder / f"{part}.safetensors")
    loaded = time.perf_counter()
    for weight in model.parameters():
        weight.detach().flatten()[::2048].sum()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "load": loaded - start,
        "read": time.perf_counter() - loaded,
        "peak": peak,
        "size": sum(weight.nbytes for weight in model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=["xl", "1"], default="xl")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        method, folder = arguments.measure
        print(json.dumps(measure(method, arguments.architecture, Path(folder))))
        return

    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(arguments.architecture, Path(folder))
        for method in ("style-aligned", "refiners"):
            command = [sys.executable, __file__, "--architecture", arguments.architecture, "--measure", method, folder]
            runs: list[dict[str, float]] = [
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                for _ in range(arguments.repeat)
            ]
            results[method] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{ARCHITECTURES[arguments.architecture].name}, bfloat16, medians of {arguments.repeat}\n")
    print("| | load | then read every weight | peak memory | of the model's size |")
    print("|---|---|---|---|---|")
    for method, result in results.items():
        print(
            f"| {method} | {result['load']:.2f} s | {result['read']:.2f} s | {result['peak'] / 1e9:.1f} GB "
            f"| {result['peak'] / result['size']:.2f} |"
        )
    print(f"\n{results['refiners']['load'] / results['style-aligned']['load']:.0f} times faster")


if __name__ == "__main__":
    main()
