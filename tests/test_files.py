import errno
import json
import os
import re
import resource
import struct
import warnings
import zlib
from collections.abc import Generator
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


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")  # as from an open file: without its name

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_bytes(tmp_path / "fox.png", b"fox")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "fox.png"))
    assert list(tmp_path.iterdir()) == []


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


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def header(width: int, height: int) -> bytes:
    return files.PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        header(8, 8) + chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"a fox")),
        header(8, 8) + chunk(b"iTXt", b"prompt\0\0\0"),
        header(8, 8) + chunk(b"iTXt", b"prompt"),
        header(8, 8) + bytes(1 << 20),
        header(8, 8) + b"\xff\xff\xff\xffiDAT",
    ],
)
def test_other_files_have_no_texts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fox.png").write_bytes(content)
    assert files.read_texts(tmp_path / "fox.png") == {}
    assert files.is_damaged(tmp_path / "fox.png")


def test_folders_and_missing_files_have_no_texts(tmp_path: Path) -> None:
    assert files.read_texts(tmp_path) == {}
    assert files.read_texts(tmp_path / "missing.png") == {}


def test_texts_are_those_that_pillow_reads(tmp_path: Path, image: Image.Image) -> None:
    info = PngInfo()
    info.add_text("settings", "{} ©")
    info.add_itxt("prompt", "ネオン", lang="en", tkey="Prompt")
    image.save(tmp_path / "fox.png", pnginfo=info)
    with Image.open(tmp_path / "fox.png") as opened:
        expected = dict(opened.info)
    assert files.read_texts(tmp_path / "fox.png") == expected == {"settings": "{} ©", "prompt": "ネオン"}


def test_cut_off_files_are_told(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    whole = files.encode_png(image, {"prompt": "a fox"})
    cut_off = [
        whole[:-1],
        whole[:200],
        whole[:5],
        b"",
        bytes(1),
        bytes(len(whole)),
        whole[:4096] + bytes(len(whole) - 4096),
        bytes(4096) + whole[4096:],
    ]
    for content in cut_off:
        path.write_bytes(content)
        assert files.is_cut_off(path)
    others = [whole, whole + b"what another program wrote behind its end", b"text", bytes(12) + b"text", whole[1:]]
    for content in others:
        path.write_bytes(content)
        assert not files.is_cut_off(path)


def test_damage_is_told_and_named(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    whole = files.encode_png(image, {"prompt": "a fox"})
    path.write_bytes(whole)
    assert not files.is_damaged(path)
    assert files.open_image(path).tobytes() == image.tobytes()
    start = whole.index(b"IDAT")
    end = chunk(b"IEND", b"")
    damaged = [
        whole[: start + 2000] + bytes(4000) + whole[start + 6000 :],
        whole[: start + 100] + bytes([whole[start + 100] ^ 1]) + whole[start + 101 :],
        whole[: start + 100],
        header(8, 8) + end,
        b"text",
        b"",
    ]
    for content in damaged:
        path.write_bytes(content)
        assert files.is_damaged(path)
        with pytest.raises(ValueError, match=f"expected {re.escape(str(path))} to be a whole image, got one"):
            files.open_image(path)
    path.write_bytes(header(8, 8) + chunk(b"IDAT", b"no zlib") + end)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        files.open_image(path)
    with pytest.raises(FileNotFoundError):
        files.open_image(tmp_path / "missing.png")


@pytest.mark.parametrize("place", [b"versions", b"IHDR", b"IEND"])
def test_a_damaged_image_is_known_by_its_texts(tmp_path: Path, image: Image.Image, place: bytes) -> None:
    path = tmp_path / "fox.png"
    texts = files.describe_image("a fox", 7, {"steps": 30})
    whole = bytearray(files.encode_png(image, texts))
    whole[whole.index(place) + (len(b"versions") + 9 if place == b"versions" else 4)] ^= 1
    path.write_bytes(whole)
    assert not files.is_cut_off(path) or place == b"IEND"
    assert files.difference(files.read_texts(path), texts) is None
    assert files.is_damaged(path)


@pytest.mark.parametrize("place", [b"a fox", b'{"steps', b"30}", b"settings"])
def test_damaged_texts_are_not_taken_for_those_of_this_run(tmp_path: Path, image: Image.Image, place: bytes) -> None:
    path = tmp_path / "fox.png"
    texts = files.describe_image("a fox", 7, {"steps": 30})
    whole = bytearray(files.encode_png(image, texts))
    for value in (0, 0xFF, ord("4")):
        whole[whole.index(place)] = value
        path.write_bytes(whole)
        assert not files.is_cut_off(path)
        assert files.difference(files.read_texts(path), texts) is not None
        whole = bytearray(files.encode_png(image, texts))


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_images_of_too_many_pixels(tmp_path: Path, side: int) -> None:
    path = tmp_path / "fox.png"
    texts = chunk(b"iTXt", b"prompt\0\0\0\0\0a fox")
    path.write_bytes(header(side, side) + texts + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=f"to be a whole image, got one that is too large: .*{side**2} pixels"):
        files.open_image(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert files.read_texts(path) == {"prompt": "a fox"}  # nothing is decoded
        assert not files.is_damaged(path)
        with pytest.raises(ValueError, match="too large"):
            files.open_image(path)
    assert caught == []


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
    path.write_bytes(path.read_bytes()[:-10])
    assert files.is_replaceable(path, "contact sheet")
    path.write_bytes(bytes(len(path.read_bytes())))
    assert files.is_replaceable(path, "contact sheet")
    files.write_png(path, image)
    assert not files.is_replaceable(path, "contact sheet")
    path.write_bytes(b"my own notes")
    assert not files.is_replaceable(path, "contact sheet")


def test_differences_are_named() -> None:
    expected = files.describe_image("a fox", 1, {"steps": 30, "size": "64x64"})
    assert files.difference(expected, expected) is None
    other_versions = {**expected, "versions": "{}"}
    assert files.difference(other_versions, expected) is None
    other_steps = files.describe_image("a fox", 1, {"steps": 20, "size": "64x64"})
    assert files.difference(other_steps, expected) == "it has steps=20, not 30"
    other_prompt = files.describe_image("a cat", 1, {"steps": 30, "size": "64x64"})
    assert files.difference(other_prompt, expected) == "it has prompt='a cat', not 'a fox'"
    other_seed = files.describe_image("a fox", 2, {"steps": 30, "size": "64x64"})
    assert files.difference(other_seed, expected) == "it has seed='2', not '1'"
    assert files.difference({}, expected) == "it holds no settings"
    for settings in ("[]", "3", "no JSON", "[" * 100_000):
        assert files.difference({**expected, "settings": settings}, expected) == "its settings are not a JSON object"
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


def test_a_file_that_starts_with_zeros_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "disk.png"
    path.write_bytes(bytes(3 << 20))
    assert files.is_cut_off(path)
    path.write_bytes(bytes(3 << 20) + b"CD001")
    assert not files.is_cut_off(path)
    assert not files.is_replaceable(path, "contact sheet")


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
