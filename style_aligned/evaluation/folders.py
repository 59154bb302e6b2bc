"""Sets of images in a folder: this program's, or another program's with a `prompts.txt`."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from style_aligned.files import read_texts

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PROMPTS, OBJECTS = "prompts.txt", "objects.txt"
UNALIGNED, REFERENCE = "unaligned", "reference.png"
# where a prompt may go on to its style
SEPARATORS = re.compile(r"[.,;:]\s|\s(?=in\b)|\s(?=with\b)|\s[-|\u2013\u2014]\s")


@dataclass(frozen=True)
class FolderSet:
    """Images that are to share one style.

    Attributes:
        name: The path of its folder within the folder that was searched.
        is_unaligned: Whether it is what another set is compared with: the same images without style alignment.
        images: The paths of the images.
        objects: What each image is to show, without the style. None where no prompt is known.
    """

    name: str
    is_unaligned: bool
    images: tuple[Path, ...]
    objects: tuple[str | None, ...]


def find_sets(folder: Path) -> list[FolderSet]:
    """Find the sets of images in a folder.

    Every folder that holds images is a set: the folder itself, and those in it at any depth, but for hidden ones.
    Contact sheets are left out. A folder `unaligned` holds the images of its parent without style alignment: to these
    belongs the reference of the parent.

    The prompt of an image is in its own text chunks, or on its line of a `prompts.txt` beside it, in the order of the
    names with numbers by their value. What the image shows is on its line of an `objects.txt`, or what
    [`object_texts`][style_aligned.evaluation.folders.object_texts] makes of the prompts.

    Args:
        folder: The folder.

    Raises:
        ValueError: If there is no such folder, it holds no images, or a file of texts has not a line for each image.
        OSError: If a folder may not be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"expected a folder of images, got {folder}, {'a file' if folder.exists() else 'which is not there'}"
        )
    sets: list[FolderSet] = []
    for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        inside = place.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        own = [path for path in sorted(place.iterdir(), key=_natural) if path.suffix.lower() in ENDINGS]
        texts = {path: read_texts(path) for path in own if not path.name.startswith(".")}
        prompts = {path: text.get("prompt") for path, text in texts.items() if "kind" not in text}
        if not prompts:
            continue
        is_unaligned = place.name == UNALIGNED and place != folder
        if None in prompts.values() and (lines := _read_lines(place / PROMPTS, len(prompts))) is not None:
            prompts = dict(zip(prompts, lines, strict=True))
        if is_unaligned and (reference := place.parent / REFERENCE).is_file():
            prompts = {reference: read_texts(reference).get("prompt"), **prompts}
        objects = _read_lines(place / OBJECTS, len(prompts))
        sets.append(
            FolderSet(
                name=folder.resolve().name if place == folder else inside.as_posix(),
                is_unaligned=is_unaligned,
                images=tuple(prompts),
                objects=tuple(object_texts(list(prompts.values())) if objects is None else objects),
            )
        )
    if not sets:
        raise ValueError(f"expected images ({', '.join(ENDINGS)}) in {folder}, got none")
    return sets


def object_texts(prompts: Sequence[str | None]) -> list[str | None]:
    """Return what each image of a set is to show: its prompt without the style that the set has in common.

    The style is what the prompts share at their end, from the first comma, full stop, "in" or "with" on. A prompt that
    does not share it, as that of a reference which alone names the style, is taken as a whole.

    Args:
        prompts: The prompts of a set.

    Example:
        >>> object_texts(["a red car, neon sign", "a blue car, neon sign"])
        ['a red car', 'a blue car']
        >>> object_texts(["A toy train. in BW logo style.", "A fox. in BW logo style."])
        ['A toy train', 'A fox']
    """
    known = [prompt for prompt in prompts if prompt is not None]
    counts = Counter(ending for prompt in known for ending in _endings(prompt))
    objects: list[str | None] = []
    for prompt in prompts:
        shared = [ending for ending in (_endings(prompt) if prompt is not None else ()) if counts[ending] > 1]
        objects.append(prompt.removesuffix(max(shared, key=len)) if prompt is not None and shared else prompt)
    return objects


def _endings(prompt: str) -> set[str]:
    """Return all that may be the style of a prompt: what follows a separator, with it."""
    return {prompt[match.start() :] for match in SEPARATORS.finditer(prompt) if prompt[: match.start()].strip()}


def _read_lines(path: Path, count: int) -> list[str] | None:
    """Read a text for each image, a line each. None if there is no such file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ValueError(f"expected {path} to be UTF-8, got another encoding") from None
    if len(lines) != count:
        raise ValueError(f"expected {path} to have a line for each of the {count} images beside it, got {len(lines)}")
    return lines


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sort names by their numbers: image-2 before image-10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]
