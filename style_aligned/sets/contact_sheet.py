"""Contact sheets: the images of sets side by side, with labels."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from style_aligned.files import open_image

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND = "#ffffff"
INK = "#1b1f24"
MUTED = "#667078"
ACCENT = "#0f766e"

SCALE = 3  # of masks and frames, whose edges are smoothed by reducing them
MAX_IMAGES = 96  # on one sheet
CAPTION_LINES = 2


@dataclass(frozen=True)
class Cell:
    """One image of a sheet.

    Attributes:
        image: The image, or the path of its file.
        caption: What is written under it.
        is_reference: Whether it is the reference of its set, which gets a frame.
        note: What is written under the caption, in a line of its own.
    """

    image: Image.Image | Path
    caption: str = ""
    is_reference: bool = False
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """Some images in a row.

    Attributes:
        cells: The images; `None` leaves a place empty.
        label: The heading of the row.
        note: What is written beside the heading, in a quieter colour.
    """

    cells: Sequence[Cell | None]
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """The measures of a sheet, in pixels.

    Attributes:
        cell: The width and height that an image is fitted into.
        margin: The room around everything.
        gap: The room between images.
        strip_gap: The room between strips that stand side by side.
        line_gap: The room between lines of strips.
        radius: The radius of the images' corners.
        title: The size of the title.
        label: The size of the headings.
        text: The size of captions, and of the line under the title.
    """

    cell: tuple[int, int] = (256, 256)
    margin: int = 40
    gap: int = 12
    strip_gap: int = 48
    line_gap: int = 24
    radius: int = 10
    title: int = 34
    label: int = 21
    text: int = 17


def contact_sheet(
    lines: Sequence[Sequence[Strip]], *, title: str = "", subtitle: str = "", layout: Layout | None = None
) -> Image.Image:
    """Draw a contact sheet.

    Args:
        lines: The lines of the sheet from top to bottom, each with its strips from left to right.
        title: The title.
        subtitle: A line under the title.
        layout: The measures; by default they fit images of 256 pixels.

    Returns:
        The sheet: the same pixels for the same images and texts. No text leaves its place: what is too long is cut off.

    Raises:
        ValueError: If there is nothing to draw, or the file of an image is damaged, which it names.
    """
    if not any(strip.cells for line in lines for strip in line):
        raise ValueError("expected at least one image for a contact sheet, got none")
    layout = layout or Layout()
    widths = _column_widths(lines, layout)
    width = sum(widths) + layout.strip_gap * (len(widths) - 1)
    heights = [_line_height(line, layout) for line in lines]
    header = _header_height(title, subtitle, layout)
    height = header + sum(heights) + layout.line_gap * (len(lines) - 1)
    sheet = Image.new("RGB", (width + 2 * layout.margin, height + 2 * layout.margin), BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    x, y = layout.margin, layout.margin
    if title:
        _write(draw, (x, y), title, size=layout.title, width=width, fill=INK)
        y += _line_spacing(layout.title)
    if subtitle:
        _write(draw, (x, y), subtitle, size=layout.text, width=width, fill=MUTED)
    y = layout.margin + header
    for line, line_height in zip(lines, heights, strict=True):
        left = x
        for strip, strip_width in zip(line, widths, strict=False):
            _draw_strip(sheet, draw, strip, (left, y), strip_width, has_labels=_has_labels(line), layout=layout)
            left += strip_width + layout.strip_gap
        y += line_height + layout.line_gap
    return sheet


def wrap(cells: Sequence[Cell], columns: int) -> list[list[Cell | None]]:
    """Break cells into rows of equal length, the last one filled up with empty places.

    Args:
        cells: The cells.
        columns: The most cells in a row.
    """
    columns = min(columns, len(cells))
    rows: list[list[Cell | None]] = [list(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    rows[-1] += [None] * (columns - len(rows[-1]))
    return rows


def fit_cell(size: tuple[int, int], longest: int = 256) -> tuple[int, int]:
    """Return the width and height in which images of some size are shown.

    Args:
        size: The width and height of the images.
        longest: The length of the longer side as shown.
    """
    factor = longest / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shorten(text: str, *, size: int, width: float | int, lines: int = 1) -> list[str]:
    """Break a text into lines that fit, and cut it off with an ellipsis if there is more of it.

    Args:
        text: The text.
        size: The size of the font.
        width: The width that each line may take, in pixels.
        lines: The most lines.
    """
    words = text.split()
    broken: list[str] = []
    while words and len(broken) < lines:
        line = words.pop(0)
        while words and _fits(f"{line} {words[0]}", size=size, width=width):
            line = f"{line} {words.pop(0)}"
        broken.append(line)
    if words:
        broken[-1] = f"{broken[-1]}…"
    return [_cut(line, size=size, width=width) for line in broken]


def _cut(line: str, *, size: int, width: float | int) -> str:
    if _fits(line, size=size, width=width):
        return line
    line = line.removesuffix("…")

    def start(count: int) -> str:
        return line if count == len(line) else line[:count].rstrip(" ,;")

    def start_width(count: int) -> float:
        return _text_width(f"{start(count)}…", size)

    counts = range(1, min(len(line), max(0, int(width))) + 1)
    kept = start(bisect_right(counts, width, key=start_width))  # a longer text is wider
    return f"{kept}…" if kept else ""


def _fits(text: str, *, size: int, width: float | int) -> bool:
    # each character takes a pixel at least: a text of more characters need not be measured, which takes long
    return len(text) <= width and _text_width(text, size) <= width


def _draw_strip(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    strip: Strip,
    position: tuple[int, int],
    width: int,
    *,
    has_labels: bool,
    layout: Layout,
) -> None:
    left, top = position
    if has_labels:
        baseline = top + layout.label
        label = " ".join(shorten(strip.label, size=layout.label, width=width))
        draw.text((left, baseline), label, font=_font(layout.label), fill=INK, anchor="ls")
        used = _text_width(label, layout.label) + layout.gap if label else 0
        note = " ".join(shorten(strip.note, size=layout.text, width=width - used))
        draw.text((left + used, baseline), note, font=_font(layout.text), fill=MUTED, anchor="ls")
        top += _line_spacing(layout.label)
    for index, cell in enumerate(strip.cells):
        if cell is not None:
            _draw_cell(sheet, draw, cell, (left + index * (layout.cell[0] + layout.gap), top), layout)


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, position: tuple[int, int], layout: Layout
) -> None:
    left, top = position
    image = _open(cell.image)
    factor = min(layout.cell[0] / image.width, layout.cell[1] / image.height)
    fitted = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    image = image.resize(fitted, Image.Resampling.LANCZOS)
    left += (layout.cell[0] - image.width) // 2
    sheet.paste(image, (left, top), _rounded(image.size, layout.radius))
    if cell.is_reference:
        line = max(3, layout.gap // 3)
        framed = (image.width + 2 * line, image.height + 2 * line)
        frame = _rounded(framed, layout.radius + line)
        frame.paste(0, (line, line), _rounded(image.size, layout.radius))
        sheet.paste(ACCENT, (left - line, top - line), frame)
    y = top + layout.cell[1] + layout.gap // 2
    for text in _caption_lines(cell, layout):
        center = position[0] + layout.cell[0] // 2
        fill = ACCENT if cell.is_reference else MUTED
        draw.text((center, y + layout.text), text, font=_font(layout.text), fill=fill, anchor="ms")
        y += _line_spacing(layout.text)


def _caption_lines(cell: Cell, layout: Layout) -> list[str]:
    width = layout.cell[0]
    caption = shorten(cell.caption, size=layout.text, width=width, lines=CAPTION_LINES)
    return caption + shorten(cell.note, size=layout.text, width=width)


def _write(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, *, size: int, width: int, fill: str
) -> None:
    for line in shorten(text, size=size, width=width):
        draw.text((position[0], position[1] + size), line, font=_font(size), fill=fill, anchor="ls")


def _open(image: Image.Image | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else open_image(image)


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    mask = Image.new("L", (size[0] * SCALE, size[1] * SCALE), 0)
    box = (0, 0, size[0] * SCALE - 1, size[1] * SCALE - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=radius * SCALE, fill=255)
    return mask.reduce(SCALE)


def _column_widths(lines: Sequence[Sequence[Strip]], layout: Layout) -> list[int]:
    columns = zip_longest(*lines)
    counts = [max(len(strip.cells) for strip in column if strip is not None) for column in columns]
    return [count * layout.cell[0] + (count - 1) * layout.gap for count in counts]


def _line_height(line: Sequence[Strip], layout: Layout) -> int:
    captions = [len(_caption_lines(cell, layout)) for strip in line for cell in strip.cells if cell is not None]
    caption_height = max(captions, default=0) * _line_spacing(layout.text)
    caption_gap = layout.gap // 2 if caption_height else 0
    label_height = _line_spacing(layout.label) if _has_labels(line) else 0
    return label_height + layout.cell[1] + caption_gap + caption_height


def _header_height(title: str, subtitle: str, layout: Layout) -> int:
    height = (_line_spacing(layout.title) if title else 0) + (_line_spacing(layout.text) if subtitle else 0)
    return height + layout.line_gap if height else 0


def _has_labels(line: Sequence[Strip]) -> bool:
    return any(strip.label or strip.note for strip in line)


def _line_spacing(size: int) -> int:
    return size * 3 // 2


def _text_width(text: str, size: int) -> float:
    return _font(size).getlength(text)


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)  # Pillow's own: no file that may be missing
