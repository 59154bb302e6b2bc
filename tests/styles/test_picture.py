"""Pictures of all kinds, and what is none."""

import inspect
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from style_aligned.files import digest_picture
from style_aligned.styles.picture import fit_picture, open_picture

DEFAULT = (256, 256)


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def difference(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean())


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_pictures_of_usual_types(tmp_path: Path, suffix: str) -> None:
    path = save(gradient(64, 48), tmp_path / f"picture.{suffix}", quality=95, lossless=True)
    for source in (path, str(path), Image.open(path)):
        image, notes = open_picture(source)
        assert notes == []
        assert image.mode == "RGB"
        assert difference(image, gradient(64, 48)) < 4


@pytest.mark.parametrize(
    ("mode", "notes"),
    [("L", []), ("P", []), ("1", []), ("CMYK", ["from CMYK"]), ("LA", []), ("RGBA", []), ("YCbCr", []), ("HSV", [])],
)
def test_modes(mode: str, notes: list[str]) -> None:
    source = gradient(64, 48)
    given = source.convert("L" if mode in ("L", "LA", "1") else "RGB").convert(mode)
    image, found = open_picture(given)
    assert (image.mode, found) == ("RGB", notes)
    expected = source.convert("L").convert("RGB") if mode in ("L", "LA") else source
    assert difference(image, expected) < (128 if mode == "1" else 18)


def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    expected = Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    path = save(Image.fromarray(values.astype(np.uint16)), tmp_path / "deep.png")
    assert difference(open_picture(path)[0], expected) < 1
    assert difference(open_picture(Image.fromarray(values.astype(np.int32)))[0], expected) < 1
    assert difference(open_picture(Image.fromarray((values / 65535).astype(np.float32)))[0], expected) < 1


def test_transparent_parts_are_put_on_white(tmp_path: Path) -> None:
    image = gradient(64, 64).convert("RGBA")
    image.putalpha(0)
    found, notes = open_picture(save(image, tmp_path / "clear.png"))
    assert notes == ["transparent parts on white"]
    assert difference(found, Image.new("RGB", (64, 64), "white")) == 0
    palette = gradient(64, 64).convert("P")
    palette.info["transparency"] = 0
    assert open_picture(save(palette, tmp_path / "palette.png", transparency=0))[0].mode == "RGB"


def test_the_orientation_of_a_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(gradient(64, 48), tmp_path / "turned.jpg", exif=exif, quality=95)
    image, notes = open_picture(path)
    assert image.size == (48, 64)
    assert notes == ["turned as its EXIF says"]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    image, notes = open_picture(tmp_path / "two.gif")
    assert notes == ["its first frame"]
    assert image.getpixel((0, 0)) == (255, 0, 0)


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def whole() -> bytes:
    buffer = io.BytesIO()
    gradient(64, 64).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a cat", "to be a picture, got a file that is none"),
        (b"", "to be a picture, got an empty file"),
        (whole()[:150], "to be a whole picture, got one that is damaged: "),
        (b"\0\0\0\x18ftypheic" + bytes(40), "to be a PNG, JPEG or WebP, got HEIC: save it as one of them"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', "to be a PNG, JPEG or WebP, got SVG"),
        (b"<svg></svg>", "to be a PNG, JPEG or WebP, got SVG"),
        (b"%PDF-1.7", "to be a PNG, JPEG or WebP, got PDF"),
        (bomb(), "to be a whole picture, got one of too many pixels"),
    ],
    ids=["text", "empty", "truncated", "heic", "svg", "bare svg", "pdf", "bomb"],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^expected {re.escape(str(path))} {message}") as caught:
        open_picture(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a picture on this machine, got 'https://example.org/a.png'"):
        open_picture("https://example.org/a.png")
    with pytest.raises(ValueError, match="expected the path of a picture, got the folder"):
        open_picture(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="expected the picture to have pixels, got one of 0x5"):
        open_picture(Image.new("RGB", (0, 5)))


def test_ways_to_bring_a_picture_to_a_size() -> None:
    image = gradient(400, 200)
    for fit, size, notes in (
        ("crop", (256, 256), ["cropped to its middle (50% of it)", "enlarged from 400x200 to 256x256"]),
        ("pad", (256, 256), ["padded with white"]),
        ("stretch", (256, 256), ["stretched", "enlarged from 400x200 to 256x256"]),
        ("fit", (176, 368), []),
    ):
        fitted, found = fit_picture(image, None, DEFAULT, fit)  # pyright: ignore
        assert ((fitted.height, fitted.width), found) == (size, notes), fit
    cropped = fit_picture(image, (200, 200), DEFAULT, "crop")[0]
    assert difference(cropped, image.crop((100, 0, 300, 200))) < 1
    padded = fit_picture(image, (400, 400), DEFAULT, "pad")[0]
    assert padded.getpixel((200, 10)) == (255, 255, 255)
    assert difference(padded.crop((0, 100, 400, 300)), image) < 1
    assert fit_picture(image, (512, 512), DEFAULT, "fit")[0].size == (512, 512)
    same, notes = fit_picture(gradient(256, 256), None, DEFAULT, "crop")
    assert (same.size, notes) == ((256, 256), [])
    _, notes = fit_picture(gradient(1000, 100), (64, 64), DEFAULT, "crop")
    assert notes == [
        'cropped to its middle (10% of it), which leaves out most of it: fit="pad" or fit="fit" takes all of it'
    ]
    with pytest.raises(ValueError, match="expected fit to be one of crop, pad, fit, stretch, got 'shrink'"):
        inspect.unwrap(fit_picture)(image, None, DEFAULT, "shrink")  # pyright: ignore


def test_the_digest_is_of_the_pixels(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("title", "a gradient")
    path = save(gradient(64, 48), tmp_path / "a.png", pnginfo=info)
    assert digest_picture(open_picture(path)[0]) == digest_picture(gradient(64, 48))
    assert digest_picture(gradient(48, 64)) != digest_picture(gradient(64, 48))
