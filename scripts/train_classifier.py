"""Train the classifier on real drawings, test it on those held out, and write its weights.

    python -m scripts.mini_data.prepare --output DATA
    python -m scripts.train_classifier --data DATA

Generated images are softer than drawings. Some of the drawings are therefore also shown as the embedded model's
autoencoder gives them back, and all of them are blurred, moved, mirrored and tinted at times, so that the classifier
looks at shape and manner. It is never trained on a generated image. Ten minutes on one core.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.utils import load_from_safetensors, no_grad, save_to_safetensors
from torch import Generator, Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample, interpolate

from scripts.mini_training.precision import low_precision
from style_aligned.evaluation.classifier import WEIGHTS, Classifier
from style_aligned.models.mini import MiniAutoencoder
from style_aligned.models.mini.model import DIGEST, digest

AUTOENCODER = WEIGHTS.with_name("autoencoder.safetensors")
SIZE = 64


class BatchNorm2d(nn.BatchNorm2d, fl.WeightedModule):
    """Batch normalization, which makes training quick. It is folded into the convolution before it in the end."""

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        super().__init__(num_features=channels, device=device)  # pyright: ignore[reportUnknownMemberType]


class NormalizedConv2d(fl.Chain):
    """A convolution and its batch normalization, in the place of the convolution while it is trained."""

    def __init__(self, convolution: fl.Conv2d) -> None:
        super().__init__(convolution, BatchNorm2d(convolution.out_channels, device=convolution.device))

    @no_grad()
    def fold(self) -> fl.Conv2d:
        """Give one convolution that does what both do."""
        convolution, norm = self.layer(0, fl.Conv2d), self.layer(1, BatchNorm2d)
        assert convolution.bias is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        convolution.weight.mul_(factor[:, None, None, None])
        convolution.bias.copy_((convolution.bias - norm.running_mean) * factor + norm.bias)
        return convolution


def normalize(classifier: Classifier) -> None:
    """Put a batch normalization after each convolution."""
    for convolution, parent in list(classifier.walk(fl.Conv2d)):
        parent.replace(convolution, NormalizedConv2d(convolution), old_module_parent=None)


def fold(classifier: Classifier) -> None:
    """Take the batch normalizations out again, without changing what the classifier says."""
    for normalized, parent in list(classifier.walk(NormalizedConv2d)):
        folded = normalized.fold()
        parent.replace(normalized, folded, old_module_parent=None)


@dataclass
class Drawings:
    """Drawings at the classifier's size, and what they show.

    Attributes:
        pictures: uint8, of shape (count, 3, 64, 64).
        styles: The number of each one's style.
        concepts: The number of each one's concept.
    """

    pictures: Tensor
    styles: Tensor
    concepts: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Tensor) -> "Drawings":
        return Drawings(self.pictures[indices], self.styles[indices], self.concepts[indices])

    def __add__(self, other: "Drawings") -> "Drawings":
        return Drawings(
            pictures=torch.cat((self.pictures, other.pictures)),
            styles=torch.cat((self.styles, other.styles)),
            concepts=torch.cat((self.concepts, other.concepts)),
        )


def load_autoencoder(path: Path, device: str) -> MiniAutoencoder:
    """Load the embedded model's autoencoder alone."""
    autoencoder = MiniAutoencoder(device=device)
    weights = load_from_safetensors(path, device=device)
    autoencoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return autoencoder


def shrink(pictures: Tensor) -> Tensor:
    """Bring float pictures in [0, 1] to the classifier's size, as uint8."""
    return (interpolate(pictures, size=(SIZE, SIZE), mode="area") * 255).round().clamp(0, 255).to(torch.uint8).cpu()


@no_grad()
def load_drawings(
    images: np.ndarray[Any, np.dtype[np.uint8]],
    index: dict[str, Any],
    indices: list[int],
    device: str,
    autoencoder: MiniAutoencoder | None = None,
    batch_size: int = 32,
) -> Drawings:
    """Load drawings, as they are or as an autoencoder gives them back."""
    pictures: list[Tensor] = []
    for start in range(0, len(indices), batch_size):
        batch = np.stack([images[i] for i in indices[start : start + batch_size]])
        x = torch.tensor(batch, device=device).permute(0, 3, 1, 2).float() / 255
        if autoencoder is not None:
            with low_precision(device):
                x = autoencoder.decode(autoencoder.encode(2 * x - 1)).float() / 2 + 0.5
        pictures.append(shrink(x.clamp(0, 1)))
    records = [index["records"][i] for i in indices]
    return Drawings(
        pictures=torch.cat(pictures),
        styles=torch.tensor([index["styles"].index(record["style"]) for record in records]),
        concepts=torch.tensor([index["concepts"].index(record["concept"]) for record in records]),
    )


