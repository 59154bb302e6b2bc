"""What the styles paint with: colours, masks, grounds, and placing a drawing on a canvas.

Masks are float32 arrays (height, width) in [0, 1], pictures are float32 arrays (height, width, 3) in [0, 1]. Lengths
are fractions of the canvas side, so that a style looks the same at every size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]

MARGIN = 0.055
"""No drawing comes nearer to the frame than this: rims, shadows and glows want room."""


@dataclass(frozen=True)
class Layer:
    """A drawing on its canvas, before any style: `colour` (S, S, 3) and `alpha` (S, S)."""

    colour: Floats
    alpha: Floats


@dataclass(frozen=True)
class Placement:
    """Where a drawing sits: its longer side, its tilt in degrees, its shift from the middle."""

    scale: float
    angle: float
    shift: tuple[float, float]


def floats(values: Any) -> Floats:
    """Anything array-like in single precision."""
    return np.asarray(values, dtype=np.float32)


def clip(values: Any, low: float = 0.0, high: float = 1.0) -> Floats:
    """Values held within bounds, in single precision."""
    return floats(np.minimum(np.maximum(values, low), high))


def as_bytes(values: Any) -> NDArray[np.uint8]:
    """Pixels of [0, 1] as 0 to 255, rounded; what lies outside is cut off."""
    return np.asarray(np.minimum(np.maximum(np.asarray(values) * 255 + 0.5, 0), 255), dtype=np.uint8)


def as_floats(image: Image.Image) -> Floats:
    """An image as an array in [0, 1]."""
    pixels: Floats = np.array(image, dtype=np.float32)
    pixels /= 255
    return pixels


def place(*, drawing: Image.Image, placement: Placement, side: int) -> Layer:
    """Put a drawing on a square canvas, whole: it is tilted, cropped to what it shows, scaled, then shifted.

    Args:
        drawing: RGBA with straight alpha.
        placement: Where it goes; the shift is cut short where it would bring the drawing into the margin.
        side: Of the canvas, in pixels.

    Returns:
        The drawing alone, its colour black where there is nothing of it.
    """
    if placement.angle:
        drawing = drawing.rotate(placement.angle, resample=Image.Resampling.BICUBIC, expand=True)
    # faint halos in the artwork must not decide how large the drawing is
    box = drawing.getchannel("A").point([0] * 25 + [255] * 231).getbbox()
    assert box is not None, "an empty drawing"
    drawing = drawing.crop(box)
    factor = placement.scale * side / max(drawing.size)
    width, height = (max(1, round(length * factor)) for length in drawing.size)
    drawing = drawing.resize((width, height), resample=Image.Resampling.LANCZOS)
    corner: list[int] = []
    for length, shift in zip((width, height), placement.shift, strict=True):
        room = max(0.0, (side - length) / 2 - MARGIN * side)
        corner.append(round((side - length) / 2 + max(-room, min(room, shift * side))))
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(drawing, (corner[0], corner[1]))
    pixels = as_floats(canvas)
    alpha = pixels[..., 3]
    return Layer(colour=pixels[..., :3] * (alpha[..., None] > 0), alpha=alpha)


def colour(code: str) -> Floats:
    """Read "#rrggbb" into an array (3,)."""
    return np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=np.float32)


def mix(first: Floats, second: Floats, amount: Floats | float) -> Floats:
    """Go from the first to the second by an amount in [0, 1]; a mask as amount mixes pixel by pixel."""
    weight = np.asarray(amount, dtype=np.float32)
    if weight.ndim == 2:
        weight = weight[..., None]
    return (first + (second - first) * weight).astype(np.float32)


def shade(code: str, amount: float) -> Floats:
    """Lighten (amount above 0) or darken (below 0) a colour."""
    towards = np.ones(3, dtype=np.float32) if amount > 0 else np.zeros(3, dtype=np.float32)
    return mix(colour(code), towards, abs(amount))


def luminance(picture: Floats) -> Floats:
    """Perceived brightness of every pixel."""
    return (picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.float32)


def ramp(values: Floats, low: float, high: float) -> Floats:
    """A smooth step from 0 at `low` to 1 at `high`."""
    t = clip((values - low) / (high - low))
    return floats(t * t * (3 - 2 * t))


def gradient_map(values: Floats, stops: tuple[str, ...]) -> Floats:
    """Map brightness to colours, the stops evenly spaced from dark to bright."""
    table = np.stack([colour(code) for code in stops])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, at, table[:, i]) for i in range(3)], axis=-1).astype(np.float32)


def blur(mask: Floats, radius: float) -> Floats:
    """Gaussian blur of a mask, or of a picture, by a radius in fractions of the side."""
    blurred = Image.fromarray(as_bytes(mask)).filter(ImageFilter.GaussianBlur(radius * mask.shape[0]))
    return as_floats(blurred)


def smooth(mask: Floats, radius: float) -> Floats:
    """Blur as `blur` does, but in floating point: for masks whose slope is looked at, where 256 steps would show."""
    half = max(1, round((np.sqrt(4 * (radius * mask.shape[0]) ** 2 + 1) - 1) / 2))
    width, result = 2 * half + 1, np.asarray(mask, dtype=np.float64)
    for turn in range(6):  # three box blurs each way come close to a Gaussian
        total = np.cumsum(np.pad(result, ((half + 1, half), (0, 0))), axis=0, dtype=np.float64)
        result = np.asarray((total[width:] - total[:-width]) / width)
        if turn in (2, 5):
            result = np.swapaxes(result, 0, 1)
    return floats(result)


def slope(height: Floats, *, axis: int) -> Floats:
    """How steeply a height field rises along an axis, per pixel, from its neighbours on either side."""
    padded = np.pad(height, 1, mode="edge")
    near, far = slice(0, -2), slice(2, None)
    if axis == 0:
        return floats((padded[far, 1:-1] - padded[near, 1:-1]) / 2)
    return floats((padded[1:-1, far] - padded[1:-1, near]) / 2)


def grow(mask: Floats, radius: float) -> Floats:
    """A mask grown by a radius, with round corners."""
    return ramp(blur(mask, radius * 0.8), 0.05, 0.16)


def moved(mask: Floats, right: float, down: float) -> Floats:
    """A mask moved, by fractions of the side; what leaves the canvas comes not back."""
    side = mask.shape[0]
    across, along = round(right * side), round(down * side)
    result = np.roll(mask, (along, across), axis=(0, 1))
    if along:
        result[slice(0, along) if along > 0 else slice(along, None)] = 0
    if across:
        result[:, slice(0, across) if across > 0 else slice(across, None)] = 0
    return result


def over(ground: Floats, ink: Floats, mask: Floats) -> Floats:
    """Paint an ink, one colour or a picture, onto a ground through a mask."""
    return mix(ground, ink, mask)


def coordinates(side: int) -> tuple[Floats, Floats]:
    """Across and down coordinates of every pixel, in [0, 1]."""
    line = floats((np.arange(side, dtype=np.float32) + 0.5) / side)
    return np.broadcast_to(line[None, :], (side, side)), np.broadcast_to(line[:, None], (side, side))


def plain(code: str | Floats, side: int) -> Floats:
    """A canvas of one colour."""
    return np.broadcast_to(colour(code) if isinstance(code, str) else code, (side, side, 3)).astype(np.float32)


def spotlit(code: str, side: int, *, strength: float, at: tuple[float, float] = (0.5, 0.42)) -> Floats:
    """A ground that is lighter around a point and darker towards the corners."""
    across, down = coordinates(side)
    distance = np.sqrt((across - at[0]) ** 2 + (down - at[1]) ** 2)
    light = shade(code, 0.45 * strength)
    dark = shade(code, -0.55 * strength)
    return mix(mix(light, plain(code, side), ramp(distance, 0.05, 0.5)), dark, ramp(distance, 0.4, 0.95))


def outline(mask: Floats) -> Floats:
    """A line drawing whose solid areas are hollowed out, so that it is made of lines only."""
    return mask * (1 - ramp(blur(mask, 0.018), 0.9, 0.985))


def silhouette(mask: Floats) -> Floats:
    """A line drawing with everything that its lines enclose filled in."""
    side = mask.shape[0]
    whole = Image.fromarray(np.asarray(mask * 255, dtype=np.uint8))
    small = np.asarray(whole.resize((160, 160), resample=Image.Resampling.BOX))
    wall = np.pad(small > 70, 1)
    outside = np.zeros(wall.shape, dtype=np.bool_)
    outside[0, :] = outside[-1, :] = outside[:, 0] = outside[:, -1] = True
    reached = 0
    while reached < np.count_nonzero(outside):  # flood inwards from the frame, a pixel a turn in each direction
        reached = np.count_nonzero(outside)
        for axis in (0, 1):
            outside = outside | (~wall & (np.roll(outside, 1, axis=axis) | np.roll(outside, -1, axis=axis)))
    inside = Image.fromarray(np.asarray(~outside[1:-1, 1:-1] * 255, dtype=np.uint8))
    filled = as_floats(inside.resize((side, side), resample=Image.Resampling.BICUBIC))
    return np.maximum(ramp(filled, 0.3, 0.7), mask)


def edge_colours(layer: Layer) -> Floats:
    """The colours (count, 3) along a drawing's edge, where it meets its ground."""
    rim = (layer.alpha > 0.6) & (blur(layer.alpha, 0.012) < 0.85)
    return layer.colour[rim][::7]


def contrast(edge: Floats, ground: Floats) -> float:
    """The share of a drawing's edge colours that stand out from a ground's colour (3,), 0 to 1."""
    if not len(edge):
        return 1.0
    return float((np.sqrt(((edge - ground) ** 2).sum(axis=-1)) > 0.32).mean())
