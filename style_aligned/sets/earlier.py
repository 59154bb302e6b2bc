"""Folders without a `set.json`, from before there was one or since it was lost: what the images in them tell."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from style_aligned.files import parse_settings, read_texts, slug
from style_aligned.sets.names import plain_name
from style_aligned.sets.records import REPLACED, UNALIGNED, Drawing, SetError, SetImage
from style_aligned.sets.set_file import REFERENCE_FILE, REFERENCE_ID, SHEET_FILE, STYLE_FILE, SetState

NUMBERED = re.compile(r"(\d{3,})-")
NO_IMAGES = {REFERENCE_FILE, SHEET_FILE}


def is_earlier_set(folder: Path) -> bool:
    """Return whether a folder has what a set without `set.json` needs: a style and the image of its reference."""
    return (folder / STYLE_FILE).is_file() and (folder / REFERENCE_FILE).is_file()


def adopt(folder: Path) -> SetState:
    """Read a folder without `set.json` as a set. Nothing is written.

    The images keep their names, and their numbers as ids. What their prompts have beside what their names say is the
    prefix and suffix of the set. Images in the folder `replaced` are earlier drawings of those whose names they have,
    or were removed.

    Args:
        folder: The folder.

    Raises:
        SetError: If the image of its reference says nothing of how it was made.
    """
    reference = folder / REFERENCE_FILE
    texts = read_texts(reference)
    settings = parse_settings(texts)
    if settings is None or not texts.get("seed", "").isdigit():
        raise SetError(f"expected the settings of a set in {reference}, got an image without them")
    state = SetState(
        reference=SetImage(
            REFERENCE_ID,
            texts.get("prompt", ""),
            Drawing(int(texts["seed"]), REFERENCE_FILE, "earlier-reference", reference.stat().st_size),
        ),
        style={"source": {"kind": "prompt"}},
        model="mini" if settings.get("model", {}).get("class") == "Mini" else None,
        made_with={"earlier-reference": settings},
    )
    found: list[SetImage] = []
    for path in sorted(folder.glob("*.png")):
        if path.name not in NO_IMAGES and (image := _read_image(state, path, path.name)) is not None:
            twin = f"{UNALIGNED}/{path.name}"
            found.append(image.with_drawing(unaligned=twin if (folder / twin).is_file() else ""))
    for path in sorted((folder / REPLACED).glob("*.png"), key=lambda path: path.stat().st_mtime_ns):
        if (image := _read_image(state, path, f"{REPLACED}/{path.name}")) is not None:
            owners = [n for n, own in enumerate(found) if image.name.startswith(f"{own.name}-seed-")]
            if owners and found[owners[0]].prompt == image.prompt:
                owner = found[owners[0]]
                found[owners[0]] = replace(owner, replaced=(*owner.replaced, image.drawing))
            else:
                found.append(replace(image, is_removed=True))
    for image in sorted(found, key=lambda image: NUMBERED.match(image.name) is None):
        number = NUMBERED.match(image.name)
        is_free = number is not None and int(number[1]) not in state.images
        state.put(replace(image, id=int(number[1]) if number is not None and is_free else state.next_id))
    state.prefix, state.suffix = _find_affixes(state.images.values())
    state.compare = bool(state.current) and all(image.drawing.unaligned for image in state.current)
    return state


def _read_image(state: SetState, path: Path, file: str) -> SetImage | None:
    """Return the image of a file, which has no id yet, or None if it does not say how it was made."""
    texts = read_texts(path)
    settings = parse_settings(texts)
    if settings is None or not texts.get("seed", "").isdigit():
        return None
    key = next((key for key, value in state.made_with.items() if value == settings), f"earlier-{len(state.made_with)}")
    state.made_with[key] = settings
    usual = state.made_with[state.reference.drawing.made_with].get("options", {})
    options = {name: value for name, value in settings.get("options", {}).items() if usual.get(name) != value}
    drawing = Drawing(int(texts["seed"]), file, made_with=key, bytes=path.stat().st_size, options=options)
    return SetImage(0, texts.get("prompt", ""), drawing)


def _find_affixes(images: Iterable[SetImage]) -> tuple[str, str]:
    """Return the prefix and suffix that most prompts have beside what the names of their images say."""
    found = Counter(_affixes_of(image) for image in images)
    affixes, count = found.most_common(1)[0] if found else (("", ""), 0)
    return affixes if 2 * count > found.total() else ("", "")


def _affixes_of(image: SetImage) -> tuple[str, str]:
    prompt, said = image.prompt, plain_name(image)
    if said in (image.name, slug(prompt)):  # a name that people gave, or that says all
        return "", ""
    for start in reversed(range(len(prompt))):
        for end in range(start + 1, len(prompt) + 1):
            if slug(prompt[start:end]) == said:
                return prompt[:start], prompt[end:]
    return "", ""
