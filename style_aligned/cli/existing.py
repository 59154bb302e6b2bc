"""What is in the folder of a run already: images of this run, damaged ones, and what is of others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from style_aligned.cli.sets import UNALIGNED, ImageSet, Settings, Source, Target
from style_aligned.files import (
    describe_image,
    difference,
    is_cut_off,
    is_damaged,
    is_replaceable,
    parse_settings,
    read_texts,
)
from style_aligned.styles.style import Style

STYLE = "style.safetensors"
SHEET = "contact sheet"  # its kind, in its file
OF_A_REFERENCE = ("reference", "reference_seed", "options", "style")  # no matter for unaligned images


def check_places(output: Path, sets: Sequence[ImageSet]) -> None:
    """Check that nothing is in the way of files and folders to be written.

    Args:
        output: The folder.
        sets: The sets.

    Raises:
        ValueError: If a folder is where a file is to be, or the other way round.
    """
    files = {output / "sheet.png"}
    for image_set in sets:
        files |= {*image_set.paths, image_set.folder / STYLE}
    for path in sorted({file.parent for file in files}):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise ValueError(f"expected {path} to be a folder, or free for one, got a file or a broken link")
    for path in sorted(files):
        if path.is_dir() or (path.is_symlink() and not path.exists()):
            raise ValueError(f"expected {path} to be a file, or free for one, got a folder or a broken link")


def check_existing(output: Path, sets: Sequence[ImageSet], settings: Settings) -> None:
    """Check that what is in the folder is not of another run, as far as that can be told without the model.

    Args:
        output: The folder.
        sets: The sets.
        settings: What the user asked for.

    Raises:
        ValueError: If an image would be replaced by a different one, or a file that is no contact sheet by one.
    """
    sheet = output / "sheet.png"
    if not is_replaceable(sheet, SHEET):
        raise ValueError(f"{sheet} is of another program: {_advise('it is no contact sheet')}")
    for image_set in sets:
        known = known_settings(image_set.source, settings)
        seed = image_set.source.style.seed if image_set.source.style is not None else settings.seed or 0
        for target in image_set.aligned:
            _refuse_others(target, {"aligned": True, **known}, is_partial=True)
        plain = {name: known[name] for name in known if name not in OF_A_REFERENCE}
        for target in image_set.unaligned:
            _refuse_others(target, {"aligned": False, **plain}, is_partial=True)
        _refuse_others(Target(image_set.reference, image_set.source.prompt, seed), known, is_partial=True)


def has_images(image_set: ImageSet) -> bool:
    """Tell whether any of a set's images is there already."""
    return any(path.exists() for path in image_set.paths)


def find_pending(image_set: ImageSet, style: Style, model: Mapping[str, Any], *, force: bool) -> set[Path]:
    """Find what is to be made: images that are not there, and those that are damaged.

    A damaged one is made again without force if its settings are those of this run: it comes out as it was.

    Args:
        image_set: The set.
        style: Its style.
        model: What `style_aligned.models.model.describe_model` says of the model that draws, and its decoder.
        force: Whether images of other settings are to be made too.

    Returns:
        The paths of the set's images, the reference's among them.

    Raises:
        ValueError: If an image would be replaced by a different one, unless forced to.
    """
    return {
        target.path
        for target, settings in _expected(image_set, style, model)
        if _is_pending(target, settings, force=force)
    }


def find_left_over(output: Path, sets: Sequence[ImageSet]) -> list[Path]:
    """Find the images of earlier runs that this one does not make, such as those of prompts that were taken out.

    Args:
        output: The folder.
        sets: The sets.

    Returns:
        Their paths. Pictures that hold no settings are of other programs, and none of ours.
    """
    planned = {path for image_set in sets for path in image_set.paths}
    folders = {output, *(image_set.folder for image_set in sets)}
    folders |= {folder / UNALIGNED for folder in folders}
    found = (path for folder in sorted(folders) for path in sorted(folder.glob("*.png")) if path not in planned)
    return [path for path in found if parse_settings(read_texts(path)) is not None]


def reference_settings(style: Style, model: Mapping[str, Any]) -> dict[str, Any]:
    """Give all settings that the picture of a reference depends on.

    Args:
        style: The style.
        model: The model that draws, and its decoder: not the style's own, if it was forced.
    """
    decoder = {"decoder": model["decoder"]} if "decoder" in model else {}  # not known before there is a model
    model = {name: model[name] for name in style.model}
    return {**style.describe(), "model": model, **decoder, "style": style.digest}


def image_settings(style: Style, model: Mapping[str, Any], *, is_aligned: bool) -> dict[str, Any]:
    """Give all settings that an image depends on.

    Args:
        style: The style.
        model: The model that draws.
        is_aligned: Whether it follows the reference.
    """
    settings = {"aligned": is_aligned, **reference_settings(style, model)}
    return settings if is_aligned else {name: settings[name] for name in settings if name not in OF_A_REFERENCE}


def known_settings(source: Source, settings: Settings) -> dict[str, Any]:
    """Give the settings of a reference that are known before there is a model."""
    if source.style is not None:
        style = replace(source.style, options={**source.style.options, **settings.options})
        return reference_settings(style, style.model)
    known = {
        "reference": source.prompt,
        "reference_seed": settings.seed or 0,
        "negative_prompt": settings.negative,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "options": settings.reference_options,
    }
    return known if settings.size is None else {**known, "size": f"{settings.size[1]}x{settings.size[0]}"}


def _expected(image_set: ImageSet, style: Style, model: Mapping[str, Any]) -> Iterator[tuple[Target, dict[str, Any]]]:
    yield Target(image_set.reference, style.prompt, style.seed), reference_settings(style, model)
    for is_aligned, targets in ((True, image_set.aligned), (False, image_set.unaligned)):
        settings = image_settings(style, model, is_aligned=is_aligned)
        yield from ((target, settings) for target in targets)


def _is_pending(target: Target, settings: Mapping[str, Any], *, force: bool) -> bool:
    """Tell whether an image is still to be made."""
    if not target.path.exists() or is_cut_off(target.path):
        return True
    return _refuse_others(target, settings, is_forced=force) or is_damaged(target.path)


def _refuse_others(
    target: Target, settings: Mapping[str, Any], *, is_partial: bool = False, is_forced: bool = False
) -> bool:
    """Refuse to replace an image of other settings. Tells whether it is to be replaced nevertheless."""
    if not target.path.exists() or is_cut_off(target.path):
        return False
    texts = read_texts(target.path)
    own = parse_settings(texts)
    if is_partial:
        settings = {**(own or {}), **settings}
    found = difference(texts, describe_image(target.prompt, target.seed, settings))
    if found is not None and not is_forced:
        maker = "program" if own is None else "run"
        raise ValueError(f"{target.path} is of another {maker}: {_advise(found)}")
    return found is not None


def _advise(found: str) -> str:
    return f"{found} (--force replaces it, or take another --output)"
