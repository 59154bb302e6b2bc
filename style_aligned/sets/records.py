"""The records of a set: what `set.json` says of each image, and its checks."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, cast

MAX_SEED = 2**32 - 1
REPLACED, UNALIGNED = "replaced", "unaligned"
"""Folders within a set: images that were replaced or removed, and images without the style, to compare with."""


class SetError(ValueError):
    """A set that cannot be read, or a change of a set that is not possible."""


class BusyError(SetError):
    """A set that another run is at work on."""


EMPTY: Mapping[str, Any] = {}
"""What most drawings have for options and inputs: the same for all, as a set may have a million of them."""


def _empty() -> Mapping[str, Any]:
    return EMPTY


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing of an image.

    Attributes:
        seed: The seed of its noise.
        file: Its file, relative to the set's folder.
        made_with: The key of its settings in the set's table `made_with`. Empty until it is drawn.
        bytes: The size of its file as it was written.
        options: Options of the adapter for this drawing alone, such as `{"strength": 0.7}`.
        inputs: What else goes into it, as `style_aligned.sets.inputs` has it: a picture that it starts from.
        unaligned: The file of the same image without the style. Empty if there is none.
    """

    seed: int
    file: str
    made_with: str = ""
    bytes: int = 0
    options: Mapping[str, Any] = field(default_factory=_empty)
    inputs: Mapping[str, Any] = field(default_factory=_empty)
    unaligned: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether it was drawn. Its file may be gone all the same."""
        return bool(self.made_with)


@dataclass(frozen=True, slots=True)
class SetImage:
    """One image of a set: a prompt, its current drawing, and earlier ones.

    Attributes:
        id: Its number in the set, which no other image gets, or -1 for the reference.
        prompt: Its prompt.
        drawing: Its current drawing.
        replaced: Other drawings of it, in the folder `replaced`: the one replaced last comes last.
        is_removed: Whether it was taken out of the set. Its drawing is in the folder `replaced` then.
    """

    id: int
    prompt: str
    drawing: Drawing
    replaced: tuple[Drawing, ...] = ()
    is_removed: bool = False

    @property
    def name(self) -> str:
        """The name of its file, without folder and ending."""
        return PurePosixPath(self.drawing.file).stem

    def with_drawing(self, **changes: Any) -> "SetImage":
        """Return a copy with changes in its current drawing."""
        return replace(self, drawing=replace(self.drawing, **changes))


def dump_image(image: SetImage) -> dict[str, Any]:
    """Return a record as JSON has it, without what is empty."""
    dumped = {"id": image.id, "prompt": image.prompt, **_dump_drawing(image.drawing)}
    if image.replaced:
        dumped["replaced"] = [_dump_drawing(drawing) for drawing in image.replaced]
    if image.is_removed:
        dumped["removed"] = True
    return dumped


def parse_image(value: Any) -> SetImage:
    """Read a record from JSON.

    Raises:
        SetError: If it is not one.
    """
    record = check_mapping(value, "an image")
    replaced = check(record, "replaced", list, [])
    return SetImage(
        id=check(record, "id", int),
        prompt=check(record, "prompt", str),
        drawing=_parse_drawing(record),
        replaced=tuple(_parse_drawing(check_mapping(entry, "a drawing")) for entry in replaced),
        is_removed=check(record, "removed", bool, False),
    )


def check_mapping(value: Any, what: str) -> dict[str, Any]:
    """Return a JSON object, or raise `SetError`."""
    if not isinstance(value, dict):
        raise SetError(f"expected {what} to be a JSON object, got {value!r}")
    return cast(dict[str, Any], value)


def check(record: Mapping[str, Any], name: str, kind: type[Any], default: Any = None) -> Any:
    """Return a field of a record. Without a default, it has to be there.

    Raises:
        SetError: If it is missing, or of another type.
    """
    value = record.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SetError(f"expected {name!r} of type {kind.__name__}, got {value!r}")
    return value


def check_file(file: str) -> str:
    """Return the name of a file, if it stays within the set's folder.

    Raises:
        SetError: If it does not.
    """
    parts = file.split("/")
    folders, name = parts[:-1], parts[-1]
    is_inside = folders in ([], [REPLACED], [UNALIGNED]) and name not in ("", ".", "..")
    if not is_inside or any(character in file for character in "\\:\0"):
        raise SetError(f"expected a file within the set's folder, got {file!r}")
    return file


def _dump_drawing(drawing: Drawing) -> dict[str, Any]:
    dumped: dict[str, Any] = {"seed": drawing.seed, "file": drawing.file}
    for name in ("made_with", "bytes", "options", "inputs", "unaligned"):
        if value := getattr(drawing, name):
            dumped[name] = value if isinstance(value, str | int) else dict(value)
    return dumped


def _as_of_now(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs with a list of control pictures, where earlier versions have a single one."""
    return {**inputs, "control": [inputs["control"]]} if isinstance(inputs.get("control"), str) else inputs


def _parse_drawing(record: Mapping[str, Any]) -> Drawing:
    seed = check(record, "seed", int)
    if seed < 0:
        raise SetError(f"expected a seed of at least 0, got {seed}")
    unaligned = check(record, "unaligned", str, "")
    return Drawing(
        seed=seed,
        file=check_file(check(record, "file", str)),
        made_with=sys.intern(check(record, "made_with", str, "")),
        bytes=check(record, "bytes", int, 0),
        options=check(record, "options", dict, {}) or EMPTY,
        inputs=_as_of_now(check(record, "inputs", dict, {})) or EMPTY,
        unaligned=check_file(unaligned) if unaligned else "",
    )
