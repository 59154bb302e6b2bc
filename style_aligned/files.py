"""Images on disk: whole or not at all, with their settings inside, and the same bytes for the same image."""

import errno
import hashlib
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from style_aligned.words import words

SLUG_LENGTH = 60  # bytes
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# what Pillow raises for files that are damaged, no image, or one of too many pixels
UNREADABLE = (*BOMBS, OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)
DISTRIBUTIONS = ("style-aligned", "refiners", "torch")


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file: under the name of `<path>.part` until it is complete, and on the disk.

    Args:
        path: The path of the file. Its folder is made if need be; what is there is replaced at the end.
        content: What to write, whole or in parts.

    Raises:
        OSError: If that is not possible, as on a full disk. It names the file, and no part of it is left then.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            sync(file)
        part.replace(path)
    except BaseException as error:  # an interruption too
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # writing to an open file does not tell
        raise


def encode_png(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """Encode an image as PNG.

    Args:
        image: The image.
        texts: What to put into its text chunks, by keyword.

    Returns:
        The same bytes for the same image and texts: they hold no date.
    """
    info = PngInfo()
    for keyword, text in sorted((texts or {}).items()):
        info.add_itxt(keyword, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str] | None = None) -> None:
    """Write an image as PNG, whole or not at all.

    Args:
        path: The path of the file.
        image: The image.
        texts: What to put into its text chunks, by keyword.

    Raises:
        OSError: If it cannot be written. What was there before is still there then.
    """
    write_bytes(path, encode_png(image, texts))


def read_texts(path: Path) -> dict[str, str]:
    """Read the text chunks of a PNG file.

    Args:
        path: The path of the file.

    Returns:
        The texts by keyword: none if the file is no PNG, or cannot be read.
    """
    try:
        with without_warnings(), Image.open(path, formats=["PNG"]) as image:
            if "settings" not in image.info:
                image.load()  # other programs may put them behind the pixels
            return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except UNREADABLE:
        return {}


def open_image(path: Path) -> Image.Image:
    """Read an image, all of its pixels.

    Args:
        path: The path of the file.

    Raises:
        ValueError: If it is no image, a damaged one, or one of more pixels than Pillow takes for safe.
        OSError: If there is no such file, or it may not be read.
    """
    try:
        with without_warnings():
            image = Image.open(path)
            with image:
                return image.convert("RGB")
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        found = "too large" if isinstance(error, BOMBS) else "damaged"
        raise ValueError(f"expected {path} to be a whole image, got one that is {found}: {error}") from None


def is_whole_image(path: Path) -> bool:
    """Return whether a file is an image, all of whose pixels can be read."""
    try:
        open_image(path)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def without_warnings() -> Generator[None, None, None]:
    """Have Pillow raise for an image of too many pixels, one of `UNREADABLE`, where it would warn, and never warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def describe_picture(kind: str) -> dict[str, str]:
    """Put what a picture of many images is into texts for its file, by which it is known later.

    Args:
        kind: What it is, such as a contact sheet.

    Returns:
        The texts by keyword.
    """
    return {"kind": kind, "versions": json.dumps(versions(), sort_keys=True)}


def is_replaceable(path: Path, kind: str) -> bool:
    """Return whether a picture may be written somewhere: nothing is there, or one of its kind.

    Args:
        path: The path of the file.
        kind: What it is, as given to `describe_picture`.
    """
    return not path.exists() or read_texts(path).get("kind") == kind


def describe_image(prompt: str, seed: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """Put what an image was made of into texts for its file.

    Args:
        prompt: The prompt.
        seed: The seed of its noise.
        settings: What else it takes to make it again.

    Returns:
        The texts by keyword.
    """
    return {
        "prompt": prompt,
        "seed": str(seed),
        "settings": json.dumps(settings, sort_keys=True, ensure_ascii=False),
        "versions": json.dumps(versions(), sort_keys=True),
    }


def parse_settings(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Take the settings of an image from the texts of its file.

    Args:
        texts: The texts by keyword.

    Returns:
        The settings, or None if there are none, as in the files of other programs.
    """
    try:
        settings: Any = json.loads(texts["settings"])
    except (KeyError, ValueError, RecursionError):
        return None
    return cast(dict[str, Any], settings) if isinstance(settings, dict) else None


@cache
def versions() -> dict[str, str]:
    """Return the versions of what the pixels depend on."""
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its sources
            found[name] = "unknown"
    return found


def slug(text: str) -> str:
    """Turn a text into a piece of a file name.

    Args:
        text: The text.

    Returns:
        Its words in lower case with hyphens between them, cut off after a whole word where it can be.

    Example:
        >>> slug("A rocket, neon sign!")
        'a-rocket-neon-sign'
    """
    hyphenated = "-".join(words(text))
    if len(hyphenated.encode()) > SLUG_LENGTH:
        hyphenated = hyphenated.encode()[: SLUG_LENGTH + 1].decode(errors="ignore")
        start, hyphen, _ = hyphenated.rpartition("-")
        hyphenated = start if hyphen else hyphenated[:SLUG_LENGTH]
    return hyphenated or "image"


def numbered(index: int, count: int, text: str) -> str:
    """Return the name for one of several files, such that they sort in their order.

    Args:
        index: Which one it is.
        count: How many there are.
        text: What it shows.

    Example:
        >>> numbered(0, 12, "a rocket, neon sign")
        '000-a-rocket-neon-sign'
    """
    return f"{index:0{max(3, len(str(count - 1)))}d}-{slug(text)}"


def sync(file: BinaryIO) -> None:
    """Have a file written to the disk: a machine that loses power might keep its name, and not what is in it."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSYNCED:  # what some network drives say
            raise


def digest_picture(image: Image.Image) -> str:
    """Return the SHA-256 of a picture's size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
