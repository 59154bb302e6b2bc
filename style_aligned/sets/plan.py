"""What a set is to have, and what of it is missing."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from style_aligned.files import is_whole_image, parse_settings, read_texts
from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.names import free_name, make_name
from style_aligned.sets.prompts import Prompt
from style_aligned.sets.records import EMPTY, MAX_SEED, REPLACED, UNALIGNED, Drawing, SetError, SetImage

FOLDERS = ("", REPLACED, UNALIGNED)


@dataclass(frozen=True)
class Plan:
    """What comes of prompts that a set is to have.

    Attributes:
        new: The images that the set does not have yet.
        there: Those that it has.
        ignored: What was asked for and those that are there do not have, such as a seed.
    """

    new: list[SetImage]
    there: list[SetImage]
    ignored: list[str] = field(default_factory=list[str])


def plan_images(
    image_set: ImageSet,
    prompts: Sequence[Prompt],
    *,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Plan:
    """Find out which prompts a set has images of, and give the others an id, a seed and a name.

    A prompt that is given twice is for two images. Nothing of the set changes.

    Args:
        image_set: The set.
        prompts: The prompts.
        seed: The seed of the first new image, from which the others count on. None chooses seeds by their ids.
        options: Options of the adapter for the new images alone.
        inputs: What else goes into them, unless their prompts say it.

    Raises:
        SetError: If a prompt has the name of an image with another prompt.
    """
    state = image_set.state
    there: list[SetImage] = []
    by_prompt: dict[str, list[SetImage]] = defaultdict(list)
    for image in state.current:
        by_prompt[image.prompt].append(image)
    names = {image.name.casefold(): image for image in state.current}
    taken = taken_names(image_set)
    used = used_seeds(image_set)
    base = state.reference.drawing.seed
    next_id, next_seed = state.next_id, seed
    options, inputs = options or EMPTY, inputs or EMPTY
    digits = max(3, len(str(next_id + len(prompts))))
    new: list[SetImage] = []
    ignored: list[str] = []
    for prompt in prompts:
        if (own := _take(by_prompt.get(prompt.text, []), prompt)) is not None:
            there.append(own)
            asked = {"options": options, "pictures": prompt.inputs or inputs}
            have = {"options": own.drawing.options, "pictures": own.drawing.inputs}
            ignored += [name for name, value in asked.items() if value and value != have[name]]
            continue
        if prompt.name is not None and (other := names.get(prompt.name.casefold())) is not None:
            raise SetError(f"expected a new name for {prompt.text!r}, got {prompt.name!r}, that of {other.prompt!r}")
        if prompt.seed is not None:
            own_seed = prompt.seed
        else:
            own_seed = unused_seed(used, base + next_id if next_seed is None else next_seed)
            next_seed = None if next_seed is None else own_seed + 1
        used.add(own_seed)
        name = free_name(prompt.name or make_name(next_id, prompt.core or prompt.text, digits=digits), taken)
        taken.add(name.casefold())
        drawing = Drawing(own_seed, f"{name}.png", options=options, inputs=prompt.inputs or inputs)
        new.append(SetImage(next_id, prompt.text, drawing))
        names[name.casefold()] = new[-1]
        next_id += 1
    if seed is not None and there and all(seed not in _seeds(image) for image in (*there, *new)):
        ignored.append("seed")
    return Plan(new, there, list(dict.fromkeys(ignored)))


def _seeds(image: SetImage) -> set[int]:
    """Return the seeds of all drawings of an image."""
    return {drawing.seed for drawing in (image.drawing, *image.replaced)}


def used_seeds(image_set: ImageSet) -> set[int]:
    """Return the seeds of all drawings of a set, replaced and removed ones too."""
    images = (image_set.state.reference, *image_set.state.images.values())
    return set[int]().union(*map(_seeds, images))


def unused_seed(used: set[int], first: int) -> int:
    """Return a seed that was not used: the first one, or the next after it that is free."""
    seed = first % (MAX_SEED + 1)
    while seed in used:
        seed = (seed + 1) % (MAX_SEED + 1)
    return seed


def taken_names(image_set: ImageSet) -> set[str]:
    """Return the names that a new image cannot have, in lower case: of records, and of files of any kind."""
    taken = {"reference", "sheet"}
    for image in image_set.state.images.values():
        taken |= {drawing.file.rpartition("/")[2][:-4].casefold() for drawing in (image.drawing, *image.replaced)}
    for name in FOLDERS:
        path = image_set.folder / name
        taken |= {entry.stem.casefold() for entry in path.iterdir()} if path.is_dir() else set()
    return taken


@dataclass
class Missing:
    """What of a set is to be drawn, and what was found on the way.

    Attributes:
        images: The images to draw.
        found: Images that are there, but not recorded as drawn: an interruption came between.
        deleted: Of the images to draw, those whose files are gone.
        damaged: Of the images to draw, those whose files cannot be read.
        edited: Images that another program has changed. They are kept.
    """

    images: list[SetImage] = field(default_factory=list[SetImage])
    found: list[SetImage] = field(default_factory=list[SetImage])
    deleted: list[SetImage] = field(default_factory=list[SetImage])
    damaged: list[SetImage] = field(default_factory=list[SetImage])
    edited: list[SetImage] = field(default_factory=list[SetImage])


def find_missing(image_set: ImageSet, images: Iterable[SetImage] | None = None) -> Missing:
    """Find out what of a set is to be drawn.

    Files are read only if their size is not as recorded, so that large sets take no time.

    Args:
        image_set: The set.
        images: The images to look at. None means all that are not removed.
    """
    missing = Missing()
    with os.scandir(image_set.folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    for image in image_set.state.current if images is None else images:
        drawing = image.drawing
        size = sizes.get(drawing.file)
        if size is None:
            missing.images.append(image)
            if drawing.is_drawn:
                missing.deleted.append(image)
        elif not drawing.is_drawn:
            (missing.found if _is_own(image_set, image) else missing.images).append(image)
        elif size != drawing.bytes:
            if is_whole_image(image_set.path(image)):
                missing.edited.append(image)
            else:
                missing.images.append(image)
                missing.damaged.append(image)
    return missing


def _is_own(image_set: ImageSet, image: SetImage) -> bool:
    """Return whether a file that is where an image is to be is that image."""
    path = image_set.path(image)
    texts = read_texts(path)
    is_same = texts.get("prompt") == image.prompt and texts.get("seed") == str(image.drawing.seed)
    return is_same and parse_settings(texts) is not None and is_whole_image(path)


def _take(images: list[SetImage], prompt: Prompt) -> SetImage | None:
    """Take the image of a prompt out of those that have it, if there is one: that of its name before others."""
    fitting = [image for image in images if prompt.seed is None or prompt.seed in _seeds(image)]
    found = next((image for image in fitting if image.name == prompt.name), fitting[0] if fitting else None)
    if found is not None:
        images.remove(found)
    return found
