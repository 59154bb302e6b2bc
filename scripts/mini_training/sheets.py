"""Labelled sheets of pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Pictures = np.ndarray[Any, np.dtype[np.uint8]]


def save_sheet(
    path: Path,
    pictures: Pictures,
    rows: Sequence[str],
    columns: Sequence[str],
    size: int = 160,
) -> None:
    """Write pictures as a grid with a name for each row and column.

    Args:
        path: The PNG file.
        pictures: Pictures in reading order, of shape (rows * columns, height, width, 3).
        rows: The rows' labels.
        columns: The columns' labels.
        size: The side of each picture on the sheet, in pixels.
    """
    left, top = 110, 24
    sheet = Image.new("RGB", (left + size * len(columns), top + size * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for x, label in enumerate(columns):
        draw.text((left + x * size + 4, 5), label[:22], fill="black", font=font)
    for y, label in enumerate(rows):
        draw.text((4, top + y * size + size // 2 - 8), label[:16], fill="black", font=font)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, len(columns))
        image = Image.fromarray(picture).resize((size - 2, size - 2), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + x * size, top + y * size))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    sheet.save(partial, format="PNG")
    partial.replace(path)
