"""Pictures that images follow by a control model: edges, depth, a pose."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from style_aligned.files import digest_picture
from style_aligned.models.extras.control import ControlModel, control_of
from style_aligned.models.model import Model
from style_aligned.styles.picture import fit_picture, open_picture
from style_aligned.words import show

Picture = str | Path | Image.Image


@dataclass(frozen=True, eq=False)
class Control:
    """A control model, and the picture for each image.

    Attributes:
        model: The control model.
        pictures: The pictures, of the size of the images.
    """

    model: ControlModel
    pictures: list[Image.Image]
    _conditions: dict[int, tuple[Tensor, ...]] = field(default_factory=dict[int, tuple[Tensor, ...]])

    def describe(self, index: int) -> dict[str, Any]:
        """Return what has to be known of an image's control to draw the same again."""
        return {**self.model.describe(), "picture": digest_picture(self.pictures[index])}

    @contextmanager
    def of_chunk(self) -> Generator[None]:
        """Keep what is computed of the pictures for as long as the steps of a chunk take."""
        try:
            yield
        finally:
            self._conditions.clear()

    @contextmanager
    def on(self, images: Sequence[int], *, halves: int) -> Generator[None]:
        """Have the images of a batch follow their pictures.

        Args:
            images: Their indices.
            halves: The number of guidance halves.
        """
        for index in images:
            key = id(self.pictures[index])  # one that many images follow is computed once
            if key not in self._conditions:
                self._conditions[key] = self.model.condition(self.pictures[index])
        conditions = [self._conditions[id(self.pictures[index])] for index in images]
        with self.model.on(conditions, halves=halves):
            yield


def read_control(
    model: Model, control: Picture | Sequence[Picture] | None, *, count: int, size: tuple[int, int]
) -> Control | None:
    """Read the pictures that images follow. What is done to one is said in a warning.

    Args:
        model: The model.
        control: A picture for all images, or one for each.
        count: The number of images.
        size: Their height and width, in pixels.

    Raises:
        ValueError: If there is no control model beside the model, or one and no pictures, too few pictures, or one
            that cannot be read.
    """
    control_model = control_of(model)
    if control is None and control_model is None:
        return None
    if control_model is None:
        raise ValueError("expected a control model for control: Extras(model, control=FILE) puts one beside a model")
    if control is None:
        raise ValueError("expected a picture for each image by control, as there is a control model, got none")
    given = [control] * count if isinstance(control, str | Path | Image.Image) else list(control)
    if len(given) != count:
        raise ValueError(f"expected one control, or one for each of {count} prompts, got {len(given)}")
    read: dict[Any, Image.Image] = {}
    pictures: list[Image.Image] = []
    for index, picture in enumerate(given):
        if picture is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(f"expected a picture for each image by control, got none at index {index}")
        key = id(picture) if isinstance(picture, Image.Image) else str(picture)
        if key not in read:
            read[key] = fit_control(picture, size)
        pictures.append(read[key])
    return Control(control_model, pictures)


def fit_control(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """Read a control picture, and crop it to the size of its image, which is said in a warning.

    Args:
        picture: The picture, or its path.
        size: The height and width of the image, in pixels.

    Raises:
        ValueError: If it cannot be read.
    """
    opened, notes = open_picture(picture)
    fitted, more = fit_picture(opened, size, size, "crop")
    if notes or more:
        name = "the control picture" if isinstance(picture, Image.Image) else show(str(picture))
        warnings.warn(f"{name}: {', '.join(notes + more)}", stacklevel=3)
    return fitted
