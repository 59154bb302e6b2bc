"""Pictures that become styles: read, whatever they are, and brought to the size of a model."""

import io
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from style_aligned.files import BOMBS, UNREADABLE, without_warnings
from style_aligned.words import is_url, show

Fit = Literal["crop", "pad", "fit", "stretch"]
FITS = ("crop", "pad", "fit", "stretch")
"""How a picture is brought to a size: its middle, all of it on white, all at a size of its own shape, or stretched."""

MULTIPLE = 64  # pixels: of the sides of a size that follows a picture
EXTREME = 4  # an aspect ratio: from here on, most of a picture is cut off
START = 1024  # bytes in which the type of a file can be seen
OTHERS = (
    (re.compile(rb"^....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"^....ftyp(avif|avis)", re.DOTALL), "AVIF"),
    (re.compile(rb"^\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.DOTALL), "SVG"),
    (re.compile(rb"^%PDF"), "PDF"),
)
"""How files start of which people think as pictures, and which Pillow may not read."""


def open_picture(source: str | Path | Image.Image) -> tuple[Image.Image, list[str]]:
    """Read a picture, turned as it is meant to be seen, in RGB.

    Args:
        source: The path of a file, or a picture.

    Returns:
        The picture, and what had to be done to it, in words.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is no picture, a damaged one, one without pixels or of more than Pillow takes for safe, of a
            type that has to be converted first, or a URL.
        FileNotFoundError: If there is no such file.
    """
    name = "the picture" if isinstance(source, Image.Image) else str(source)
    return _to_rgb(_load(source), name)


def open_mask(source: str | Path | Image.Image) -> Image.Image:
    """Read a mask, turned as it is meant to be seen: its transparency if it has any, or else its brightness.

    Args:
        source: The path of a file, or a picture.

    Raises:
        TypeError, ValueError, FileNotFoundError: As `open_picture`.
    """
    image = _with_alpha(source)
    return image.getchannel("A") if "A" in image.getbands() else image.convert("L")


def open_alpha(source: str | Path | Image.Image) -> Image.Image:
    """Read the transparency of a picture as a mask: what is transparent is left out.

    Args:
        source: The path of a file, or a picture.

    Raises:
        TypeError, ValueError, FileNotFoundError: As `open_picture`, and if it has none.
    """
    image = _with_alpha(source)
    if "A" not in image.getbands():
        raise ValueError("expected a picture with transparent parts for reference_mask='alpha', got one without any")
    return image.getchannel("A")


def _with_alpha(source: str | Path | Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(_load(source))
    return image.convert("RGBA") if "transparency" in image.info else image


def fit_picture(
    image: Image.Image,
    size: tuple[int, int] | None,
    default: tuple[int, int],
    fit: Fit,
    color: str = "white",
) -> tuple[Image.Image, list[str]]:
    """Bring a picture to the size of a reference.

    Args:
        image: The picture.
        size: The height and width of the reference, in pixels. None means the model's own, or with `fit="fit"` as many
            pixels as that has, in the shape of the picture.
        default: The height and width that the model was trained for.
        fit: How: `"crop"` takes the middle of the picture, `"pad"` puts all of it on white, `"fit"` does not change its
            shape but by the rounding of sides, `"stretch"` changes it, as Google's code does.
        color: What `"pad"` puts around it.

    Returns:
        The picture, and what had to be done to it, in words.

    Raises:
        ValueError: If there is no such way.
    """
    if fit not in FITS:
        raise ValueError(f"expected fit to be one of {', '.join(FITS)}, got {show(fit)}")
    if size is None:
        size = _size_like(image, default) if fit == "fit" else default
    elif fit == "fit":
        fit = "pad"
    width, height = size[1], size[0]
    notes: list[str] = []
    if image.size == (width, height):
        return image, notes
    factors = (width / image.width, height / image.height)
    kept = min(factors) / max(factors)  # of the picture, where it covers all of the size
    match fit:
        case "crop":
            fitted = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            if kept < 0.995:
                notes.append(f"cropped to its middle ({kept:.0%} of it)")
        case "pad":
            fitted = ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC, color=color)
            if kept < 0.995:
                notes.append("padded with white")
        case "fit" | "stretch":
            fitted = image.resize((width, height), Image.Resampling.BICUBIC)
            if fit == "stretch" and kept < 0.995:
                notes.append("stretched")
    if fit == "crop" and kept < 1 / EXTREME:
        notes[-1] += ', which leaves out most of it: fit="pad" or fit="fit" takes all of it'
    if (min(factors) if fit == "pad" else max(factors)) > 1:
        notes.append(f"enlarged from {image.width}x{image.height} to {width}x{height}")
    return fitted, notes


def _load(source: str | Path | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected the path of a picture, or a PIL image, got {show(source)}")
    if is_url(str(source)):
        raise ValueError(f"expected a picture on this machine, got {show(str(source))}: download it first")
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"expected the path of a picture, got the folder {path}")
    content = path.read_bytes()
    try:
        with without_warnings(), Image.open(io.BytesIO(content)) as image:
            image.load()
            return image
    except UnidentifiedImageError:
        found = next((name for pattern, name in OTHERS if pattern.match(content[:START])), None)
        if found is None:
            found = "an empty file" if not content else "a file that is none"
            raise ValueError(f"expected {path} to be a picture, got {found}") from None
        raise ValueError(f"expected {path} to be a PNG, JPEG or WebP, got {found}: save it as one of them") from None
    except UNREADABLE as error:
        found = "of too many pixels" if isinstance(error, BOMBS) else "that is damaged"
        raise ValueError(f"expected {path} to be a whole picture, got one {found}: {error}") from None


def _size_like(image: Image.Image, default: tuple[int, int]) -> tuple[int, int]:
    """A size with the shape of a picture, and about as many pixels as the default."""
    ratio = min(max(image.height / image.width, 1 / EXTREME), EXTREME)
    area = default[0] * default[1]
    multiple = MULTIPLE if min(default) >= 8 * MULTIPLE else MULTIPLE // 4
    height, width = ((area * ratio) ** 0.5, (area / ratio) ** 0.5)
    return max(64, round(height / multiple) * multiple), max(64, round(width / multiple) * multiple)


def _to_rgb(image: Image.Image, name: str) -> tuple[Image.Image, list[str]]:
    if 0 in image.size:
        raise ValueError(f"expected {name} to have pixels, got one of {image.width}x{image.height}")
    notes: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
        notes.append("its first frame")
    if image.getexif().get(0x0112, 1) != 1:  # the orientation
        notes.append("turned as its EXIF says")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _from_deep(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
        if isinstance(low, int | float) and low < 255:
            notes.append("transparent parts on white")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode == "CMYK":
        notes.append("from CMYK")
    return image.convert("RGB"), notes


def _from_deep(image: Image.Image) -> Image.Image:
    """Bring greys of 16 bits, or of numbers, to 8 bits. Pillow would cut them off at 255."""
    values: Any = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = values.max()
    scale = 255 if image.mode == "F" and top <= 1 else 1 if top <= 255 and image.mode != "I;16" else 255 / 65535
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
