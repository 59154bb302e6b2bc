"""A run of `generate`: making the styles and images that are not there yet."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from style_aligned.cli import existing, library
from style_aligned.cli.console import Progress, warn
from style_aligned.cli.sets import ImageSet, Settings, Target
from style_aligned.files import describe_image, is_cut_off, write_png
from style_aligned.models.model import Model
from style_aligned.sampling.generation import generate
from style_aligned.sampling.samples import Sample
from style_aligned.styles.file import StyleError
from style_aligned.styles.style import Style

CHUNK = 32  # images that are on their way at a time, about


def obtain_style(model: Model, image_set: ImageSet, settings: Settings, *, force: bool) -> Style:
    """Take the style of a set from its file, or from an earlier run into the same folder, or start on its reference.

    Args:
        model: The model.
        image_set: The set.
        settings: What the user asked for.
        force: Whether to let the style of other weights pass, and to replace that of another run.

    Returns:
        The style, or the reference that is to be one.

    Raises:
        ValueError: If the style does not fit the model, or the folder has one that is damaged or of another run.
    """
    source = image_set.source
    if source.style is not None:
        style = replace(source.style, options={**source.style.options, **settings.options})
        _check_fit(style, model, force=force)
        return style
    size = settings.size or library.trained_size(model)
    path = image_set.folder / existing.STYLE
    if path.is_file() and not is_cut_off(path):
        style = _reuse_style(path, model, existing.known_settings(source, settings), size, force=force)
        if style is not None:
            return style
    return start_reference(model, source.prompt, settings)


def start_reference(model: Model, prompt: str, settings: Settings) -> Style:
    """Start on a reference from a prompt.

    Args:
        model: The model.
        prompt: The prompt of the reference.
        settings: What the user asked for.
    """
    return Style.from_prompt(
        model,
        prompt,
        negative_prompt=settings.negative,
        seed=settings.seed or 0,
        num_inference_steps=settings.steps,
        condition_scale=settings.guidance,
        size=settings.size or library.trained_size(model),
        options=settings.reference_options,
    )


def finish_style(model: Model, reference: Style, progress: Progress) -> Style:
    """Make a style from its reference.

    Args:
        model: The model.
        reference: The reference, of which steps may be left to do.
        progress: Told of those steps, and of the image.
    """
    style = reference.complete(model, on_step=progress.step)
    progress.image()
    return style


def save_style(style: Style, image_set: ImageSet) -> None:
    """Write the style of a set to its file.

    Args:
        style: The style.
        image_set: The set.
    """
    image_set.folder.mkdir(parents=True, exist_ok=True)
    style.save(image_set.folder / existing.STYLE)


def make_images(
    model: Model,
    style: Style,
    image_set: ImageSet,
    pending: Set[Path],
    described: Mapping[str, Any],
    *,
    batch_size: int,
    bank_device: str | None,
    force: bool,
    progress: Progress,
) -> Style:
    """Make the images of a set that are not there yet, and the reference.

    Args:
        model: The model.
        style: The style, or the reference that is to be one.
        image_set: The set.
        pending: The paths of the images to be made.
        described: What `style_aligned.models.model.describe_model` says of the model, and its decoder.
        batch_size: The number of images that go through the model at a time.
        bank_device: Where to keep what is recorded of the reference. None means where the model is.
        force: Whether to let the style of other weights pass.
        progress: Told of each step and image.

    Returns:
        The style.
    """
    progress.describe(_shorten(image_set.source.prompt))
    work = _with_their_batches(image_set.aligned, pending, batch_size)
    samples: Iterator[Sample] = iter(())
    if work:
        arguments = _arguments(work, batch_size, progress)
        samples = iter(generate(model, style, force=force, bank_device=bank_device, **arguments))
    if not style.is_complete:
        samples = chain([next(samples)], samples)  # the steps of the reference are done along with the first images'
        style = finish_style(model, style, progress)
        save_style(style, image_set)
    if image_set.reference in pending:
        texts = describe_image(style.prompt, style.seed, existing.reference_settings(style, described))
        write_png(image_set.reference, style.image(model), texts)
    own = existing.image_settings(style, described, is_aligned=True)
    _write(samples, work, pending, own, progress)

    if work := _with_their_batches(image_set.unaligned, pending, batch_size):
        progress.describe("unaligned")
        samples = iter(generate(model, style, aligned=False, force=force, **_arguments(work, batch_size, progress)))
        own = existing.image_settings(style, described, is_aligned=False)
        _write(samples, work, pending, own, progress)
    return style


def count_work(image_set: ImageSet, pending: Set[Path], *, batch_size: int) -> int:
    """Count the images that go through the model: those that share a micro-batch with a missing one do too."""
    return sum(
        len(_with_their_batches(targets, pending, batch_size)) for targets in (image_set.aligned, image_set.unaligned)
    )


def _reuse_style(
    path: Path, model: Model, wanted: Mapping[str, Any], size: tuple[int, int], *, force: bool
) -> Style | None:
    """Read the style that an earlier run has left. None means that it is to be replaced."""
    found = ""
    try:
        style = Style.load(path)
    except StyleError as error:
        found = f"damaged, or no style file: {error}"
    else:
        try:
            style.check(model)
        except StyleError as error:
            found = f"of another run: {error}"
        else:
            own = style.describe()
            name = next((name for name in wanted if own[name] != wanted[name]), None)
            if name is None and style.size == size:
                return style
            name = name or "size"
            found = f"of another run: it has {name}={own[name]!r}, not {wanted.get(name, f'{size[1]}x{size[0]}')!r}"
    if not force:
        raise ValueError(f"{path} is {found} (--force replaces it)")
    return None


def _with_their_batches(targets: Sequence[Target], pending: Set[Path], batch_size: int) -> list[Target]:
    """Give the images to be made and those that share a micro-batch with them.

    An image comes out the same, to the last bit, whatever was there before.
    """
    batches = (targets[start : start + batch_size] for start in range(0, len(targets), batch_size))
    return [target for batch in batches if any(target.path in pending for target in batch) for target in batch]


def _check_fit(style: Style, model: Model, *, force: bool) -> None:
    """Check that a style fits a model, or say what it takes to use it nevertheless."""
    try:
        style.check(model)
    except StyleError as error:
        style.check(model, force=True)  # what no force can help is told as it is
        if not force:
            raise StyleError(f"{error} (--force lets it pass)") from None
        warn(f"{error}: images will differ from those of the style's own model")


def _arguments(work: Sequence[Target], batch_size: int, progress: Progress) -> dict[str, Any]:
    """Give what `generate` is called with alike."""
    return {
        "prompts": [target.prompt for target in work],
        "seeds": [target.seed for target in work],
        "batch_size": batch_size,
        "chunk_size": batch_size * max(1, CHUNK // batch_size),
        "on_step": progress.step,
    }


def _write(
    samples: Iterator[Sample],
    work: Sequence[Target],
    pending: Set[Path],
    settings: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Write the images to be made as they come."""
    for target, sample in zip(work, samples, strict=True):
        if target.path in pending:
            write_png(target.path, sample.image, describe_image(target.prompt, target.seed, settings))
        progress.image()


def _shorten(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
