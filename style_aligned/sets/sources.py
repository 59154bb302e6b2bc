"""Where a style comes from: the folder of a set, a style file, a picture, or a prompt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from style_aligned.files import parse_settings, read_texts
from style_aligned.sets.image_set import is_set, read_image_set
from style_aligned.sets.prompts import check_prompt
from style_aligned.sets.set_file import STYLE_FILE
from style_aligned.words import is_url

STYLE_ENDING = ".safetensors"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".svg")
EXPECTED = "a set's folder, a style file, a picture or a prompt"
ENDINGS = (STYLE_ENDING, *PICTURES, ".json", ".txt", ".csv", ".jsonl", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True)
class Source:
    """Where a style comes from.

    Attributes:
        kind: `prompt`, `style` for a style file, `picture`, or `blend` of several style files.
        text: The prompt, or what people called the file.
        path: The path of the style file or the picture.
        model: The name of the model of the set that the style is from. None if it is not known.
        prefix: The prefix of the set's prompts.
        suffix: The suffix of the set's prompts.
        parts: The style files of a blend, with their weights.
        extras: What goes beside StyleAligned in the set that the style is from.
    """

    kind: str
    text: str
    path: Path | None = None
    model: str | None = None
    prefix: str = ""
    suffix: str = ""
    parts: tuple[tuple[Path, float], ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """A short name for the folder of its set."""
        if self.path is None or self.kind == "blend":
            return self.text
        return self.path.parent.name if self.path.name == STYLE_FILE else self.path.stem


def find_source(text: str) -> Source:
    """Find out what the text for a style means.

    Args:
        text: A set's folder, a style file with or without its ending, a picture, or else a prompt.

    Raises:
        ValueError: If it looks like a path, and is none of these.
    """
    if (source := _find_file(text)) is not None:
        return source
    if is_url(text):
        raise ValueError(f"expected a file on this machine, got {text!r}: download it first")
    if looks_like_path(text):
        raise ValueError(
            f"expected {EXPECTED}, got {text!r}, which is not there (a prompt that looks like a file is given by"
            " --reference)"
        )
    return Source("prompt", check_prompt(text, "the reference"))


def find_style(text: str, *, pictures: bool = False) -> Source:
    """Find the style file that a text means: the file, or that of a set's folder.

    Args:
        text: The text.
        pictures: Whether it may also mean a picture.

    Raises:
        ValueError: If there is none.
    """
    source = _find_file(text)
    if source is None or (source.kind == "picture" and not pictures):
        expected = "a style file, a set's folder or a picture" if pictures else "a style file or a set's folder"
        found = f"{text!r}, which is not there" if source is None else f"the picture {text}: make a style of it first"
        raise ValueError(f"expected {expected}, got {found}")
    return source


def find_blend(texts: Sequence[str]) -> Source:
    """Find the style files of a blend, each with its weight behind a colon, such as `fox.safetensors:0.7`.

    Raises:
        ValueError: If there is none, one is no style, or a weight is none.
    """
    parts: list[tuple[Source, float]] = []
    for text in texts:
        name, colon, weight = text.rpartition(":")
        is_weight = colon and re.fullmatch(r"-?[\d.]+|nan|inf", weight) is not None
        source = find_style(name if is_weight else text)
        try:
            parts.append((source, float(weight) if is_weight else 1.0))
        except ValueError:
            raise ValueError(f"expected a number as the weight behind the colon, got {text!r}") from None
    paths = [source.path for source, _ in parts]
    if twice := next((source.text for source, _ in parts if paths.count(source.path) > 1), None):
        raise ValueError(f"expected each style of a blend once, got {twice!r} twice")
    if len(parts) < 2:
        raise ValueError(f"expected at least two --style to blend, got {len(parts)}")
    first = parts[0][0]
    files = tuple((source.path, weight) for source, weight in parts if source.path is not None)
    name = " and ".join(source.name for source, _ in parts)
    return replace(first, kind="blend", text=name, parts=files)


def looks_like_path(text: str) -> bool:
    """Return whether a text looks like a path: it has no white space, and a separator or a known ending."""
    return re.search(r"\s", text) is None and ("/" in text or "\\" in text or text.lower().endswith(ENDINGS))


def _find_file(text: str) -> Source | None:
    if "\0" in text or len(text.encode(errors="replace")) > 1000:
        return None
    path = Path(text)
    try:
        if path.is_dir():
            return _find_in_folder(path)
        if path.suffix.lower() in PICTURES and path.is_file():
            beside = path.with_suffix(STYLE_ENDING)
            is_candidate = beside.is_file() and parse_settings(read_texts(path)) is not None  # of `explore`
            return Source("style", text, beside) if is_candidate else Source("picture", text, path)
        if path.is_file():
            return Source("style", text, path)
        named = path.with_name(path.name + STYLE_ENDING) if path.name else path
        return Source("style", text, named) if named.is_file() else None
    except OSError:  # such as a name that is too long: a prompt
        return None


def _find_in_folder(folder: Path) -> Source:
    if (folder / STYLE_FILE).is_file():
        if not is_set(folder):
            return Source("style", str(folder), folder / STYLE_FILE)
        state = read_image_set(folder).state
        return Source(
            "style", str(folder), folder / STYLE_FILE, state.model, state.prefix, state.suffix, extras=state.extras
        )
    if is_set(folder):
        raise ValueError(f"{folder} is a set whose reference is not drawn yet: style-aligned add {folder}")
    if styles := sorted(folder.glob(f"*{STYLE_ENDING}")):
        count = f"{len(styles)} style{'' if len(styles) == 1 else 's'}"
        raise ValueError(f"{folder} holds {count}: take one of them, such as {styles[0].with_suffix('')}")
    raise ValueError(f"{folder} is a folder without a style: expected {EXPECTED}")
