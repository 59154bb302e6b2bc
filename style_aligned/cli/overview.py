"""The contact sheet of a run of `generate`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from style_aligned.cli import library
from style_aligned.cli.sets import ImageSet, Target
from style_aligned.files import open_image
from style_aligned.sets.contact_sheet import MAX_IMAGES, Cell, Layout, Strip, contact_sheet, fit_cell, wrap

MAX_COLUMNS = 8


def draw_overview(sets: Sequence[ImageSet], subtitle: str) -> Image.Image:
    """Draw the images of a run: a row for each style, or more where one is not enough.

    Args:
        sets: The sets, whose images are all there.
        subtitle: What is said under the title.
    """
    count, styles = sum(len(image_set.aligned) for image_set in sets), len(sets)
    sets = sets[: MAX_IMAGES // (4 if sets[0].unaligned else 2)]  # each with its reference and a target
    shown = max(1, MAX_IMAGES // sum(2 if image_set.unaligned else 1 for image_set in sets))
    drawn = sum(len(image_set.aligned[:shown]) for image_set in sets)
    if drawn < count:
        subtitle = f"{subtitle} · {drawn} of {count:,} images"
    is_single = styles == 1
    return contact_sheet(
        [line for image_set in sets for line in _lines(image_set, shown, has_title=not is_single)],
        title=sets[0].source.prompt if is_single else f"{styles:,} styles",
        subtitle=subtitle,
        layout=Layout(cell=_cell(sets)),
    )


def _lines(image_set: ImageSet, shown: int, *, has_title: bool) -> list[list[Strip]]:
    aligned = image_set.aligned[:shown]
    unaligned = image_set.unaligned[:shown]
    columns = _columns(len(aligned) + 1)
    rows = wrap(_cells(image_set, aligned), columns)
    title = image_set.source.prompt if has_title else ""
    if not unaligned:
        return [[Strip(row, label=title if number == 0 else "")] for number, row in enumerate(rows)]

    lines: list[list[Strip]] = []
    compared = wrap(_cells(image_set, unaligned, has_captions=False), columns)
    for number, (above, below) in enumerate(zip(compared, rows, strict=True)):
        is_first = number == 0
        heading = f"{title}: " if title else ""
        lines.append([Strip(above, f"{heading}unaligned", _note(image_set, unaligned) if is_first else "")])
        lines.append([Strip(below, f"{heading}aligned", _note(image_set, aligned) if is_first else "")])
    return lines


def _cells(image_set: ImageSet, targets: Sequence[Target], *, has_captions: bool = True) -> list[Cell]:
    reference = Cell(image_set.reference, f"reference: {image_set.source.prompt}" if has_captions else "", True)
    return [reference, *(Cell(target.path, target.prompt if has_captions else "") for target in targets)]


def _note(image_set: ImageSet, targets: Sequence[Target]) -> str:
    images = [open_image(path) for path in [image_set.reference, *(target.path for target in targets)]]
    return f"palette distance {library.palette_distance(images):.0f}"


def _columns(count: int) -> int:
    if count <= MAX_COLUMNS:
        return count
    return min(12, max(6, round((count * 1.5) ** 0.5)))


def _cell(sets: Sequence[ImageSet]) -> tuple[int, int]:
    sizes = [_size(image_set.reference) for image_set in sets]
    cells = [fit_cell(size) for size in sizes]
    return max(width for width, _ in cells), max(height for _, height in cells)


def _size(path: Path) -> tuple[int, int]:
    opened = Image.open(path)
    with opened:
        return opened.size
