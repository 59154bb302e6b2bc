"""The demonstration: several styles in one picture, unaligned beside aligned, from the same prompts and noise."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from style_aligned.evaluation.palette import set_palette_distance
from style_aligned.models.family import MINI
from style_aligned.models.model import Model
from style_aligned.sampling.generation import generate
from style_aligned.sampling.samples import Sample
from style_aligned.sets.contact_sheet import Cell, Layout, Strip, contact_sheet
from style_aligned.styles.picture import open_picture
from style_aligned.styles.style import Style

BATCH_SIZE = 8
CELL = 168  # pixels
PICTURE = Path(__file__).parent / "cherries.png"


@dataclass(frozen=True)
class Row:
    """One style of the demonstration.

    Attributes:
        style: The style, as prompts name it.
        things: What is drawn in it, the reference first.
        seed: Which seed to count on from, so that the styles do not share their noise.
        picture: A picture that the style is made from. None means that the reference is drawn too.
    """

    style: str
    things: tuple[str, ...]
    seed: int = 0
    picture: Path | None = None


ROWS = (
    Row("neon sign", ("a fox", "a rocket", "a snowflake", "a cactus", "an umbrella"), seed=100),
    Row("metal statue", ("a trophy", "a car", "a hamburger", "headphones", "a bell"), seed=200),
    Row("sticker", ("a watermelon", "a car", "a strawberry", "an apple", "a light bulb"), seed=300),
    Row("blueprint", ("a bicycle", "an owl", "an envelope", "a camera", "a castle"), seed=400),
    Row("pixel art", ("a mushroom", "a heart", "an apple", "a pumpkin", "a volcano"), seed=500),
    # a drawing of those that the embedded model was not trained on
    Row("neon sign", ("cherries", "a hamburger", "a butterfly", "a castle", "a bicycle"), seed=600, picture=PICTURE),
)


def count_images(rows: Sequence[Row]) -> int:
    """Count the images that rows take: each reference once, unless it is a picture, and its targets twice."""
    return sum(2 * len(row.things) - 1 - (row.picture is not None) for row in rows)


def draw_demo(
    model: Model,
    rows: Sequence[Row] = ROWS,
    *,
    seed: int = 0,
    steps: int = 16,
    guidance: float = MINI.condition_scale,
    on_step: Callable[[int], None] | None = None,
    on_image: Callable[[], None] | None = None,
) -> Image.Image:
    """Draw the picture.

    Args:
        model: The model, which has to know the styles and things of the rows.
        rows: The styles.
        seed: The seed, to which those of the rows are added.
        steps: The number of steps.
        guidance: The strength of the classifier-free guidance.
        on_step: Called as steps get done, with the number of images that have done one.
        on_image: Called for each image that is done.

    Returns:
        The picture: a line for each style, with the unaligned set on the left and the aligned one on the right.

    Raises:
        ValueError: If a row has no targets.
    """
    for row in rows:
        if len(row.things) < 2:
            raise ValueError(f"expected a reference and targets in each row, got {row.things}")
    lines: list[list[Strip]] = []
    for row in rows:
        prompts = [f"{thing}, {row.style}" for thing in row.things]
        settings: dict[str, Any] = {
            "seed": seed + row.seed, "num_inference_steps": steps, "condition_scale": guidance,
        }  # fmt: skip
        if row.picture is None:
            style = Style.from_prompt(model, prompts[0], **settings)
        else:
            style = Style.from_image(model, row.picture, prompts[0], **settings)
        arguments: dict[str, Any] = {"batch_size": BATCH_SIZE, "on_step": on_step}
        aligned = _collect(generate(model, style, prompts[1:], **arguments), on_image)
        first = style.image(model) if row.picture is None else open_picture(row.picture)[0]
        if on_image is not None and row.picture is None:
            on_image()
        unaligned = _collect(generate(model, style, prompts[1:], aligned=False, **arguments), on_image)
        strips: list[Strip] = []
        for name, targets in (("unaligned", unaligned), ("aligned", aligned)):
            images = [first, *targets]
            cells = [
                Cell(image, thing.split(" ", maxsplit=1)[-1], is_reference=index == 0)
                for index, (image, thing) in enumerate(zip(images, row.things, strict=True))
            ]
            distance = set_palette_distance(images)
            of = f"{row.style}, {name}" if row.picture is None else f"from a picture, {name}"
            strips.append(Strip(cells, of, f"palette distance {distance:.0f}"))
        lines.append(strips)
    return contact_sheet(
        lines,
        title="StyleAligned: one reference, one style, no training",
        subtitle="Same prompts, same noise. Left: every image on its own. Right: every image shares the attention and"
        " the group normalization of the framed one. Palette distance: mean over pairs, in CIELAB.",
        layout=Layout(cell=(CELL, CELL), gap=10, strip_gap=56, line_gap=22, title=40, label=23, text=18),
    )


def _collect(samples: Iterable[Sample], on_image: Callable[[], None] | None) -> list[Image.Image]:
    images: list[Image.Image] = []
    for sample in samples:
        images.append(sample.image)
        if on_image is not None:
            on_image()
    return images
