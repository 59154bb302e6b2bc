"""A run of `generate`: which images go where."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from style_aligned.cli.inputs import Prompt
from style_aligned.models.family import SDXL

if TYPE_CHECKING:
    from style_aligned.styles.style import Style
else:
    Style = Any  # annotations are evaluated, and it takes seconds to import

UNALIGNED = "unaligned"  # the folder of the images to compare with


@dataclass(frozen=True)
class Settings:
    """What the user asked for, of a reference to be made; `None` means the default, or what the style file says.

    Attributes:
        negative: The prompt to guide away from.
        seed: The seed of the reference, from which those of the targets count on.
        steps: The number of steps.
        guidance: The strength of the classifier-free guidance.
        size: The height and width in pixels.
        options: The options of the adapter that were given.
        model_options: Those that suit the model, for references to be made, as far as they are not given.
    """

    negative: str = ""
    seed: int | None = None
    steps: int = SDXL.num_inference_steps
    guidance: float = SDXL.condition_scale
    size: tuple[int, int] | None = None
    options: dict[str, bool | float] = field(default_factory=dict[str, bool | float])
    model_options: dict[str, bool | float] = field(default_factory=dict[str, bool | float])

    @property
    def reference_options(self) -> dict[str, bool | float]:
        """The options of the adapter for a reference to be made."""
        return {**self.model_options, **self.options}


@dataclass(frozen=True)
class Source:
    """Where a style comes from: the prompt of a reference, or a style file that has been read."""

    prompt: str
    style: Style | None = None
    name: str | None = None


@dataclass(frozen=True)
class Target:
    """One image to be.

    Attributes:
        path: The path of its file.
        prompt: Its prompt.
        seed: The seed of its noise.
    """

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class ImageSet:
    """The images that follow one style, in a folder of their own.

    Attributes:
        source: Where the style comes from.
        folder: The folder.
        aligned: The images.
        unaligned: The images to compare them with: none, or as many.
    """

    source: Source
    folder: Path
    aligned: list[Target]
    unaligned: list[Target]

    @property
    def reference(self) -> Path:
        """The path of the reference's file."""
        return self.folder / "reference.png"

    @property
    def paths(self) -> list[Path]:
        """The paths of all images, the reference's first."""
        return [self.reference, *(target.path for target in (*self.aligned, *self.unaligned))]


def plan(
    output: Path, sources: Sequence[Source], prompts: Sequence[Prompt], *, seed: int | None, compare: bool
) -> list[ImageSet]:
    """Lay out the files of a run.

    Args:
        output: The folder.
        sources: Where the styles come from. Several have a folder each.
        prompts: The prompts.
        seed: The seed from which those of the images count on. None means the style's own.
        compare: Whether to make the unaligned images too.
    """
    from style_aligned.files import numbered

    sets: list[ImageSet] = []
    for number, source in enumerate(sources):
        folder = output if len(sources) == 1 else output / numbered(number, len(sources), source.name or source.prompt)
        own_seed = source.style.seed if source.style is not None else 0
        first = 1 + (own_seed if seed is None else seed)
        aligned = [
            Target(
                path=folder / f"{numbered(index, len(prompts), prompt.text)}.png",
                prompt=prompt.text,
                seed=first + index if prompt.seed is None else prompt.seed,
            )
            for index, prompt in enumerate(prompts)
        ]
        unaligned = [replace(target, path=folder / UNALIGNED / target.path.name) for target in aligned]
        sets.append(ImageSet(source, folder, aligned, unaligned if compare else []))
    return sets
