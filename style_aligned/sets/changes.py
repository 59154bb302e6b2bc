"""Changes of a set that draw nothing: a new drawing takes the place of another, images go, come back, get names."""

from dataclasses import replace

from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.names import check_name, find_image, fitting_images, free_name, some_names
from style_aligned.sets.plan import taken_names
from style_aligned.sets.records import REPLACED, UNALIGNED, Drawing, SetError, SetImage


def aside_file(image_set: ImageSet, name: str) -> str:
    """Return a free place for a file in the folder `replaced`."""
    folder = image_set.folder / REPLACED
    folder.mkdir(exist_ok=True)
    return f"{REPLACED}/{free_name(name, {path.stem.casefold() for path in folder.iterdir()})}.png"


def make_current(image_set: ImageSet, image: SetImage, drawing: Drawing) -> SetImage:
    """Put another drawing in the place of an image's current one, which is kept in the folder `replaced`.

    Args:
        image_set: The set.
        image: The image.
        drawing: The drawing, whose file is in the folder `replaced`.

    Returns:
        The image as it is then.
    """
    file = image.drawing.file
    others = tuple(own for own in image.replaced if own.file != drawing.file)
    moves = [(drawing.file, file)]
    if image_set.path(image).exists():
        aside = replace(image.drawing, file=aside_file(image_set, f"{image.name}-seed-{image.drawing.seed}"))
        others = (*others, aside)
        moves.insert(0, (file, aside.file))
    changed = replace(image, drawing=replace(drawing, file=file), replaced=others)
    image_set.commit([changed], moves)
    return changed


def remove_image(image_set: ImageSet, image: SetImage) -> SetImage:
    """Take an image out of a set. Its file is kept in the folder `replaced`.

    Returns:
        The image as it is then.
    """
    file = aside_file(image_set, image.name)
    changed = replace(image.with_drawing(file=file), is_removed=True)
    image_set.commit([changed], [(image.drawing.file, file)])
    return changed


def find_restorable(image_set: ImageSet, name: str, *, seed: int | None = None) -> tuple[SetImage, Drawing]:
    """Find an image that was removed, or of which another drawing is kept.

    Args:
        image_set: The set.
        name: What people call the image.
        seed: The seed of the drawing to bring back. None means that of the removed image, else the one replaced last.

    Returns:
        The image, and the drawing to bring back.

    Raises:
        SetError: If there is no such image, or nothing of it to bring back.
    """
    state = image_set.state
    removed = [image for image in state.images.values() if image.is_removed]
    images = [*removed, *(image for image in state.current if _kept(image_set, image))]
    if not images:
        raise SetError(f"nothing of {image_set.folder} was replaced or removed")
    if not fitting_images(images, name) and (whole := fitting_images(state.current, name)):
        raise SetError(f"nothing of {whole[0].name} was replaced or removed: those to restore are {some_names(images)}")
    image = find_image(images, name, "those to restore are")
    drawings = [*_kept(image_set, image), *([image.drawing] if image.is_removed else [])]
    drawing = drawings[-1] if seed is None else next((own for own in drawings if own.seed == seed), None)
    if drawing is None:
        seeds = ", ".join(str(own.seed) for own in drawings)
        raise SetError(f"expected the seed of a drawing of {image.name} that was replaced: {seeds}, got {seed}")
    return image, drawing


def restore_image(image_set: ImageSet, name: str, *, seed: int | None = None) -> SetImage:
    """Bring back an image that was removed, or the drawing of an image that was replaced last.

    Args:
        image_set: The set.
        name: What people call the image.
        seed: The seed of the drawing to bring back. None means the one that was replaced last.

    Returns:
        The image as it is then.

    Raises:
        SetError: If there is no such image, or nothing of it to bring back.
    """
    image, drawing = find_restorable(image_set, name, seed=seed)
    if image.is_removed:
        file = f"{free_name(image.name, taken_names(image_set) - {image.name.casefold()})}.png"
        changed = replace(image.with_drawing(file=file), is_removed=False)
        image_set.commit([changed], [(image.drawing.file, file)])
        if drawing is image.drawing:
            return changed
        image = changed
    return make_current(image_set, image, drawing)


def _kept(image_set: ImageSet, image: SetImage) -> list[Drawing]:
    """Return the drawings of an image in the folder `replaced`, but for its current one."""
    return [drawing for drawing in image.replaced if image_set.path(drawing).exists()]


def rename_image(image_set: ImageSet, image: SetImage, name: str) -> SetImage:
    """Give an image's file another name.

    Args:
        image_set: The set.
        image: The image.
        name: The new name, with or without `.png`.

    Returns:
        The image as it is then.

    Raises:
        ValueError: If it is no name for a file.
        SetError: If another file has it.
    """
    stem = check_name(name)
    if stem == image.name:
        return image
    if stem.casefold() in taken_names(image_set) - {image.name.casefold()}:
        raise SetError(f"expected a name that no other file of the set has, got {stem!r}")
    changed = image.with_drawing(file=f"{stem}.png")
    moves = [(image.drawing.file, changed.drawing.file)]
    if image.drawing.unaligned:
        changed = changed.with_drawing(unaligned=f"{UNALIGNED}/{stem}.png")
        moves.append((image.drawing.unaligned, changed.drawing.unaligned))
    image_set.commit([changed], moves)
    return changed
