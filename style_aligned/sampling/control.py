"""The pictures that each image follows, as `generate` takes them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from style_aligned.models.extras.control import controls_of
from style_aligned.models.model import Model
from style_aligned.styles.control import Control, Picture, Pictures, read_pictures


def read_control(
    model: Model, control: Picture | Sequence[Pictures] | None, *, count: int, size: tuple[int, int]
) -> Control | None:
    """Read the pictures that images follow. What is done to one is said in a warning.

    Args:
        model: The model.
        control: A picture for all images, or for each image one or a list with one for each control model.
        count: The number of images.
        size: Their height and width, in pixels.

    Raises:
        ValueError: If there is no control model beside the model, or one and no pictures, another number of pictures
            than of images or of control models, or a picture that cannot be read.
    """
    models = controls_of(model)
    if control is None and not models:
        return None
    if control is None:
        raise ValueError("expected a picture for each image by control, as there is a control model, got none")
    given = [control] * count if isinstance(control, str | Path | Image.Image) else list(control)
    if len(given) != count:
        raise ValueError(f"expected one control, or one for each of {count} prompts, got {len(given)}")
    for index, own in enumerate(given):
        if own is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(f"expected a picture for each image by control, got none at index {index}")
    return Control(models, read_pictures(model, given, size, [f" at index {index}" for index in range(count)]))
