"""What the user gives, checked before anything heavy is loaded or anything is written."""

import math
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from style_aligned.words import show

MAX_SIDE = 8192  # pixels
MAX_SEED = 2**32 - 1


def check_prompt(text: str, what: str) -> str:
    """Return a prompt, if it can be drawn and written into a file."""
    if not text.strip():
        raise ValueError(f"expected {what} to have at least one word, got an empty one")
    return check_text(text, what)


def check_text(text: str, what: str) -> str:
    """Return a text, which may be empty, if it can be written into a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected {what} to be UTF-8, got {text.encode(errors='replace').decode()!r}") from None
    if "\0" in text:
        raise ValueError(f"expected {what} to be a text, got one with a zero byte")
    return text


def check_model_name(name: str | None) -> None:
    """Check that the name of a model is no style file, which also ends in .safetensors."""
    if name is None or not name.endswith(".safetensors") or not Path(name).is_file():
        return
    with Path(name).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 1 << 16))
    if b'"style_aligned"' in header:
        raise ValueError(f"expected --model to be a model, got the style file {name}: give it as the first argument")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read the size of images to draw, such as `256` or `1344x768` (width x height).

    Returns:
        Height and width, as the library has them.
    """
    size = parse_pixels(text)
    if size is not None and any(side % 8 != 0 or not 64 <= side <= MAX_SIDE for side in size):
        raise ValueError(
            f"expected --size to have multiples of 8 between 64 and {MAX_SIDE} as its sides, got {size[1]}x{size[0]}"
        )
    return size


def parse_pixels(text: str | None) -> tuple[int, int] | None:
    """Read any size such as `64` or `64x48` (width x height).

    Returns:
        Height and width, as the library has them.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise ValueError(f"expected --size to be WIDTHxHEIGHT in pixels, such as 256 or 1344x768, got {text!r}")
    return int(match[2] or match[1]), int(match[1])


def check_number(
    name: str, value: float | int | None, minimum: float | int = -math.inf, maximum: float | int = math.inf
) -> None:
    """Check that a number is finite and in its range, if it is given."""
    # an integer may be too large for a float
    if value is not None and not (minimum <= value <= maximum and (isinstance(value, int) or math.isfinite(value))):
        bounds = f" of at least {minimum:.12g}" if math.isfinite(minimum) else ""
        bounds = f" of at most {maximum:.12g}" if math.isfinite(maximum) else bounds
        bounds = f" between {minimum:.12g} and {maximum:.12g}" if math.isfinite(maximum - minimum) else bounds
        kind = "a whole number" if isinstance(value, int) else "a finite number"
        raise ValueError(f"expected {name} to be {kind}{bounds}, got {value}")


def read_number(
    text: str | float | int, name: str, kind: type[Any], minimum: float | None = None, maximum: float | None = None
) -> Any:
    """Read a number.

    Args:
        text: The text, or the number.
        name: The option that it is given by.
        kind: `int` or `float`.
        minimum: The least number.
        maximum: The largest number.

    Raises:
        typer.BadParameter: If it is none, or out of its range.
    """
    try:
        number = kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise typer.BadParameter(f"expected {name} to be {whole}, got {show(text)}") from None
    if minimum is None and maximum is None:  # it has a check of its own
        return number
    try:
        check_number(name, number, -math.inf if minimum is None else minimum, math.inf if maximum is None else maximum)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return number


def read_choice(text: str, name: str, kind: type[Enum]) -> Enum:
    """Read one of the values of an enumeration.

    Args:
        text: The text, or the value.
        name: The option that it is given by.
        kind: The enumeration.

    Raises:
        typer.BadParameter: If it is none of them.
    """
    try:
        return kind(text)
    except ValueError:
        *others, last = [str(choice.value) for choice in kind]
        expected = f"{', '.join(others)} or {last}"
        raise typer.BadParameter(f"expected {name} to be {expected}, got {show(text)}") from None


def check_device(device: str, option: str = "--device") -> None:
    """Check the name of a device, as far as that can be done without PyTorch."""
    if re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?", device) is None:
        gpu = " (a GPU of NVIDIA or AMD is cuda, one of Apple mps)" if device.lower().startswith("gpu") else ""
        raise ValueError(f"expected {option} to be auto, cpu, cuda, cuda:1, mps or xpu, got {device!r}{gpu}")


def check_output_folder(folder: Path, option: str = "--output") -> None:
    """Check that files can be written in a folder, which may not exist yet."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected {option} to be a folder, got the file {folder}")
    _check_writable(folder, folder, option)


def check_output_file(path: Path, option: str = "--output") -> None:
    """Check that a file can be written.

    Args:
        path: The path of the file.
        option: The option that names it.
    """
    if path.is_dir():
        raise ValueError(f"expected {option} to be a file, got the folder {path}")
    if path.exists() and not path.is_file():
        raise ValueError(f"expected {option} to be a file, got {path}, which is a device or a pipe")
    _check_writable(path, path.parent, option)


def _check_writable(output: Path, folder: Path, option: str) -> None:
    existing = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), Path("/"))
    if not existing.is_dir():
        raise ValueError(f"expected {option} {output} to be in a folder, got the file {existing} on its way")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"expected {option} {output} to be writable, got the folder {existing} that is not")


def reject(given: Mapping[str, object], reason: str) -> None:
    """Refuse options that have no effect beside others."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise typer.BadParameter(f"expected no {', '.join(names)} {reason}")
