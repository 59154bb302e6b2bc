"""How alike the images of a set are in colour."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

DIRECTIONS = 24
LEVELS = 256
WHITE = (0.95047, 1.0, 1.08883)  # D65

Floats = NDArray[np.float32]


def to_lab(image: Image.Image) -> Float[Floats, "pixels 3"]:
    """Give the colours of an image's pixels in CIELAB.

    Args:
        image: An image with sRGB colours, of any mode. Transparency is dropped.

    Returns:
        Lightness from 0 to 100, a and b, for white at D65.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    xyz: Floats = np.reshape(_linear_values()[pixels], (-1, 3)) @ _to_relative_xyz()
    f: Floats = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * np.float32((29 / 6) ** 2 / 3) + np.float32(4 / 29))
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


def palette(image: Image.Image) -> Float[Floats, "directions levels"]:
    """Summarize the colours of an image: quantiles of its pixels' colours along fixed directions of CIELAB.

    Args:
        image: The image.

    Returns:
        For each of 24 directions, spread evenly over half of a sphere, 256 quantiles.
    """
    lab: Floats = to_lab(image)
    if len(lab) == 0:
        raise ValueError(f"expected an image with pixels, got one of size {image.size[0]}x{image.size[1]}")
    projections: Floats = np.sort(_directions() @ np.transpose(lab), axis=-1)
    ranks = ((np.arange(LEVELS) + 0.5) / LEVELS * len(lab)).astype(np.int64)
    return projections[:, ranks]


def palette_distance(image_a: Image.Image, image_b: Image.Image) -> float:
    """Tell how far apart the colours of two images are, wherever in the images they stand.

    It is the sliced 1-Wasserstein distance between the distributions of the pixels' colours in CIELAB: along each of
    24 fixed directions, the mean absolute difference between the quantiles (256 of them) of the two images, which is
    what it takes on average to turn the colours of one into those of the other; then the mean over the directions,
    times two, so that two plain images are as far apart as their colours are in CIELAB (to within 4%). See
    [[arXiv:1902.00434] Generalized Sliced Wasserstein Distances](https://arxiv.org/abs/1902.00434). No network is
    involved, and neither shape nor texture.

    Args:
        image_a: An image.
        image_b: Another one. It may have another size.

    Returns:
        The distance in units of CIELAB, where 2.3 is just noticeable and black and white are 100 apart. It is 0 for
        equal images, symmetric, and the same wherever pixels are moved.
    """
    return float(palette_distances([palette(image_a), palette(image_b)])[0, 1])


def set_palette_distance(images: Sequence[Image.Image]) -> float:
    """Give the mean palette distance over all pairs of images of a set.

    Args:
        images: The images, at least two.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"expected a set of at least two images, got {len(images)}")
    distances = palette_distances([palette(image) for image in images])
    return float(distances.sum() / (len(images) * (len(images) - 1)))


def palette_distances(palettes: Sequence[Floats]) -> Float[NDArray[np.float64], "images images"]:
    """Give the distances between all palettes of a set.

    Args:
        palettes: What [`palette`][style_aligned.evaluation.palette.palette] says of each image.
    """
    rows = np.reshape(np.stack(palettes), (len(palettes), -1))
    distances = np.zeros((len(rows), len(rows)))
    for index, row in enumerate(rows):
        distances[index] = 2 * np.abs(rows - row).mean(axis=-1, dtype=np.float64)
    return distances


@cache
def _linear_values() -> Floats:
    """The intensity that each of the 256 values of sRGB stands for."""
    value = np.arange(256) / 255
    return np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92).astype(np.float32)


@cache
def _to_relative_xyz() -> Floats:
    """From linear sRGB (rows) to CIE XYZ in units of the white point (columns)."""
    matrix: NDArray[np.float64] = np.array(
        (
            (0.4124564, 0.3575761, 0.1804375),
            (0.2126729, 0.7151522, 0.0721750),
            (0.0193339, 0.1191920, 0.9503041),
        )
    )
    return np.transpose(matrix / np.array(WHITE)[:, None]).astype(np.float32)


@cache
def _directions() -> Floats:
    """Unit vectors on a spiral over half of a sphere; the other half would say the same again."""
    height = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
    angle = np.arange(DIRECTIONS) * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - height**2)
    return np.stack((radius * np.cos(angle), radius * np.sin(angle), height), axis=-1).astype(np.float32)
