"""Measure how closely an inversion without guidance leads back to the picture, on held-out drawings.

    python -m scripts.evaluate_inversion --data FOLDER --json inversion.json

Each drawing is inverted, and denoised again by as many steps from where that ends. Its latents are compared with those
that come out: printed is the peak signal-to-noise ratio, the peak of which is the range of the latents. With
`--iterations`, each step of the inversion is refined. The same command goes on where an earlier run has stopped.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scripts.evaluate_pictures import choose
from scripts.mini_training.dataset import Drawings
from style_aligned import Style, load_model
from style_aligned.files import write_bytes
from style_aligned.models.mini.names import name_thing
from style_aligned.models.model import Model


def psnr(latents: Tensor, expected: Tensor) -> float:
    """Return the peak signal-to-noise ratio of some latents, in dB."""
    peak = expected.max() - expected.min()
    return float(10 * torch.log10(peak**2 / (latents - expected).square().mean()))


def measure(model: Model, picture: Image.Image, prompt: str, steps: int, iterations: int) -> float:
    """Invert a picture and walk back. Return the peak signal-to-noise ratio of its latents."""
    inverted = Style.from_image(
        model, picture, prompt, method="ddim", offset=0, inversion_scale=1, iterations=iterations,
        condition_scale=1, num_inference_steps=steps,
    )  # fmt: skip
    noise = inverted.latents[:1]
    again = Style.from_prompt(model, prompt, noise=noise, condition_scale=1, num_inference_steps=steps)
    return psnr(again.complete().latents[-1], inverted.latents[-1])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate_inversion", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the prepared drawings")
    parser.add_argument("--drawings", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True, help="file for the plain numbers")
    given = parser.parse_args(arguments)
    drawings, model = Drawings.load(given.data), load_model()
    results: dict[str, tuple[float, float]] = json.loads(given.json.read_text()) if given.json.exists() else {}
    for index, _ in choose(drawings, given.drawings, 1, given.seed):
        if str(index) in results:
            continue
        record = drawings.records[index]
        picture = Image.fromarray(np.array(drawings.images[index]))
        prompt = f"{name_thing(record['concept'])}, {record['style']}"
        found = (
            measure(model, picture, prompt, given.steps, 0),
            measure(model, picture, prompt, given.steps, given.iterations),
        )
        results[str(index)] = found
        write_bytes(given.json, json.dumps(results, indent=1).encode())
        print(f"{prompt}: {found[0]:.1f} dB, refined {found[1]:.1f} dB", file=sys.stderr, flush=True)
    for position, name in enumerate(("without iterations", f"with {given.iterations} iterations")):
        values = sorted(found[position] for found in results.values())
        print(f"{name}: {values[0]:.1f} to {values[-1]:.1f} dB, {np.median(values):.1f} dB in the middle")
    print(f"more with iterations on {sum(a < b for a, b in results.values())} of {len(results)}")


if __name__ == "__main__":
    main()
