"""What the user gives, checked before anything heavy is loaded or anything is written."""

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import typer

MAX_SIDE = 8192  # pixels
MAX_SEED = 2**32 - 1
LINE_END = r"\r\n|\n|\r"  # not splitlines(): a prompt may hold one of Unicode's other line separators


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the seed of its image if it has one of its own."""

    text: str
    seed: int | None = None


def check_prompt(text: str, what: str) -> str:
    """Check that a prompt can be drawn and written into a file.

    Args:
        text: The prompt.
        what: Where it comes from.
    """
    if not text.strip():
        raise ValueError(f"expected {what} to have at least one word, got an empty one")
    check_text(text, what)
    return text


def check_text(text: str, what: str) -> str:
    """Check that a text, which may be empty, can be written into a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected {what} to be UTF-8, got {text.encode(errors='replace').decode()!r}") from None
    if "\0" in text:
        raise ValueError(f"expected {what} to be a text, got one with a zero byte")
    return text


def collect_prompts(prompts: Sequence[str], files: Sequence[str]) -> list[Prompt]:
    """Collect the prompts: those given one by one, then those of files.

    Args:
        prompts: The prompts given one by one.
        files: The paths of files, or `-` for standard input, which can be read once.
    """
    if files.count("-") > 1:
        raise ValueError(f"expected --prompts - once at most, got it {files.count('-')} times")
    collected = [Prompt(check_prompt(text, "--prompt")) for text in prompts]
    for file in files:
        collected += read_prompts(file)
    if not collected:
        raise ValueError("expected at least one --prompt, or --prompts with a file, got none")
    return collected


def read_prompts(file: str) -> list[Prompt]:
    """Read prompts: one a line, or JSON objects with a `prompt` and maybe a `seed` if the name ends in `.jsonl`.

    Blank lines are left out. On standard input, a first line that starts with a brace tells JSON.

    Args:
        file: The path of the file, or `-` for standard input.

    Raises:
        ValueError: If it is `.json`, is not UTF-8, has a bad line, which is named by its number, or has no prompts.
    """
    name = "standard input" if file == "-" else file
    if Path(file).suffix.lower() == ".json":  # whose brackets would be prompts
        raise ValueError(f"expected --prompts to be .jsonl, with a JSON object a line, or a text file, got {file}")
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        content = error.object  # without a byte order mark, as is the place of the error
        line = len(re.split(LINE_END.encode(), content[: error.start]))
        raise ValueError(f"{name}, line {line}: expected UTF-8, got the byte 0x{content[error.start]:02x}") from None
    lines = [(number, line.strip()) for number, line in enumerate(re.split(LINE_END, text), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise ValueError(f"{name}: expected at least one prompt, got an empty file")
    is_json = Path(file).suffix.lower() in (".jsonl", ".ndjson") or (file == "-" and lines[0][1].startswith("{"))
    return [_read_line(line, f"{name}, line {number}", is_json=is_json) for number, line in lines]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read a size such as `256` or `1344x768` (width x height).

    Returns:
        Height and width, as the library has them.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if match is None:
        raise ValueError(f"expected --size to be WIDTHxHEIGHT in pixels, such as 256 or 1344x768, got {text!r}")
    width = int(match[1])
    height = int(match[2] or width)
    if any(side % 8 != 0 or not 64 <= side <= MAX_SIDE for side in (width, height)):
        raise ValueError(
            f"expected --size to have multiples of 8 between 64 and {MAX_SIDE} as its sides, got {width}x{height}"
        )
    return height, width


def check_number(
    name: str, value: float | int | None, minimum: float | int = -math.inf, maximum: float | int = math.inf
) -> None:
    """Check that a number is finite and in its range, if it is given: typer lets NaN pass any range."""
    # the bounds first: an integer may be too large for a float
    if value is not None and not (minimum <= value <= maximum and math.isfinite(value)):
        bounds = f" of at least {minimum:.12g}" if math.isfinite(minimum) else ""
        bounds = f" of at most {maximum:.12g}" if math.isfinite(maximum) else bounds
        bounds = f" between {minimum:.12g} and {maximum:.12g}" if math.isfinite(maximum - minimum) else bounds
        raise ValueError(f"expected {name} to be a finite number{bounds}, got {value}")


def check_device(device: str, option: str = "--device") -> None:
    """Check the name of a device, as far as that can be done without PyTorch."""
    if re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d{1,3})?", device) is None:
        raise ValueError(f"expected {option} to be cpu, cuda, cuda:1, mps or xpu, got {device!r}")


def check_output_folder(folder: Path) -> None:
    """Check that files can be written in a folder, which may not exist yet."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected --output to be a folder, got the file {folder}")
    _check_writable(folder, folder, "--output")


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


def _read_line(line: str, where: str, *, is_json: bool) -> Prompt:
    if not is_json:
        return Prompt(check_prompt(line, where))
    try:
        loaded: Any = json.loads(line)
    except (ValueError, RecursionError):
        loaded = None
    entry = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
    if not isinstance(entry.get("prompt"), str):
        raise ValueError(f'{where}: expected a JSON object such as {{"prompt": "a fox"}}, got {line[:80]!r}')
    if unknown := sorted(set(entry) - {"prompt", "seed"}):
        raise ValueError(f"{where}: expected no keys but prompt and seed, got {unknown[0]!r}")
    seed = entry.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED):
        raise ValueError(f"{where}: expected seed to be a whole number from 0 to {MAX_SEED}, got {seed!r}")
    return Prompt(check_prompt(entry["prompt"], where), seed)


def reject(given: Mapping[str, object], reason: str) -> None:
    """Refuse options that have no effect beside others."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise typer.BadParameter(f"expected no {', '.join(names)} {reason}")