def augment(x: Tensor, generator: Generator) -> Tensor:
    """Mirror, move, tint, blur and roughen pictures with values in [0, 1], each in its own way."""

    def uniform(*size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*size, generator=generator, device=x.device)

    count = len(x)
    x = torch.where(uniform(count, 1, 1, 1) < 0.5, x.flip(-1), x)

    scale, angle = uniform(count, low=0.85, high=1.2), uniform(count, low=-0.15, high=0.15)
    matrix = torch.zeros(count, 2, 3, device=x.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -scale * angle.sin(), scale * angle.sin()
    matrix[:, :, 2] = uniform(count, 2, low=-0.15, high=0.15)
    grid = affine_grid(matrix, list(x.shape), align_corners=False)
    moved = grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = torch.where(uniform(count, 1, 1, 1) < 0.7, moved, x)

    gain, offset = uniform(count, 3, 1, 1, low=0.85, high=1.15), uniform(count, 3, 1, 1, low=-0.06, high=0.06)
    x = (x - 0.5) * gain + 0.5 + offset
    blurred = avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    x = torch.lerp(x, blurred, (uniform(count, 1, 1, 1, low=-1.0)).clamp_min(0.0))
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + noise * uniform(count, 1, 1, 1, low=-0.04, high=0.04).clamp_min(0.0)).clamp(0, 1)


@no_grad()
def accuracy(classifier: Classifier, drawings: Drawings, device: str) -> tuple[float, float]:
    """The fraction of drawings whose style, and whose concept, is the classifier's first guess."""
    right = torch.zeros(2)
    for start in range(0, len(drawings), 256):
        batch = drawings[torch.arange(start, min(start + 256, len(drawings)))]
        styles, concepts = classifier(batch.pictures.to(device).float() / 255)
        right[0] += (styles.argmax(dim=-1).cpu() == batch.styles).sum()
        right[1] += (concepts.argmax(dim=-1).cpu() == batch.concepts).sum()
    return right[0].item() / len(drawings), right[1].item() / len(drawings)


def train(
    classifier: Classifier, drawings: Drawings, tests: dict[str, Drawings], *, epochs: float, batch_size: int, seed: int
) -> None:
    """Train the classifier on so many times the number of drawings, and test it on others every now and then."""
    device = str(classifier.device)
    generator = Generator(device).manual_seed(seed)
    order = Generator().manual_seed(seed)
    normalize(classifier)
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    steps = round(epochs * len(drawings) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=0.2)
    start = time.process_time()
    for step in range(1, steps + 1):
        batch = drawings[torch.randint(len(drawings), (batch_size,), generator=order)]
        x = augment(batch.pictures.to(device).float() / 255, generator).to(memory_format=torch.channels_last)
        with low_precision(device):
            styles, concepts = classifier(x)
        loss = cross_entropy(styles.float(), batch.styles.to(device), label_smoothing=0.05)
        loss = loss + cross_entropy(concepts.float(), batch.concepts.to(device), label_smoothing=0.05)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 0 or step == steps:
            classifier.eval()
            scores = "  ".join(
                "{}: style {:.1%} concept {:.1%}".format(name, *accuracy(classifier, test, device))
                for name, test in tests.items()
            )
            classifier.train()
            print(
                f"step {step}/{steps}, {time.process_time() - start:.0f} s: loss {loss.item():.3f}  {scores}",
                flush=True,
            )
    classifier.eval()
    fold(classifier)


def save(classifier: Classifier, path: Path, results: dict[str, Any]) -> None:
    """Write the classifier in float16, all of it or nothing."""
    metadata = {
        "styles": classifier.styles,
        "concepts": classifier.concepts,
        "channels": classifier.channels,
        "size": classifier.size,
        "accuracy": results,
    }
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in classifier.state_dict().items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_to_safetensors(part, tensors=tensors, metadata={"format": "pt", **texts, DIGEST: digest(tensors)})
    part.chmod(0o644)  # safetensors keeps it for its owner, but who installs the package is to read it
    part.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.train_classifier", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images.npy and index.json")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the weights to write (default: the package's)")
    parser.add_argument("--autoencoder", type=Path, default=AUTOENCODER, help="its weights (default: the package's)")
    parser.add_argument("--reconstructed", type=float, default=0.4, help="fraction of drawings also given back by it")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)  # pyright: ignore[reportUnknownMemberType]
    device: str = options.device
    index = json.loads((options.data / "index.json").read_text(encoding="utf-8"))
    images = np.load(options.data / "images.npy", mmap_mode="r", allow_pickle=False)
    splits: dict[str, list[int]] = {}
    for i, record in enumerate(index["records"]):
        splits.setdefault(record["split"], []).append(i)

    training = splits.pop("train")
    drawings = load_drawings(images, index, training, device)
    tests = {name: load_drawings(images, index, indices, device) for name, indices in splits.items()}
    if options.reconstructed > 0:
        autoencoder = load_autoencoder(options.autoencoder, device)
        held_out = [i for indices in splits.values() for i in indices]
        tests["reconstructed"] = load_drawings(images, index, held_out, device, autoencoder)
        chosen = np.random.default_rng(options.seed).permutation(training)[
            : round(options.reconstructed * len(training))
        ]
        drawings += load_drawings(images, index, sorted(chosen.tolist()), device, autoencoder)
    print(f"{len(drawings)} pictures to train on", flush=True)

    classifier = Classifier(styles=index["styles"], concepts=index["concepts"], size=SIZE, device=device)
    train(classifier, drawings, tests, epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)

    classifier = classifier.half().float()  # as it is written
    tests["held_out"] = tests["held_out_cell"] + tests["held_out_foundry"]
    results: dict[str, Any] = {}
    for name, test in tests.items():
        style, concept = accuracy(classifier, test, device)
        results[name] = {"drawings": len(test), "style": style, "concept": concept}
        print(f"{name}: {len(test)} drawings, style {style:.2%}, concept {concept:.2%}")
    save(classifier, options.output, results)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
