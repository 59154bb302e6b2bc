"""Pictures that a reference or images follow by control models: edges, depth, a pose."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from style_aligned.files import digest_picture
from style_aligned.models.extras.control import ControlModel, controls_of
from style_aligned.models.model import Model
from style_aligned.notes import Note
from style_aligned.styles.picture import fit_picture, open_picture
from style_aligned.words import show

Picture = str | Path | Image.Image
Pictures = Picture | Sequence[Picture]
"""The pictures of one image: one, or one for each control model."""


@dataclass(frozen=True, eq=False)
class Control:
    """Control models, and the pictures for each image.

    Attributes:
        models: The control models.
        pictures: For each image a picture for each control model, of the size of the images.
    """

    models: list[ControlModel]
    pictures: list[list[Image.Image]]
    _conditions: dict[tuple[int, int], tuple[Tensor, ...]] = field(
        default_factory=dict[tuple[int, int], tuple[Tensor, ...]]
    )

    def describe(self, index: int) -> list[dict[str, Any]]:
        """Return what has to be known of an image's control to draw the same again, for each control model."""
        pairs = zip(self.models, self.pictures[index], strict=True)
        return [{**model.describe(), "picture": digest_picture(picture)} for model, picture in pairs]

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
        with ExitStack() as stack:
            for number, model in enumerate(self.models):
                conditions = [self._condition(number, self.pictures[index][number]) for index in images]
                stack.enter_context(model.on(conditions, halves=halves))
            yield

    def _condition(self, number: int, picture: Image.Image) -> tuple[Tensor, ...]:
        """Return what a control model takes of a picture: one that many images follow is computed once."""
        key = number, id(picture)
        if key not in self._conditions:
            self._conditions[key] = self.models[number].condition(picture)
        return self._conditions[key]


def read_pictures(
    model: Model, lists: Sequence[Pictures], size: tuple[int, int], places: Sequence[str] = ("",)
) -> list[list[Image.Image]]:
    """Read the pictures that some images follow. What is done to one is said in a warning.

    Args:
        model: The model.
        lists: For each image a picture, or a list with one for each control model.
        size: The height and width of the images, in pixels.
        places: What an error says of each image.

    Raises:
        ValueError: If there is no control model beside the model, another number of pictures than of control models, or
            a picture that cannot be read.
    """
    models = controls_of(model)
    if not models:
        raise ValueError("expected a control model for control: Extras(model, control=FILE) puts one beside a model")
    own = [[pictures] if isinstance(pictures, str | Path | Image.Image) else list(pictures) for pictures in lists]
    for pictures, place in zip(own, places, strict=True):
        if len(pictures) != len(models):
            raise ValueError(
                f"expected a control picture for each of {len(models)} control model{'' if len(models) == 1 else 's'},"
                f" got {len(pictures)}{place}"
            )
    read: dict[Any, Image.Image] = {}
    for picture in (picture for pictures in own for picture in pictures):
        if _key(picture) not in read:
            read[_key(picture)] = fit_control(picture, size)
    return [[read[_key(picture)] for picture in pictures] for pictures in own]


def _key(picture: Picture) -> int | str:
    return id(picture) if isinstance(picture, Image.Image) else str(picture)


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
        warnings.warn(f"{name}: {', '.join(notes + more)}", Note, stacklevel=3)
    return fitted
