import errno
import json
import os
import re
import resource
import struct
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from style_aligned import files


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@contextmanager
def full_disk(limit: int) -> Generator[None, None, None]:
    """Let the system refuse to let any file grow beyond a number of bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_pixels_and_texts_come_back(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "new" / "folder" / "fox.png"
    texts = files.describe_image("a fox, ネオン «sign»", 7, {"steps": 30, "options": {"scale": 1.5}})
    files.write_png(path, image, texts)

    opened = Image.open(path)
    with opened:
        assert np.array_equal(np.asarray(opened), np.asarray(image))
    found = files.read_texts(path)
    assert found == texts
    assert (found["prompt"], found["seed"]) == ("a fox, ネオン «sign»", "7")
    assert json.loads(found["settings"]) == {"steps": 30, "options": {"scale": 1.5}}
    assert set(json.loads(found["versions"])) == {"style-aligned", "refiners", "torch"}
    assert [entry.name for entry in path.parent.iterdir()] == ["fox.png"]


def test_same_image_same_bytes(image: Image.Image) -> None:
    first = files.encode_png(image, {"b": "2", "a": "1"})
    assert first == files.encode_png(image.copy(), {"a": "1", "b": "2"})
    assert first != files.encode_png(image, {"a": "1", "b": "3"})


def test_full_disk_leaves_what_was_there(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(b"before")
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        files.write_png(path, image)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fox.png"]


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"f"
        raise OSError(errno.ENOSPC, "No space left on device")  # as from an open file: without its name

    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_bytes(tmp_path / "fox.png", parts())
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "fox.png"))
    assert list(tmp_path.iterdir()) == []
    files.write_bytes(tmp_path / "fox.png", iter([b"f", b"ox"]))
    assert (tmp_path / "fox.png").read_bytes() == b"fox"


def test_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fox.png"
    sync = os.fsync
    synced: list[tuple[str, bytes, bool]] = []

    def fsync(descriptor: int) -> None:
        (part,) = tmp_path.iterdir()
        assert os.path.samestat(os.fstat(descriptor), part.stat())
        synced.append((part.name, part.read_bytes(), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_bytes(path, b"fox")
    assert synced == [("fox.png.part", b"fox", False)]
    assert path.read_bytes() == b"fox"


def test_interruption_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "fox.png", b"fox")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_other_files_have_no_texts_and_are_no_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(content)
    assert files.read_texts(path) == {}
    assert not files.is_whole_image(path)
    with pytest.raises(
        ValueError, match=f"expected {re.escape(str(path))} to be a whole image, got one that is damaged"
    ):
        files.open_image(path)


def test_folders_and_missing_files_have_no_texts(tmp_path: Path) -> None:
    assert files.read_texts(tmp_path) == {}
    assert files.read_texts(tmp_path / "missing.png") == {}
    assert not files.is_whole_image(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError):
        files.open_image(tmp_path / "missing.png")


def test_texts_of_other_programs_are_read_before_and_behind_the_pixels(tmp_path: Path, image: Image.Image) -> None:
    info = PngInfo()
    info.add_text("settings", "{} ©", zip=True)
    info.add_itxt("prompt", "ネオン", lang="en", tkey="Prompt")
    image.save(tmp_path / "fox.png", pnginfo=info)
    assert files.read_texts(tmp_path / "fox.png") == {"settings": "{} ©", "prompt": "ネオン"}
    whole = files.encode_png(image, {"settings": "{}"})
    start, pixels = whole.index(b"iTXt") - 4, whole.index(b"IDAT") - 4
    (tmp_path / "fox.png").write_bytes(whole[:start] + whole[pixels:-12] + whole[start:pixels] + whole[-12:])
    assert files.read_texts(tmp_path / "fox.png")["settings"] == "{}"


def test_damage_is_told_and_named(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    whole = files.encode_png(image, {"prompt": "a fox"})
    path.write_bytes(whole)
    assert files.is_whole_image(path)
    assert files.open_image(path).tobytes() == image.tobytes()
    start = whole.index(b"IDAT")
    for content in (whole[: start + 2000] + bytes(4000) + whole[start + 6000 :], whole[: start + 100]):
        path.write_bytes(content)
        assert not files.is_whole_image(path)
        with pytest.raises(ValueError, match=f"expected {re.escape(str(path))} to be a whole image, got one"):
            files.open_image(path)


def test_images_of_too_many_pixels(tmp_path: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fox.png"
    files.write_png(path, image)
    for limit in (3000, 1000):  # of which Pillow warns, and which it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"to be a whole image, got one that is too large: .*4096 pixels"):
            files.open_image(path)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_images_are_opened_without_warnings(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    content = files.encode_png(image)
    start = content.index(b"IDAT") - 4
    path.write_bytes(content[:start] + chunk(b"acTL", bytes(8)) + content[start:])
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(path):
        pass
    assert files.open_image(path).tobytes() == image.tobytes()


def test_only_pictures_of_a_kind_are_replaceable(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "sheet.png"
    assert files.is_replaceable(path, "contact sheet")
    files.write_png(path, image, files.describe_picture("contact sheet"))
    assert files.is_replaceable(path, "contact sheet")
    assert not files.is_replaceable(path, "demonstration")
    files.write_png(path, image)
    assert not files.is_replaceable(path, "contact sheet")
    path.write_bytes(b"my own notes")
    assert not files.is_replaceable(path, "contact sheet")


def test_settings_that_are_none() -> None:
    assert files.parse_settings({}) is None
    for settings in ("[]", "3", "no JSON", "[" * 100_000):
        assert files.parse_settings({"settings": settings}) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a rocket, neon sign", "a-rocket-neon-sign"),
        ("  Crème brûlée / ../etc/passwd ", "creme-brulee-etc-passwd"),
        ("🦊!", "image"),
        ("ロケット", "ロケット"),
        ("word " * 100, "word-word-word-word-word-word-word-word-word-word-word-word"),
        ("x" * 500, "x" * 60),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert files.slug(text) == expected


def test_slugs_fit_file_systems() -> None:
    assert len(files.slug("ロ" * 500).encode()) <= 255 - len("000000-.png.part")


def test_numbers_sort() -> None:
    assert files.numbered(7, 12, "a fox") == "007-a-fox"
    assert files.numbered(7, 10_001, "a fox") == "00007-a-fox"


def test_a_drive_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = errno.EINVAL

    def fail(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    files.write_bytes(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"
    number = errno.EIO
    with pytest.raises(OSError, match="no") as raised:
        files.write_bytes(tmp_path / "a", b"b")
    assert raised.value.errno == errno.EIO
    assert (tmp_path / "a").read_bytes() == b"a"
