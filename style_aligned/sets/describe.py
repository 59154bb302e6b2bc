"""What there is to say of a set, of candidates and of a style file, for people and for programs."""

import json
from pathlib import Path
from typing import Any

from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.plan import find_missing
from style_aligned.sets.records import Drawing, SetImage
from style_aligned.sets.set_file import SHEET_FILE


def describe_set(image_set: ImageSet) -> dict[str, Any]:
    """Return what a set consists of, as JSON has it."""
    state = image_set.state
    missing = find_missing(image_set)
    states = {image.id: "missing" for image in missing.images} | {image.id: "edited" for image in missing.edited}
    sheet = image_set.folder / SHEET_FILE
    images = [
        _describe_image(image_set, image, states.get(image.id, "there")) for image in (state.reference, *state.current)
    ]
    return {
        "kind": "set",
        "folder": str(image_set.folder),
        "reference": images[0],
        "model": state.model,
        "prefix": state.prefix,
        "suffix": state.suffix,
        "settings": image_set.settings_of(state.reference.drawing),
        "sheet": str(sheet) if sheet.is_file() else None,
        "images": images[1:],
        "removed": [
            _describe_image(image_set, image, "removed")
            for _, image in sorted(state.images.items())
            if image.is_removed
        ],
    }


def _describe_image(image_set: ImageSet, image: SetImage, state: str) -> dict[str, Any]:
    if image.id < 0:
        state = "there" if image_set.path(image).is_file() else "missing"
    described = {
        "id": image.id,
        "name": image.name,
        "prompt": image.prompt,
        "seed": image.drawing.seed,
        "file": str(image_set.path(image)),
        "state": state,
        "options": dict(image.drawing.options),
        "unaligned": str(image_set.folder / image.drawing.unaligned) if image.drawing.unaligned else None,
        "replaced": [_describe_drawing(image_set, drawing) for drawing in image.replaced],
    }
    if image.id < 0:
        del described["id"]
    return described


def _describe_drawing(image_set: ImageSet, drawing: Drawing) -> dict[str, Any]:
    return {"seed": drawing.seed, "file": str(image_set.path(drawing))}


def describe_style(path: Path) -> dict[str, Any]:
    """Return what a style file holds, as JSON has it.

    Raises:
        StyleError: If it is no style file.
    """

    from style_aligned.styles.style import Style

    style = Style.load(path)
    return {"kind": "style", "file": str(path), **style.describe(), "fingerprint": style.digest}


def to_lines(described: dict[str, Any]) -> list[str]:
    """Return lines with names and values, for people."""
    lines: list[str] = []
    for name, value in described.items():
        text = str(value)
        if isinstance(value, dict) or not text.isprintable():  # a text can hold lines that look like ours
            text = json.dumps(value)
        lines.append(f"{name.replace('_', ' ') + ':':<17} {text}".rstrip())
    return lines
