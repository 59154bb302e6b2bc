"""Compare weights of the embedded model with one another, on the same prompts and the same noise.

    python -m scripts.compare_weights --data DATA PACKAGE OTHER ...

For drawings that no weights were trained on, each draws what their captions say. The page that is printed tells for
each how often the classifier finds the concept and the style, and how far the pictures are from the drawings: the
Fréchet distance between the classifier's last features, over all and for each style by itself. With so few drawings
the distance is above zero even between drawings and drawings: it is for comparison only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from refiners.fluxion.utils import images_to_tensor, no_grad
from torch import Tensor

from scripts.mini_data.captions import canonical
from scripts.mini_training.dataset import Drawings
from style_aligned.evaluation.classifier import Classifier, load_classifier
from style_aligned.models.denoising import predict_noise
from style_aligned.models.family import MINI
from style_aligned.models.mini import Mini, load_mini
from style_aligned.models.solvers import make_solver, sample_noise
from style_aligned.models.text import embed, stack


@dataclass(frozen=True)
class Comparison:
    """What is said of some weights.

    Attributes:
        name: The folder of the weights.
        style: The fraction of pictures in whose style the classifier agrees.
        concept: The fraction of pictures whose concept is its first guess.
        distance: The Fréchet distance to the held-out drawings.
        concepts: The fraction of concepts for each style.
        distances: The Fréchet distance for each style.
    """

    name: str
    style: float
    concept: float
    distance: float
    concepts: dict[str, float]
    distances: dict[str, float]


def square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return np.einsum("ik,k,jk->ij", vectors, np.sqrt(np.maximum(values, 0)), vectors)


def covariance(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """The covariance of features of shape (count, channels)."""
    centred = sample - sample.mean(axis=0)
    return np.einsum("ni,nj->ij", centred, centred) / (len(sample) - 1)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance between two samples, as if each were drawn from a normal distribution.

    See [[arXiv:1706.08500] GANs Trained by a Two Time-Scale Update Rule](https://arxiv.org/abs/1706.08500).

    Args:
        first: Features of shape (count, channels), with a count of at least 2.
        second: Features of shape (other count, channels), with a count of at least 2.

    Raises:
        ValueError: If the shapes are others.
    """
    shapes = tuple(first.shape), tuple(second.shape)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(f"expected two samples of at least 2 with as many channels, got {shapes[0]} and {shapes[1]}")
    one, other = (np.asarray(sample.cpu(), dtype=np.float64) for sample in (first, second))
    means = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    one, other = (covariance(sample) for sample in (one, other))
    root = square_root(one)
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    return max(0.0, float(means + np.trace(one) + np.trace(other) - 2 * common))


@no_grad()
def features(classifier: Classifier, images: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
    """The classifier's features before its two heads, of shape (images, channels)."""
    body = list(classifier)[:-1]
    results: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        x = images_to_tensor(list(images[start : start + batch_size]), device=classifier.device)
        for layer in body:
            x = layer(x)
        results.append(x)
    return torch.cat(results)


@no_grad()
def draw(
    model: Mini, prompts: Sequence[str], *, seed: int, steps: int, guidance: float, batch_size: int, autocast: bool
) -> list[Image.Image]:
    """Draw a picture for each prompt, the noise of each by its place."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        solver = make_solver(model, steps)
        size = (256, 256)
        text = stack([embed(model, prompt) for prompt in batch])
        x = torch.cat([sample_noise(model, seed + start + i, size) for i in range(len(batch))])
        x = solver.scale_model_input(x, step=-1)
        generator = torch.Generator(device=model.device).manual_seed(seed)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            for step in solver.inference_steps:
                noise = predict_noise(model, solver, x, step, text=text, condition_scale=guidance)
                x = solver(x, predicted_noise=noise.to(x.dtype), step=step, generator=generator)
            images += [model.lda.latents_to_image(x[i : i + 1]) for i in range(len(x))]
        print(f"{len(images)}/{len(prompts)}", end="\r", file=sys.stderr, flush=True)
    return images


def compare(
    name: str,
    images: Sequence[Image.Image],
    drawings: Tensor,
    records: Sequence[dict[str, str]],
    classifier: Classifier,
) -> Comparison:
    """Say how well pictures show what they should, and how near they are to drawings of the same.

    Args:
        name: What the pictures are called.
        images: The pictures.
        drawings: The features of the drawings, in the same order.
        records: What each shows: "concept" and "style".
        classifier: The classifier.
    """
    said = classifier.classify(images)
    concepts = np.array([a == record["concept"] for a, record in zip(said.concept_names, records, strict=True)])
    styles = np.array([a == record["style"] for a, record in zip(said.style_names, records, strict=True)])
    of_style = {s: np.array([record["style"] == s for record in records]) for s in classifier.styles}
    drawn = features(classifier, images)
    return Comparison(
        name=name,
        style=float(styles.mean()),
        concept=float(concepts.mean()),
        distance=frechet_distance(drawn, drawings),
        concepts={style: float(concepts[chosen].mean()) for style, chosen in of_style.items()},
        distances={style: frechet_distance(drawn[chosen], drawings[chosen]) for style, chosen in of_style.items()},
    )


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Write the results as tables."""
    styles = list(comparisons[0].distances)
    lines = [
        "| weights | style | concept | Fréchet distance |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.style:.1%} | {c.concept:.1%} | {c.distance:.2f} |" for c in comparisons),
        "",
        f"| Fréchet distance | {' | '.join(styles)} |",
        "|---" * (len(styles) + 1) + "|",
        *(f"| {c.name} | {' | '.join(f'{c.distances[s]:.2f}' for s in styles)} |" for c in comparisons),
        "",
        f"| concept | {' | '.join(styles)} |",
        "|---" * (len(styles) + 1) + "|",
        *(f"| {c.name} | {' | '.join(f'{c.concepts[s]:.0%}' for s in styles)} |" for c in comparisons),
    ]
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.compare_weights", description=__doc__)
    parser.add_argument("weights", type=Path, nargs="+", metavar="FOLDER", help="folders of weights")
    parser.add_argument("--data", type=Path, required=True, help="the prepared drawings")
    parser.add_argument("--count", type=int, help="how many of the held-out drawings (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=MINI.condition_scale)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="quicker on processors that have it")
    parser.add_argument("--json", type=Path, help="file for the plain numbers (default: none)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    drawings, classifier = Drawings.load(options.data), load_classifier(device=options.device)
    held_out = drawings.held_out()
    order = np.random.default_rng(options.seed).permutation(len(held_out))
    chosen = [held_out[int(i)] for i in order[: options.count]]
    records = [drawings.records[i] for i in chosen]
    originals = [Image.fromarray(drawings.images[i]) for i in chosen]
    real = features(classifier, originals)
    prompts = [canonical(record) for record in records]
    comparisons: list[Comparison] = []
    for folder in options.weights:
        images = draw(
            load_mini(options.device, folder=folder), prompts, seed=options.seed, steps=options.steps,
            guidance=options.guidance, batch_size=options.batch_size, autocast=options.bfloat16,
        )  # fmt: skip
        comparisons.append(compare(str(folder), images, real, records, classifier))
    comparisons.append(compare("the drawings themselves", originals, real, records, classifier))
    print(to_markdown(comparisons))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(c) for c in comparisons], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
