"""A classifier of drawings: a small network that tells in which style and of what a picture is.

It was trained by `scripts/train_classifier.py` on the drawings that the embedded model was trained on, and never saw a
generated image.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from refiners.fluxion import layers as fl
from refiners.fluxion.utils import images_to_tensor, no_grad
from torch import Tensor, device as Device, dtype as DType
from torch.nn.functional import interpolate

from style_aligned.models.mini.model import read_weights

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"


class Shrink(fl.Module):
    """Bring pictures to one size, each pixel the mean of those it stands for, and their values to [-1, 1].

    Receives:
        (Float[Tensor, "batch 3 height width"]): with values in [0, 1].

    Returns:
        (Float[Tensor, "batch 3 size size"]):
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 _ _"]:
        if x.shape[-2:] != (self.size, self.size):
            x = interpolate(x, size=(self.size, self.size), mode="area")
        return 2 * x - 1


class GlobalMean(fl.Module):
    """Take the mean over all positions.

    Receives:
        (Float[Tensor, "batch channels height width"]):

    Returns:
        (Float[Tensor, "batch channels"]):
    """

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
        return x.mean(dim=(-2, -1))


class ResidualBlock(fl.Chain):
    """Two convolutions, whose result is added to what they receive.

    Receives:
        (Float[Tensor, "batch channels height width"]):

    Returns:
        (Float[Tensor, "batch channels height width"]):
    """

    def __init__(self, channels: int, device: Device | str | None = None, dtype: DType | None = None) -> None:
        self.channels = channels
        super().__init__(
            fl.Residual(
                fl.Conv2d(channels, channels, kernel_size=3, padding=1, device=device, dtype=dtype),
                fl.ReLU(),
                fl.Conv2d(channels, channels, kernel_size=3, padding=1, device=device, dtype=dtype),
            ),
            fl.ReLU(),
        )


@dataclass(frozen=True)
class Classification:
    """What the classifier says of some images.

    Attributes:
        styles: For each image the probability of each of the classifier's styles, of shape (images, styles).
        concepts: For each image the probability of each of the classifier's concepts, of shape (images, concepts).
        style_names: For each image the name of the likeliest style.
        concept_names: For each image the name of the likeliest concept.
    """

    styles: Tensor
    concepts: Tensor
    style_names: list[str]
    concept_names: list[str]


class Classifier(fl.Chain):
    """A small residual network over 64x64 pixels, with a head for the style and one for the concept.

    Receives:
        (Float[Tensor, "batch 3 height width"]): with values in [0, 1].

    Returns:
        style_logits (Float[Tensor, "batch styles"]):
        concept_logits (Float[Tensor, "batch concepts"]):
    """

    def __init__(
        self,
        styles: Sequence[str],
        concepts: Sequence[str],
        channels: tuple[int, int, int] = (32, 64, 128),
        size: int = 64,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Initialize the Classifier.

        Args:
            styles: The names of the styles that it tells apart.
            concepts: The names of the concepts that it tells apart.
            channels: The number of channels at a half, a fourth and an eighth of `size`.
            size: The side in pixels to which pictures are brought first.
            device: The PyTorch device to use.
            dtype: The PyTorch data type to use.
        """
        self.styles = tuple(styles)
        self.concepts = tuple(concepts)
        self.channels = channels
        self.size = size
        half, fourth, eighth = channels
        super().__init__(
            Shrink(size=size),
            fl.Conv2d(3, half, kernel_size=5, stride=2, padding=2, device=device, dtype=dtype),
            fl.ReLU(),
            # (batch, half, size / 2, size / 2)
            ResidualBlock(half, device=device, dtype=dtype),
            fl.Conv2d(half, fourth, kernel_size=3, stride=2, padding=1, device=device, dtype=dtype),
            fl.ReLU(),
            # (batch, fourth, size / 4, size / 4)
            ResidualBlock(fourth, device=device, dtype=dtype),
            fl.Conv2d(fourth, eighth, kernel_size=3, stride=2, padding=1, device=device, dtype=dtype),
            fl.ReLU(),
            # (batch, eighth, size / 8, size / 8)
            ResidualBlock(eighth, device=device, dtype=dtype),
            GlobalMean(),
            fl.Parallel(
                fl.Linear(eighth, len(self.styles), device=device, dtype=dtype),
                fl.Linear(eighth, len(self.concepts), device=device, dtype=dtype),
            ),
        )

    @no_grad()
    def classify(self, images: Sequence[Image.Image], batch_size: int = 64) -> Classification:
        """Tell the style and the concept of images.

        Args:
            images: The images, of any mode and of any size, which need not be the same.
            batch_size: How many to look at at once.

        Returns:
            The probabilities and the likeliest names.
        """
        styles = [torch.empty(0, len(self.styles))]
        concepts = [torch.empty(0, len(self.concepts))]
        for start in range(0, len(images), batch_size):
            pictures = [
                interpolate(images_to_tensor([image.convert("RGB")]), size=(self.size, self.size), mode="area")
                for image in images[start : start + batch_size]
            ]
            style_logits, concept_logits = self(torch.cat(pictures).to(device=self.device, dtype=self.dtype))
            styles.append(style_logits.float().softmax(dim=-1).cpu())
            concepts.append(concept_logits.float().softmax(dim=-1).cpu())
        style_probabilities, concept_probabilities = torch.cat(styles), torch.cat(concepts)
        return Classification(
            styles=style_probabilities,
            concepts=concept_probabilities,
            style_names=[self.styles[int(index)] for index in style_probabilities.argmax(dim=-1)],
            concept_names=[self.concepts[int(index)] for index in concept_probabilities.argmax(dim=-1)],
        )


KEYS = ("styles", "concepts", "channels", "size", "accuracy")
"""What the metadata of a classifier's file say of it, as JSON."""


def read_classifier_file(path: Path | str = WEIGHTS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a classifier's weights, and what is said of them.

    Args:
        path: The safetensors file.

    Returns:
        The weights by name, and "styles", "concepts" (their names), "channels", "size" and "accuracy" (on drawings
        that it was not trained on).

    Raises:
        ValueError: If the file is missing, damaged, or no classifier's.
    """
    weights, metadata = read_weights(path)
    if missing := [key for key in KEYS if key not in metadata]:
        raise ValueError(f"{path} is no classifier's file: it does not say its {', '.join(missing)}")
    return weights, {key: json.loads(metadata[key]) for key in KEYS}


def load_classifier(
    path: Path | str = WEIGHTS, device: Device | str = "cpu", dtype: DType = torch.float32
) -> Classifier:
    """Load the classifier.

    Args:
        path: Its safetensors file. By default the classifier of the embedded model's styles and concepts.
        device: The PyTorch device to use.
        dtype: The PyTorch data type to use.

    Returns:
        The classifier.

    Raises:
        ValueError: If the file is missing, damaged, or no classifier's.
    """
    weights, metadata = read_classifier_file(path)
    classifier = Classifier(
        styles=metadata["styles"],
        concepts=metadata["concepts"],
        channels=tuple(metadata["channels"]),
        size=metadata["size"],
        device="meta",
    )
    try:
        classifier.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold a classifier's weights: {error}") from error
    return classifier.to(device=device, dtype=dtype)
