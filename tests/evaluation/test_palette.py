from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from style_aligned.evaluation.palette import (
    palette,
    palette_distance,
    set_palette_distance,
    to_lab,
)


def noise(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def plain(color: str | tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, color)


def half_and_half(first: str, second: str, share: float) -> Image.Image:
    image = plain(first, (20, 20))
    image.paste(plain(second, (20, round(20 * share))))
    return image


@pytest.mark.parametrize(
    ("color", "expected"),
    [  # as published for sRGB at D65
        ("#ffffff", (100.0, 0.0, 0.0)),
        ("#000000", (0.0, 0.0, 0.0)),
        ("#ff0000", (53.24, 80.09, 67.20)),
        ("#00ff00", (87.73, -86.18, 83.18)),
        ("#0000ff", (32.30, 79.19, -107.86)),
        ("#777777", (50.03, 0.0, 0.0)),
    ],
)
def test_lab_is_the_published_one(color: str, expected: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(to_lab(plain(color))[0], expected, atol=0.03)


def test_equal_images_are_at_distance_zero() -> None:
    assert palette_distance(noise(0), noise(0)) == 0


def test_distance_is_symmetric() -> None:
    assert palette_distance(noise(0), plain("teal")) == palette_distance(plain("teal"), noise(0)) > 0


def test_distance_is_that_of_colours_wherever_they_stand() -> None:
    image = noise(0)
    pixels = np.asarray(image)
    shuffled = np.random.default_rng(1).permutation(pixels.reshape(-1, 3)).reshape(pixels.shape)
    for moved in (
        Image.fromarray(shuffled),
        Image.fromarray(np.roll(pixels, 5, axis=1)),
        image.transpose(Image.Transpose.ROTATE_90),
        image.resize((48, 32), resample=Image.Resampling.NEAREST),
    ):
        assert palette_distance(image, moved) < 1e-5
        assert palette_distance(moved, plain("teal")) == pytest.approx(palette_distance(image, plain("teal")), abs=1e-4)


def test_triangle_inequality() -> None:
    images = [noise(0), plain("teal"), half_and_half("white", "navy", 0.3)]
    for a, b, c in permutations(images):
        assert palette_distance(a, c) <= palette_distance(a, b) + palette_distance(b, c) + 1e-6


def test_plain_images_are_as_far_apart_as_their_colours() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (plain(tuple(rng.integers(0, 256, size=3).tolist())) for _ in range(2))
        between_colors = float(np.linalg.norm(to_lab(a)[0] - to_lab(b)[0]))
        assert palette_distance(a, b) == pytest.approx(between_colors, rel=0.04)


def test_distance_grows_with_the_share_of_another_colour() -> None:
    distances = [
        palette_distance(plain("orange"), half_and_half("orange", "navy", share)) for share in (0, 0.2, 0.5, 1)
    ]
    assert distances[0] == 0
    np.testing.assert_allclose(distances[1:3], [0.2 * distances[3], 0.5 * distances[3]], rtol=0.02)


def test_distance_is_the_least_work_along_each_direction() -> None:
    """On images of four pixels, against every way to match the pixels of one with those of the other."""
    a, b = noise(0, width=4, height=1), noise(1, width=4, height=1)
    lab_a, lab_b = to_lab(a).astype(np.float64), to_lab(b).astype(np.float64)
    golden = np.pi * (3 - np.sqrt(5))
    work: list[float] = []
    for index in range(24):
        z = (index + 0.5) / 24
        direction = [np.cos(golden * index) * np.sqrt(1 - z * z), np.sin(golden * index) * np.sqrt(1 - z * z), z]
        x, y = lab_a @ direction, lab_b @ direction
        work.append(min(float(np.abs(x - y[list(order)]).mean()) for order in permutations(range(4))))
    assert palette_distance(a, b) == pytest.approx(2 * np.mean(work), rel=1e-5)


def test_distance_ignores_the_mode() -> None:
    assert palette_distance(plain("#777777"), plain("#777777").convert("L")) < 1e-3
    assert palette_distance(plain("teal"), plain("teal").convert("RGBA")) == 0


def test_images_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an image with pixels, got one of size 0x4"):
        palette(Image.new("RGB", (0, 4)))


def test_set_distance_is_the_mean_over_pairs() -> None:
    a, b, c = noise(0), plain("teal"), plain("white")
    expected = (palette_distance(a, b) + palette_distance(a, c) + palette_distance(b, c)) / 3
    assert set_palette_distance([a, b, c]) == pytest.approx(expected)
    assert set_palette_distance([a, a, a]) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_a_set_of_less_than_two_has_no_distance(count: int) -> None:
    with pytest.raises(ValueError, match=f"expected a set of at least two images, got {count}"):
        set_palette_distance([plain("teal")] * count)
