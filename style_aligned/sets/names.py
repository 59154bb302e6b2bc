"""Names of images: those of their files, and how people call them."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PureWindowsPath

from style_aligned.files import slug
from style_aligned.sets.records import SetError, SetImage

MAX_NAME = 120  # bytes: names of replaced images are longer, and file systems take 255
OWN_NAMES = {"reference", "reference-mask", "sheet", "set", "style"}


def make_name(image_id: int, text: str, *, digits: int = 3) -> str:
    """Return the name for an image's file: its id, and what it shows.

    Example:
        >>> make_name(7, "a rocket, neon sign")
        '007-a-rocket-neon-sign'
    """
    return f"{image_id:0{digits}d}-{slug(text)}"


def plain_name(image: SetImage) -> str:
    """Return the name of an image's file without its number."""
    number, hyphen, rest = image.name.partition("-")
    return rest if hyphen and rest and number.isdigit() and int(number) == image.id else image.name


def check_name(name: str, what: str = "the name") -> str:
    """Return a name that people gave an image, without the ending of its file.

    Args:
        name: The name.
        what: What an error calls it.

    Raises:
        ValueError: If files cannot have it on all systems, or it is that of another file of the set.
    """
    stem = name.strip().removesuffix(".png")
    is_text = stem.isprintable() and stem.encode(errors="replace").decode() == stem
    if not stem or not is_text or re.search(r'[\\/:*?"<>|]', stem) or stem[0] in ".-" or stem[-1] in ". ":
        raise ValueError(f"expected {what} to be a file's name, without folders or any of \\/:*?\"<>|, got {name!r}")
    if len(stem.encode()) > MAX_NAME:
        raise ValueError(f"expected {what} to be at most {MAX_NAME} bytes long, got {len(stem.encode())}")
    if stem.casefold() in OWN_NAMES or PureWindowsPath(stem).stem.upper() in RESERVED:
        raise ValueError(f"expected another name for {what} than {stem!r}: that one is taken")
    return stem


RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
"""What Windows takes for devices."""


def free_name(name: str, taken: Iterable[str]) -> str:
    """Return a name that is not taken yet: the name itself, or with a number after it.

    Args:
        name: The name, without folder and ending.
        taken: The names that are, in lower case.
    """
    taken = taken if isinstance(taken, set | frozenset) else set(taken)
    number = 1
    free = name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def find_image(images: Sequence[SetImage], name: str, what: str = "the set has") -> SetImage:
    """Find an image by the name of its file, its id, or a part of its name or prompt that no other has.

    Args:
        images: The images to look at.
        name: What people call it.
        what: What an error says before the names of those images.

    Raises:
        SetError: If none fits, or more than one.
    """
    found = fitting_images(images, name)
    if len(found) > 1:
        some = ", ".join(image.name for image in found[:4])
        raise SetError(f"expected {name!r} to name one image, got {len(found)} that it fits: {some}: take its id")
    if not found:
        raise SetError(f"no image is called {name!r}: {what} {some_names(images)}")
    return found[0]


def some_names(images: Sequence[SetImage]) -> str:
    """Return the names of the first few images, for an error."""
    return (", ".join(image.name for image in images[:4]) or "none") + (", …" if len(images) > 4 else "")


def fitting_images(images: Sequence[SetImage], name: str) -> list[SetImage]:
    """Return the images that a name fits: those that have it, else those of which it is the id, a part, and so on.

    Args:
        images: The images to look at.
        name: What people call it.
    """
    wanted = name.strip().removesuffix(".png").casefold()
    ways: tuple[Callable[[SetImage], bool], ...] = (
        lambda image: image.name.casefold() == wanted,
        lambda image: wanted.isdigit() and image.id == int(wanted),
        lambda image: plain_name(image).casefold() == wanted,
        lambda image: image.prompt.casefold() == wanted,
        lambda image: bool(wanted) and re.search(rf"\b{re.escape(wanted)}\b", _said(image)) is not None,
        lambda image: bool(wanted) and wanted in _said(image),
    )
    for fits in ways:
        if found := [image for image in images if fits(image)]:
            return found
    return []


def _said(image: SetImage) -> str:
    """Return the words of an image's prompt and name."""
    return f"{image.prompt}\n{image.name.replace('-', ' ')}".casefold()


def find_images(images: Sequence[SetImage], names: Iterable[str]) -> list[SetImage]:
    """Find several images, each once, as `find_image` does.

    Raises:
        SetError: If a name fits none, or more than one.
    """
    found = [find_image(images, name) for name in names]
    return list({image.id: image for image in found}.values())
