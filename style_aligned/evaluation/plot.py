"""Estimates and their intervals as a plot: a dot for each estimate, a bar for its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from style_aligned.evaluation.statistics import Interval

INK, PALE, GRID = "#1d2430", "#6b7480", "#dfe3e8"
WIDTH, LABELS, ROW = 1000, 262, 26  # units of length
VALUE, GAP = 46, 20  # to the right of a column: its values, and what is between them and the next column
TICKS = 4

Length = int | float


@dataclass(frozen=True)
class Column:
    """What is told of all rows.

    Attributes:
        title: Its heading.
        intervals: The interval of each row. None where there is none.
        form: The format of the values.
        ticks: What the axis spans at least, in even steps. None means what suits the values.
    """

    title: str
    intervals: Sequence[Interval | None]
    form: str
    ticks: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """A part of a plot: the same rows in several columns.

    Attributes:
        title: Its heading.
        description: What is under it.
        rows: The label and the colour of each row.
        columns: The columns.
    """

    title: str
    description: str
    rows: Sequence[tuple[str, str]]
    columns: Sequence[Column]

    @property
    def height(self) -> int:
        """Its height in units of length."""
        return 108 + ROW * len(self.rows)


def draw_panels(panels: Sequence[Panel], scale: int = 2) -> Image.Image:
    """Draw panels below one another.

    Args:
        panels: The panels.
        scale: The number of pixels to a unit of length. The plot is 1000 units wide.
    """
    image = Image.new("RGB", (WIDTH * scale, (sum(panel.height for panel in panels) + 16) * scale), "white")
    pen = _Pen(image, scale)
    top = 8
    for panel in panels:
        _draw_panel(pen, panel, top)
        top += panel.height
    return image


def choose_ticks(intervals: Sequence[Interval]) -> list[float]:
    """Return round numbers in even steps that span some intervals.

    Example:
        >>> choose_ticks([Interval(value=0.29, low=0.27, high=0.31)])
        [0.27, 0.28, 0.29, 0.3, 0.31]
    """
    low = min((interval.low for interval in intervals), default=0.0)
    high = max((interval.high for interval in intervals), default=1.0)
    span = max(high - low, abs(high) * 0.05, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * TICKS >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


class _Pen:
    """Draws in units of length rather than in pixels."""

    def __init__(self, image: Image.Image, scale: int) -> None:
        self.draw = ImageDraw.Draw(image)
        self.scale = scale

    def line(self, x0: Length, y0: Length, x1: Length, y1: Length, color: str, width: Length = 1) -> None:
        points = [value * self.scale for value in (x0, y0, x1, y1)]
        self.draw.line(points, fill=color, width=max(1, round(width * self.scale)))

    def dot(self, x: Length, y: Length, color: str, radius: Length = 4.5) -> None:
        self.draw.ellipse(
            [value * self.scale for value in (x - radius, y - radius, x + radius, y + radius)], fill=color
        )

    def text(
        self, x: Length, y: Length, text: str, *, size: int = 14, color: str = INK, anchor: str = "lm", room: int = 0
    ) -> None:
        """Write a text, cut at its start if it has less room than it takes."""
        font = ImageFont.load_default(size * self.scale)
        short = text
        while room and len(text) > 1 and self.draw.textlength(short, font=font) > room * self.scale:
            text = text[1:]
            short = f"…{text}"
        self.draw.text((x * self.scale, y * self.scale), short, fill=color, font=font, anchor=anchor)


def _draw_panel(pen: _Pen, panel: Panel, top: Length) -> None:
    pen.text(20, top + 20, panel.title, size=19)
    pen.text(20, top + 42, panel.description, size=13, color=PALE)
    first = top + 86
    for index, (label, color) in enumerate(panel.rows):
        pen.text(240, first + ROW * index, label, color=color, anchor="rm", room=220)
    spacing = (WIDTH - LABELS) / len(panel.columns)
    for number, column in enumerate(panel.columns):
        _draw_column(pen, panel, column, LABELS + spacing * number, spacing - VALUE - GAP, first)


def _draw_column(pen: _Pen, panel: Panel, column: Column, left: Length, width: Length, first: Length) -> None:
    last = first + ROW * (len(panel.rows) - 1)
    pen.text(left, first - 22, column.title, size=13, color=PALE)
    known = [interval for interval in column.intervals if interval is not None]
    ticks = list(choose_ticks(known) if column.ticks is None else column.ticks)
    while known and ticks[-1] < max(interval.high for interval in known) - 1e-9:
        ticks.append(ticks[-1] + ticks[1] - ticks[0])

    def place(value: float) -> float:
        return left + width * (value - ticks[0]) / (ticks[-1] - ticks[0])

    for index, tick in enumerate(ticks):
        pen.line(place(tick), first - 12, place(tick), last + 12, GRID)
        if index % 2 == 0:
            pen.text(place(tick), last + 22, f"{tick:{column.form}}", size=11, color=PALE, anchor="mm")
    for index, ((_, color), interval) in enumerate(zip(panel.rows, column.intervals, strict=True)):
        if interval is not None:
            y = first + ROW * index
            pen.line(place(interval.low), y, place(interval.high), y, color, width=2.5)
            pen.dot(place(interval.value), y, color)
            pen.text(left + width + 12, y, f"{interval.value:{column.form}}", size=13, color=color)
