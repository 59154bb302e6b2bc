"""The contact sheet of a set: its images side by side, with what they were made with, or a title alone."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from style_aligned.files import describe_picture, is_replaceable, write_png
from style_aligned.sets.contact_sheet import MAX_IMAGES, Cell, Layout, Strip, contact_sheet, fit_cell, wrap
from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.masks import shade
from style_aligned.sets.records import SetError, SetImage
from style_aligned.sets.set_file import SHEET_FILE, SheetSettings

MAX_COLUMNS = 8
KIND = "contact sheet"  # by which its file is known


def check_sheet(path: Path) -> None:
    """Check that a sheet may be written somewhere.

    Raises:
        SetError: If a picture that is none of ours is there.
    """
    if not is_replaceable(path, KIND):
        raise SetError(f"{path} is no contact sheet of style-aligned: move it, or give it another name")


def write_sheet(sets: Sequence[ImageSet], path: Path, settings: SheetSettings | None = None) -> bool:
    """Write the contact sheet of one or more sets, if they have any images yet.

    Args:
        sets: The sets.
        path: The path of the file.
        settings: What it shows. None means what the first set says.

    Returns:
        Whether it was written.

    Raises:
        SetError: If a picture that is none of ours is there.
    """
    check_sheet(path)
    sheet = draw_sheet(sets, settings)
    if sheet is not None:
        write_png(path, sheet, describe_picture(KIND))
    return sheet is not None


def sheet_path(image_set: ImageSet) -> Path:
    """Return the path of the contact sheet in a set's folder."""
    return image_set.folder / SHEET_FILE


def draw_sheet(sets: Sequence[ImageSet], settings: SheetSettings | None = None) -> Image.Image | None:
    """Draw the contact sheet of one or more sets.

    Args:
        sets: The sets.
        settings: What it shows. None means what the first set says.

    Returns:
        The sheet, with at most 96 images, or None if no image is there.
    """
    settings = settings or sets[0].state.sheet
    with_images = [(own, _images(own)) for own in sets]
    with_images = [(own, images) for own, images in with_images if images]
    if not with_images:
        return None
    total = sum(len(images) for _, images in with_images)
    shown = max(2, MAX_IMAGES // len(with_images))
    lines = [
        line
        for own, images in with_images[: MAX_IMAGES // 2]
        for line in _lines(own, images[:shown], settings, has_title=len(sets) > 1)
    ]
    drawn = sum(len(images[:shown]) for _, images in with_images[: MAX_IMAGES // 2])
    title = settings.title or (sets[0].state.reference.prompt if len(sets) == 1 else f"{len(sets):,} styles")
    subtitle = _subtitle([own for own, _ in with_images]) if settings.settings else ""
    if drawn < total:
        subtitle = f"{subtitle} · {drawn} of {total:,} images".removeprefix(" · ")
    cells = [fit_cell(_size(own.path(images[0]))) for own, images in with_images[: MAX_IMAGES // 2]]
    cell = max(width for width, _ in cells), max(height for _, height in cells)
    return contact_sheet(lines, title=title, subtitle=subtitle, layout=Layout(cell=cell))


def _images(image_set: ImageSet) -> list[SetImage]:
    images = [image_set.state.reference, *image_set.state.current]
    return [image for image in images if image.drawing.is_drawn and image_set.path(image).is_file()]


def _lines(
    image_set: ImageSet, images: Sequence[SetImage], settings: SheetSettings, *, has_title: bool
) -> list[list[Strip]]:
    title = image_set.state.reference.prompt if has_title else ""
    columns = settings.columns or _columns(len(images))
    rows = wrap([_cell(image_set, image, settings) for image in images], columns)
    twins = [image_set.folder / image.drawing.unaligned if image.drawing.unaligned else None for image in images]
    if not any(twins):
        return [[Strip(row, label=title if number == 0 else "")] for number, row in enumerate(rows)]

    lines: list[list[Strip]] = []
    heading = f"{title}: " if title else ""
    for number, row in enumerate(rows):
        start = number * len(rows[0])
        pairs = zip(images[start : start + len(row)], twins[start : start + len(row)], strict=True)
        above: list[Cell | None] = [
            Cell(image_set.path(image), is_reference=True)
            if image is image_set.state.reference
            else (Cell(twin) if twin is not None and twin.is_file() else None)
            for image, twin in pairs
        ]
        above += [None] * (len(row) - len(above))
        lines.append([Strip(above, f"{heading}unaligned")])
        lines.append([Strip(row, f"{heading}aligned")])
    return lines


def _cell(image_set: ImageSet, image: SetImage, settings: SheetSettings) -> Cell:
    is_reference = image is image_set.state.reference
    path = image_set.path(image)
    picture = shade(image_set.folder, path) if is_reference else path
    if not settings.settings:
        return Cell(path)
    options = "".join(f", {name.replace('_', ' ')} {value}" for name, value in image.drawing.options.items())
    caption = f"reference: {image.prompt}" if is_reference else image.prompt
    return Cell(picture, caption, is_reference, note=f"seed {image.drawing.seed}{options}")


def _subtitle(sets: Sequence[ImageSet]) -> str:
    """Name the model, and the settings that all sets have in common."""
    described: list[tuple[str, ...]] = []
    for image_set in sets:
        made_with = image_set.settings_of(image_set.state.reference.drawing)
        steps, guidance, size = (made_with.get(name) for name in ("steps", "guidance", "size"))
        options = made_with.get("options", {})
        shown = [f"{name.replace('_', ' ')} {value}" for name, value in options.items() if not isinstance(value, bool)]
        described.append(
            (
                Path(image_set.state.model or "").name,
                "" if steps is None else f"{steps} step{'' if steps == 1 else 's'}",
                "" if guidance is None else f"guidance {guidance:g}",
                "" if size is None else str(size),
                " · ".join(shown),
            )
        )
    common = [values[0] for values in zip(*described, strict=True) if len(set(values)) == 1 and values[0]]
    return " · ".join(common)


def _columns(count: int) -> int:
    return count if count <= MAX_COLUMNS else min(12, max(6, round((count * 1.5) ** 0.5)))


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
