"""The mask of a set's reference, as a picture beside it, and what the contact sheet shows of it."""

from pathlib import Path

from PIL import Image, ImageEnhance
from torch import Tensor

from style_aligned.files import describe_picture, is_replaceable, write_png
from style_aligned.sets.set_file import MASK_FILE

KIND = "reference mask"  # by which its file is known
SHADE = 0.25  # what is left of the light where the mask leaves the reference out


def write_mask(folder: Path, mask: Tensor | None) -> None:
    """Write the mask of a style, unless it is there or another program's picture is.

    Args:
        folder: The folder of the set.
        mask: The mask, with weights between 0 and 1. None means that there is none.
    """
    path = folder / MASK_FILE
    if mask is not None and not path.exists() and is_replaceable(path, KIND):
        weights = (mask.float().cpu() * 255).round().byte().numpy()
        write_png(path, Image.fromarray(weights), describe_picture(KIND))


def shade(folder: Path, reference: Path) -> Image.Image | Path:
    """Return the image of a reference, darker where its mask leaves it out: the file itself, if there is no mask."""
    path = folder / MASK_FILE
    if not path.is_file():
        return reference
    with Image.open(path) as mask, Image.open(reference) as image:
        light = mask.convert("L").resize(image.size, Image.Resampling.BILINEAR)
        lit = image.convert("RGB")
        return Image.composite(lit, ImageEnhance.Brightness(lit).enhance(SHADE), light)
