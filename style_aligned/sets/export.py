"""Images of a set, for others: under plain names, in another format or size, without settings inside."""

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from style_aligned.files import open_image, slug, write_bytes
from style_aligned.notes import Note
from style_aligned.sets.image_set import ImageSet, is_set
from style_aligned.sets.names import free_name, plain_name
from style_aligned.sets.prompts import Prompt, add_affixes
from style_aligned.sets.records import SetError, SetImage

FORMATS = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}
NAMES = ("slug", "number")
SOFTWARE = 0x0131  # the EXIF tag for what has made a file
MARK = "style-aligned export"
QUALITY = 92
MAX_NAMED = 4  # images, in a warning
ARTICLE = re.compile("(?:a|an|the)-(?=.)")


def plan_export(
    image_set: ImageSet,
    *,
    names: str = "slug",
    format: str = "png",  # noqa: A002
    reference: bool = False,
) -> dict[str, SetImage]:
    """Give each image of a set that is there the name of a file.

    Args:
        image_set: The set.
        names: `slug` for names that say what is shown, or `number`.
        format: The ending.
        reference: Whether the reference is one of them, the first. Its number is 0.
    """
    images = [image_set.state.reference, *image_set.state.current] if reference else image_set.state.current
    images = [image for image in images if image_set.path(image).is_file()]
    digits = max(3, len(str(len(images))))
    numbered = (f"{number:0{digits}d}" for number in range(0 if reference else 1, len(images) + 1))
    taken: set[str] = set()
    planned: dict[str, SetImage] = {}
    for name, image in zip(numbered if names == "number" else _plain_names(image_set, images), images, strict=False):
        name = free_name(name, taken)
        taken.add(name.casefold())
        planned[f"{name}.{format}"] = image
    return planned


def export_set(
    image_set: ImageSet,
    folder: Path,
    *,
    names: str = "slug",
    format: str = "png",  # noqa: A002
    size: tuple[int, int] | None = None,
    reference: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write the images of a set into another folder.

    Args:
        image_set: The set.
        folder: The folder, which is made if need be.
        names: `slug` for names that say what is shown, or `number`.
        format: `png`, `webp` or `jpg`.
        size: The height and width to fit the images into. None leaves them as they are.
        reference: Whether to write the reference too.
        force: Whether to replace files that are no earlier export.

    Returns:
        The paths of the files.

    Raises:
        SetError: If there is no image, if a file is in the way, or if the folder is that of a set.

    Warns:
        Note: If images are missing, or files of an earlier export have other names.
    """
    planned = plan_export(image_set, names=names, format=format, reference=reference)
    if not planned:
        raise SetError(f"{image_set.folder} has no images yet")
    if is_set(folder):
        raise SetError(f"expected a folder for the files, got {folder}, which holds a set: take another one")
    if not force:
        for path in (folder / name for name in planned):
            if path.exists() and not _is_export(path):
                raise SetError(f"{path} is no earlier export: --force replaces it, or take another folder")
    missing = [image.name for image in image_set.state.current if not image_set.path(image).is_file()]
    if missing:
        warnings.warn(
            f"{len(missing)} missing: {', '.join(missing[:MAX_NAMED])}{' …' if len(missing) > MAX_NAMED else ''};"
            f" style-aligned add {image_set.folder} draws what is missing",
            Note,
            stacklevel=2,
        )
    others = [path.name for path in sorted(folder.glob("*.*")) if path.name not in planned and _is_export(path)]
    if others:
        warnings.warn(
            f"{folder} has {len(others)} more of an earlier export: {', '.join(others[:MAX_NAMED])}"
            f"{' …' if len(others) > MAX_NAMED else ''}",
            Note,
            stacklevel=2,
        )
    for name, image in planned.items():
        write_bytes(folder / name, _encode(open_image(image_set.path(image)), FORMATS[format], size))
    return [folder / name for name in planned]


def _plain_names(image_set: ImageSet, images: Sequence[SetImage]) -> list[str]:
    """Return names that say what is shown, without the articles of prompts where the names stay different so."""
    names = [_plain_name(image_set, image) for image in images]
    # a name without a number was given by people
    shorter = [
        name if name == image.name else ARTICLE.sub("", name, count=1)
        for name, image in zip(names, images, strict=True)
    ]
    full_names: dict[str, set[str]] = defaultdict(set)
    for full, short in zip(names, shorter, strict=True):
        full_names[short.casefold()].add(full.casefold())
    return [
        short if len(full_names[short.casefold()]) == 1 else full for full, short in zip(names, shorter, strict=True)
    ]


def _plain_name(image_set: ImageSet, image: SetImage) -> str:
    state = image_set.state
    if image is not state.reference:
        return plain_name(image)
    prompt = add_affixes(Prompt(image.prompt), state.prefix, state.suffix)
    return slug(prompt.core or prompt.text)


def _encode(image: Image.Image, format: str, size: tuple[int, int] | None) -> bytes:  # noqa: A002
    if size is not None:
        factor = min(size[0] / image.height, size[1] / image.width)
        fitted = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(fitted, Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[SOFTWARE] = MARK
    buffer = io.BytesIO()
    image.save(buffer, format=format, exif=exif, **({} if format == "PNG" else {"quality": QUALITY}))
    return buffer.getvalue()


def _is_export(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(SOFTWARE) == MARK
    except (OSError, SyntaxError, ValueError):
        return False
