"""A run of `generate`: which images go where, which are there already, and making the others."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from style_aligned.cli import library
from style_aligned.cli.console import Progress
from style_aligned.cli.inputs import Prompt

if TYPE_CHECKING:
    from style_aligned.denoising import Model
    from style_aligned.style import Style
else:
    Model = Style = Any  # annotations are evaluated, and these take seconds to import

CHUNK = 32  # images that are on their way at a time, about


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
    steps: int = 30
    guidance: float = 5.0
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
        unaligned = [replace(target, path=folder / "unaligned" / target.path.name) for target in aligned]
        sets.append(ImageSet(source, folder, aligned, unaligned if compare else []))
    return sets


def check_existing(sets: Sequence[ImageSet], settings: Settings) -> None:
    """Check that what is in the folder is not of another run, as far as that can be told without the model.

    Args:
        sets: The sets.
        settings: What the user asked for.

    Raises:
        ValueError: If an image would be replaced by a different one.
    """
    for image_set in sets:
        known = {"aligned": True, **_known_settings(image_set.source, settings)}
        for target in image_set.aligned:
            _refuse_others(target, known, is_partial=True)


def obtain_style(model: Model, image_set: ImageSet, settings: Settings, *, force: bool) -> tuple[Style, bool]:
    """Take the style of a set from its file, or from an earlier run into the same folder, or make it.

    Args:
        model: The model.
        image_set: The set.
        settings: What the user asked for.
        force: Whether to let the style of other weights pass, and to replace that of another run.

    Returns:
        The style, and whether it is new.
    """
    from style_aligned.style import Style, StyleError

    source = image_set.source
    if source.style is not None:
        style = replace(source.style, options={**source.style.options, **settings.options})
        style.check(model, force=force)
        return style, False
    size = settings.size or library.trained_size(model)
    path = image_set.folder / "style.safetensors"
    wanted = _known_settings(source, settings)
    if path.is_file():
        try:
            style = Style.load(path)
            style.check(model)
        except StyleError as error:
            if not force:
                raise ValueError(f"{path} is of another run: {error} (--force replaces it)") from None
        else:
            own = describe_style(style)
            name = next((name for name in wanted if own[name] != wanted[name]), None)
            if name is None and style.size == size:
                return style, False
            if not force:
                name = name or "size"
                found = f"it has {name}={own[name]!r}, not {wanted.get(name, size)!r}"
                raise ValueError(f"{path} is of another run: {found} (--force replaces it)")
    style = Style.from_prompt(
        model,
        source.prompt,
        negative_prompt=settings.negative,
        seed=settings.seed or 0,
        num_inference_steps=settings.steps,
        condition_scale=settings.guidance,
        size=size,
        options=settings.reference_options,
    )
    return style, True


def describe_style(style: Style) -> dict[str, Any]:
    """Give the settings that are written into the images of a style."""
    return {
        "reference": style.prompt,
        "reference_seed": style.seed,
        "negative_prompt": style.negative_prompt,
        "steps": style.num_inference_steps,
        "guidance": style.condition_scale,
        "size": f"{style.size[1]}x{style.size[0]}",
        "options": style.options,
        "solver": style.solver,
        "model": style.model,
    }


def make_images(
    model: Model,
    style: Style,
    image_set: ImageSet,
    *,
    batch_size: int,
    force: bool,
    progress: Progress,
) -> int:
    """Make the images of a set that are not there yet, and the reference.

    Args:
        model: The model.
        style: The style.
        image_set: The set.
        batch_size: The number of images that go through the model at a time.
        force: Whether to replace images of other settings, and to let the style of other weights pass.
        progress: Told of each step and image.

    Returns:
        The number of images that were there already.
    """
    from style_aligned.files import describe_image, write_png
    from style_aligned.sampling import generate, generate_unaligned

    settings = describe_style(style)
    reference = Target(image_set.reference, style.prompt, style.seed)
    if _is_pending(reference, {**settings, "style": fingerprint(style)}, force=force):
        texts = describe_image(style.prompt, style.seed, {**settings, "style": fingerprint(style)})
        write_png(image_set.reference, style.image(model), texts)

    there = 0
    for is_aligned, targets in ((True, image_set.aligned), (False, image_set.unaligned)):
        own = image_settings(style, is_aligned=is_aligned)
        pending = {target.path for target in targets if _is_pending(target, own, force=force)}
        there += len(targets) - len(pending)
        # whole micro-batches: an image comes out the same, to the last bit, whatever was there before
        work = [
            target
            for batch in _batches(targets, batch_size)
            if any(target.path in pending for target in batch)
            for target in batch
        ]
        if not work:
            continue
        progress.describe(_shorten(image_set.source.prompt) if is_aligned else "unaligned")
        arguments: dict[str, Any] = {
            "seeds": [target.seed for target in work],
            "batch_size": batch_size,
            "chunk_size": batch_size * max(1, CHUNK // batch_size),
            "on_step": progress.step,
        }
        prompts = [target.prompt for target in work]
        samples = (
            generate(model, style, prompts, force=force, **arguments)
            if is_aligned
            else generate_unaligned(model, style, prompts, **arguments)
        )
        for target, sample in zip(work, samples, strict=True):
            if target.path in pending:
                write_png(target.path, sample.image, describe_image(target.prompt, target.seed, own))
            progress.image()
    return there


def count_work(image_set: ImageSet, style: Style, *, batch_size: int, force: bool) -> int:
    """Count the images that are to be made, those included that share a micro-batch with a missing one.

    Raises:
        ValueError: If an image would be replaced by a different one, unless forced to.
    """
    count = 0
    for is_aligned, targets in ((True, image_set.aligned), (False, image_set.unaligned)):
        own = image_settings(style, is_aligned=is_aligned)
        pending = [_is_pending(target, own, force=force) for target in targets]
        count += sum(len(batch) for batch in _batches(pending, batch_size) if any(batch))
    return count


def image_settings(style: Style, *, is_aligned: bool) -> dict[str, Any]:
    """Give all settings that an image depends on."""
    settings: dict[str, Any] = {"aligned": is_aligned, **describe_style(style)}
    if is_aligned:
        return {**settings, "style": fingerprint(style)}
    return {name: settings[name] for name in settings if name not in ("reference", "reference_seed", "options")}


def fingerprint(style: Style) -> str:
    """Give a fingerprint of the reference's trajectory: not all of them come from a prompt and a seed."""
    import torch

    values = style.latents.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def _known_settings(source: Source, settings: Settings) -> dict[str, Any]:
    if source.style is not None:
        style = replace(source.style, options={**source.style.options, **settings.options})
        return {**describe_style(style), "style": fingerprint(style)}
    known = {
        "reference": source.prompt,
        "reference_seed": settings.seed or 0,
        "negative_prompt": settings.negative,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "options": settings.reference_options,
    }
    return known if settings.size is None else {**known, "size": f"{settings.size[1]}x{settings.size[0]}"}


def _is_pending(target: Target, settings: dict[str, Any], *, force: bool) -> bool:
    """Tell whether an image is still to be made."""
    from style_aligned.files import is_cut_off

    if not target.path.exists() or is_cut_off(target.path):
        return True
    return _refuse_others(target, settings, is_forced=force)


def _refuse_others(
    target: Target, settings: dict[str, Any], *, is_partial: bool = False, is_forced: bool = False
) -> bool:
    """Refuse to replace an image of other settings. Tells whether it is to be replaced nevertheless."""
    from style_aligned.files import describe_image, difference, is_cut_off, read_texts

    if not target.path.exists() or is_cut_off(target.path):
        return False
    texts = read_texts(target.path)
    if is_partial and texts:
        own: dict[str, Any] = json.loads(texts.get("settings", "{}"))
        settings = {**own, **settings}
    found = difference(texts, describe_image(target.prompt, target.seed, settings))
    if found is not None and not is_forced:
        raise ValueError(f"{target.path} is of another run: {found} (--force replaces it, or take another --output)")
    return found is not None


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _shorten(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
