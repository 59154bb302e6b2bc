"""Prompts, as they are given: one by one, in files, or on standard input."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from style_aligned.sets.inputs import FIELDS as INPUTS, check_inputs
from style_aligned.sets.names import check_name
from style_aligned.sets.records import EMPTY, MAX_SEED

LINE_END = r"\r\n|\n|\r"  # not splitlines(): a prompt may hold one of Unicode's other line separators
FIELDS = ("prompt", "seed", "name", *INPUTS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt.

    Attributes:
        text: The prompt, with prefix and suffix.
        seed: The seed of its image. None lets the set choose.
        name: The name of its image's file, without ending. None makes one of the prompt.
        inputs: What else goes into it, as `style_aligned.sets.inputs` has it.
        core: The prompt without prefix and suffix, of which its file's name is made. Empty if it has none.
    """

    text: str
    seed: int | None = None
    name: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    core: str = ""


def collect_prompts(
    texts: Iterable[str], files: Sequence[str] = (), *, prefix: str = "", suffix: str = ""
) -> list[Prompt]:
    """Collect prompts: those given one by one, then those of files.

    Args:
        texts: The prompts given one by one.
        files: The paths of files, or `-` for standard input, which can be read once.
        prefix: What to put before each prompt that does not start with it.
        suffix: What to put after each prompt that does not end with it.

    Raises:
        ValueError: If a prompt is empty or no text, or a file holds none.
    """
    if files.count("-") > 1:
        raise ValueError(f"expected --prompts - once at most, got it {files.count('-')} times")
    prompts = [Prompt(check_prompt(text, "a prompt")) for text in texts]
    for file in files:
        prompts += read_prompts(file)
    return [add_affixes(prompt, prefix, suffix) for prompt in prompts]


def add_affixes(prompt: Prompt, prefix: str, suffix: str) -> Prompt:
    """Put a prefix before a prompt and a suffix after it, unless they are there already."""
    core = prompt.text
    if prefix and core.startswith(prefix):
        core = core[len(prefix) :]
    if suffix and core.endswith(suffix):
        core = core[: -len(suffix)]
    return replace(prompt, text=f"{prefix}{core}{suffix}", core=core) if core.strip() else prompt


def check_prompt(text: str, what: str) -> str:
    """Return a prompt, if it can be drawn and written into a file.

    Args:
        text: The prompt.
        what: Where it comes from.

    Raises:
        ValueError: If it has no word, or is no text.
    """
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


def read_prompts(file: str) -> list[Prompt]:
    """Read prompts from a file, by its ending.

    `.jsonl` has JSON objects with `prompt`, `seed`, `name`, `init`, `init_strength`, `init_mask` and `control`, `.csv`
    columns of these names. A list in `control` has a picture for each control model; in `.csv`, `|` is between them.
    Paths of pictures start from the file's folder. Everything else is text, with a prompt a
    line; blank lines and lines that start with `#` are left out. On standard input, a first line that starts with a
    brace tells JSON.

    Args:
        file: The path of the file, or `-` for standard input.

    Raises:
        ValueError: If it is not UTF-8, has a bad line, which is named by its number, or has no prompts.
    """
    name = "standard input" if file == "-" else file
    ending = Path(file).suffix.lower()
    if ending == ".json":  # whose brackets would be prompts
        raise ValueError(f"expected --prompts to be .txt, .csv or .jsonl, with a JSON object a line, got {file}")
    text = _decode(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes(), name)
    lines = [(number, line.strip()) for number, line in enumerate(re.split(LINE_END, text), start=1)]
    lines = [(number, line) for number, line in lines if line]
    folder = Path() if file == "-" else Path(file).parent
    if ending == ".csv":
        prompts = _read_csv(text, name, folder)
    elif ending in (".jsonl", ".ndjson") or (file == "-" and lines and lines[0][1].startswith("{")):
        prompts = [_read_json(line, f"{name}, line {number}", folder) for number, line in lines]
    else:
        prompts = [
            Prompt(check_prompt(line, f"{name}, line {number}")) for number, line in lines if not line.startswith("#")
        ]
    if not prompts:
        raise ValueError(f"{name}: expected at least one prompt, got none")
    return prompts


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        content = error.object  # without a byte order mark, as is the place of the error
        line = len(re.split(LINE_END.encode(), content[: error.start]))
        raise ValueError(f"{name}, line {line}: expected UTF-8, got the byte 0x{content[error.start]:02x}") from None


def _read_csv(text: str, name: str, folder: Path) -> list[Prompt]:
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    header = [column.strip() for column in rows.fieldnames or ()]
    if "prompt" not in header or set(header) - set(FIELDS):
        raise ValueError(f"{name}: expected columns among {', '.join(FIELDS)} in line 1, got {', '.join(header)}")
    rows.fieldnames = header
    prompts: list[Prompt] = []
    try:
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if None in row:
                raise ValueError(
                    f"{where}: expected {len(header)} columns, got more: a prompt with commas needs quotes"
                )
            entry: dict[str, Any] = {key: value.strip() for key, value in row.items() if value and value.strip()}
            if entry:
                seed = entry.get("seed")
                entry["seed"] = int(seed) if seed is not None and re.fullmatch(r"\d{1,10}", seed) else seed
                if re.fullmatch(r"\d*\.?\d+", entry.get("init_strength", "")):
                    entry["init_strength"] = float(entry["init_strength"])
                if "control" in entry:
                    entry["control"] = [path.strip() for path in entry["control"].split("|")]
                prompts.append(_make_prompt(entry, where, folder))
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: {error}") from None
    return prompts


def _read_json(line: str, where: str, folder: Path) -> Prompt:
    try:
        loaded: Any = json.loads(line)
    except (ValueError, RecursionError):
        loaded = None
    if not isinstance(loaded, dict):
        raise ValueError(f'{where}: expected a JSON object such as {{"prompt": "a fox"}}, got {line[:80]!r}')
    return _make_prompt(cast(dict[str, Any], loaded), where, folder)


def _make_prompt(entry: dict[str, Any], where: str, folder: Path) -> Prompt:
    if unknown := sorted(set(entry) - set(FIELDS)):
        raise ValueError(f"{where}: expected no keys but {', '.join(FIELDS)}, got {unknown[0]!r}")
    text, seed, name = (entry.get(key) for key in FIELDS[:3])
    if not isinstance(text, str):
        raise ValueError(f'{where}: expected a prompt, as in {{"prompt": "a fox"}}, got {text!r}')
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED):
        raise ValueError(f"{where}: expected seed to be a whole number from 0 to {MAX_SEED}, got {seed!r}")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{where}: expected name to be a text, got {name!r}")
    try:
        inputs = check_inputs({key: entry.get(key) for key in INPUTS}, folder)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Prompt(check_prompt(text, where), seed, name if name is None else check_name(name, where), inputs)
