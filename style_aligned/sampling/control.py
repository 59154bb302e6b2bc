"""Pictures that images follow by control models: edges, depth, a pose."""

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
    if not models:
        raise ValueError("expected a control model for control: Extras(model, control=FILE) puts one beside a model")
    if control is None:
        raise ValueError("expected a picture for each image by control, as there is a control model, got none")
    given = [control] * count if isinstance(control, str | Path | Image.Image) else list(control)
    if len(given) != count:
        raise ValueError(f"expected one control, or one for each of {count} prompts, got {len(given)}")
    lists: list[list[Picture]] = []
    for index, own in enumerate(given):
        if own is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(f"expected a picture for each image by control, got none at index {index}")
        lists.append([own] if isinstance(own, str | Path | Image.Image) else list(own))
        if len(lists[-1]) != len(models):
            raise ValueError(
                f"expected a control picture for each of {len(models)} control model{'' if len(models) == 1 else 's'},"
                f" got {len(lists[-1])} at index {index}"
            )
    read: dict[Any, Image.Image] = {}
    for picture in (picture for own in lists for picture in own):
        if _key(picture) not in read:
            read[_key(picture)] = fit_control(picture, size)
    return Control(models, [[read[_key(picture)] for picture in own] for own in lists])


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
