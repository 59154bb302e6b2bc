import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFont

from style_aligned.sets import contact_sheet as sheets
from style_aligned.sets.contact_sheet import Cell, Layout, Strip, contact_sheet, shorten, wrap

LAYOUT = Layout(cell=(64, 64), margin=20, gap=8, strip_gap=30, line_gap=12)
LONG = "an extremely elaborate rocket with seventeen fins, neon sign on a brick wall " * 5


def colour(name: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, name)


def ink(sheet: Image.Image) -> tuple[int, int, int, int]:
    """Where a sheet is not plain background: left, top, right, bottom."""
    box = ImageChops.difference(sheet, Image.new("RGB", sheet.size, sheets.BACKGROUND)).getbbox()
    assert box is not None
    return box


def test_images_stand_in_their_places() -> None:
    names = [["red", "lime", "blue"], ["yellow", "cyan", "magenta"]]
    sheet = contact_sheet([[Strip([Cell(colour(name)) for name in row])] for row in names], layout=LAYOUT)
    assert sheet.size == (2 * 20 + 3 * 64 + 2 * 8, 2 * 20 + 2 * 64 + 12)
    for y, row in enumerate(names):
        for x, name in enumerate(row):
            center = (20 + x * 72 + 32, 20 + y * 76 + 32)
            assert sheet.getpixel(center) == colour(name).getpixel((0, 0))


def test_columns_of_strips_side_by_side_agree() -> None:
    lines = [
        [Strip([Cell(colour("red"))] * count, label) for count, label in ((2, "unaligned"), (3, "aligned"))]
        for _ in range(2)
    ]
    sheet = contact_sheet(lines, layout=LAYOUT)
    assert sheet.width == 2 * 20 + (2 * 64 + 8) + 30 + (3 * 64 + 2 * 8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_text_leaves_its_place(count: int) -> None:
    strip = Strip([Cell(colour("white"), LONG, is_reference=False) for _ in range(count)], LONG, LONG)
    sheet = contact_sheet([[strip]], title=LONG, subtitle=LONG, layout=LAYOUT)
    left, top, right, bottom = ink(sheet)
    assert left >= 18
    assert top >= 18
    assert right <= sheet.width - 18
    assert bottom <= sheet.height - 18


def test_captions_stay_under_their_images() -> None:
    cells = [Cell(colour("white"), "W" * 100), Cell(colour("white"))]
    alone = contact_sheet([[Strip(cells)]], layout=LAYOUT)
    assert ink(alone)[2] <= 20 + 64 + 1


def test_the_reference_is_framed() -> None:
    sheet = contact_sheet([[Strip([Cell(colour("red"), is_reference=True), Cell(colour("red"))])]], layout=LAYOUT)
    accent = Image.new("RGB", (1, 1), sheets.ACCENT).getpixel((0, 0))
    assert sheet.getpixel((18, 20 + 32)) == accent
    assert sheet.getpixel((20 + 72 - 2, 20 + 32)) != accent
    assert sheet.getpixel((20 + 32, 20 + 32)) == (255, 0, 0)


def test_images_of_any_size_fit() -> None:
    cells = [Cell(colour("red", size)) for size in ((8, 8), (1000, 500), (500, 1000), (1, 300))]
    sheet = contact_sheet([[Strip(cells)]], layout=LAYOUT)
    assert sheet.size == (2 * 20 + 4 * 64 + 3 * 8, 2 * 20 + 64)
    assert sheet.getpixel((20 + 32, 20 + 32)) == (255, 0, 0)  # the small one is enlarged


def test_same_images_same_pixels() -> None:
    def draw() -> Image.Image:
        return contact_sheet([[Strip([Cell(colour("red"), "a fox")], "aligned")]], title="a fox", layout=LAYOUT)

    assert np.array_equal(np.asarray(draw()), np.asarray(draw()))


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="expected at least one image for a contact sheet, got none"):
        contact_sheet([[Strip([])]])


def test_wrap_fills_up() -> None:
    cells = [Cell(colour("red"), str(index)) for index in range(5)]
    rows = wrap(cells, 3)
    assert [[cell and cell.caption for cell in row] for row in rows] == [["0", "1", "2"], ["3", "4", None]]
    assert wrap(cells[:2], 3) == [cells[:2]]


def test_shorten() -> None:
    assert shorten("a fox", size=20, width=200) == ["a fox"]
    assert shorten("", size=20, width=200) == []
    lines = shorten("a rocket on its way to the moon and back again", size=20, width=100, lines=2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert shorten("a fox", size=20, width=1) == [""]


def remove_characters(line: str, size: int, width: float) -> str:
    """What `shorten` makes of one word, one character after the other."""
    font = ImageFont.load_default(size=size)
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1].rstrip(" ,;")
    return f"{line}…" if line else ""


@pytest.mark.parametrize(
    "text", ["a fox,\u00a0; neon sign", "AVAVAVAVATo.,;,;", "W" * 40, "il" * 40, ",;,;ab", "汉字" * 20]
)
@pytest.mark.parametrize("size", [17, 34])
def test_a_long_word_keeps_what_fits(text: str, size: int) -> None:
    word = "".join(text.split())
    for width in (0, 1, 9, 17.5, 40, 100, 256, 1000):
        expected = remove_characters(word, size, width)
        assert shorten(word, size=size, width=width) == [expected]
    assert shorten(word, size=size, width=-5) == [""]


@pytest.mark.parametrize("text", ["W" * 300_000, "汉" * 300_000, "W " * 150_000, "\u200b" * 300_000])
def test_texts_of_any_length_are_shortened(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    measured: list[int] = []
    text_width = sheets._text_width  # pyright: ignore[reportPrivateUsage]

    def count(text: str, size: int) -> float:
        measured.append(len(text))
        return text_width(text, size)

    monkeypatch.setattr(sheets, "_text_width", count)
    lines = shorten(text, size=17, width=256, lines=2)
    assert lines[-1].endswith("…")
    assert all(len(line) <= 257 and text_width(line, 17) <= 256 for line in lines)
    assert len(measured) < 60
    assert max(measured) <= 257


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 1024), (256, 256)), ((64, 128), (128, 256)), ((9000, 8), (256, 1))]
)
def test_fit_cell(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert sheets.fit_cell(size) == expected


def test_the_file_of_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:2000] + bytes(4000) + content[6000:])
    with pytest.raises(ValueError, match=f"expected {re.escape(str(path))} to be a whole image"):
        contact_sheet([[Strip([Cell(path)])]], layout=LAYOUT)
