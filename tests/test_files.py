import errno
import json
import re
import resource
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_interruption_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "fox.png", b"fox")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_other_files_have_no_texts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fox.png").write_bytes(content)
    assert files.read_texts(tmp_path / "fox.png") == {}


def test_cut_off_files_are_told(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    whole = files.encode_png(image, {"prompt": "a fox"})
    for content, is_cut_off in ((whole, False), (whole[:-1], True), (whole[:200], True), (b"", True), (b"text", False)):
        path.write_bytes(content)
        assert files.is_cut_off(path) == is_cut_off
    path.write_bytes(whole + b"what another program wrote behind its end")
    assert not files.is_cut_off(path)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_damage_is_told_and_named(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "fox.png"
    whole = files.encode_png(image, {"prompt": "a fox"})
    path.write_bytes(whole)
    assert not files.is_damaged(path)
    assert files.open_image(path).tobytes() == image.tobytes()
    start = whole.index(b"IDAT")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    end = chunk(b"IEND", b"")
    damaged = [
        whole[: start + 2000] + bytes(4000) + whole[start + 6000 :],
        whole[: start + 100] + bytes([whole[start + 100] ^ 1]) + whole[start + 101 :],
        whole[: start + 100],
        files.PNG_START + header + end,
        b"text",
        b"",
    ]
    for content in damaged:
        path.write_bytes(content)
        assert files.is_damaged(path)
        with pytest.raises(ValueError, match=f"expected {re.escape(str(path))} to be a whole image, got one"):
            files.open_image(path)
    path.write_bytes(files.PNG_START + header + chunk(b"IDAT", b"no zlib") + end)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        files.open_image(path)
    with pytest.raises(FileNotFoundError):
        files.open_image(tmp_path / "missing.png")


def test_only_pictures_of_a_kind_are_replaceable(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "sheet.png"
    assert files.is_replaceable(path, "contact sheet")
    files.write_png(path, image, files.describe_picture("contact sheet"))
    assert files.is_replaceable(path, "contact sheet")
    assert not files.is_replaceable(path, "demonstration")
    path.write_bytes(path.read_bytes()[:-10])
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
