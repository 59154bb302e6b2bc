"""`set.json`: what a set consists of, and its version."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from style_aligned.files import write_bytes
from style_aligned.sets.records import SetError, SetImage, check, check_file, check_mapping, dump_image, parse_image

VERSION = 1
SET_FILE, STYLE_FILE, REFERENCE_FILE, SHEET_FILE = "set.json", "style.safetensors", "reference.png", "sheet.png"
MASK_FILE = "reference-mask.png"
REFERENCE_ID = -1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each older version, what turns its JSON into the next version's. (Folders without set.json: `earlier.py`.)"""


@dataclass(frozen=True)
class SheetSettings:
    """What the contact sheet of a set shows.

    Attributes:
        title: The title. Empty for the reference's prompt.
        columns: The number of images in a row. None lets the number of images decide.
        settings: Whether prompts, seeds and settings are shown, or the title alone.
    """

    title: str = ""
    columns: int | None = None
    settings: bool = True


@dataclass
class SetState:
    """All that is known of a set.

    Attributes:
        reference: The reference, with the id -1.
        style: Where the style comes from and its settings, for as long as it has no file: `source`, and the
            arguments of `Style.from_prompt`. A `source` has a `kind` (`prompt`, `style`, `picture`, `blend`), and
            what that kind needs: `picture` and its digest, `styles` and their `weights`, `mask`.
        model: The name of the model, as given to `load_model`. None if it is not known.
        extras: What goes beside StyleAligned, as `style_aligned.sets.extras.add_extras` takes it.
        prefix: What comes before each prompt.
        suffix: What comes after each prompt.
        sheet: What the contact sheet shows.
        compare: Whether each image is drawn without the style too.
        made_with: All settings that images were made with, by a key.
        images: The images by their id, the removed ones too.
        journal: The number of the journal that continues the file.
    """

    reference: SetImage
    style: dict[str, Any]
    model: str | None = None
    extras: dict[str, Any] = field(default_factory=dict[str, Any])
    prefix: str = ""
    suffix: str = ""
    sheet: SheetSettings = field(default_factory=SheetSettings)
    compare: bool = False
    made_with: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    images: dict[int, SetImage] = field(default_factory=dict[int, SetImage])
    journal: int = 0

    @property
    def current(self) -> list[SetImage]:
        """The images of the set but the reference, without the removed ones, in their order."""
        return [image for _, image in sorted(self.images.items()) if not image.is_removed]

    @property
    def next_id(self) -> int:
        """The id of the next image."""
        return max(self.images, default=0) + 1

    def put(self, image: SetImage) -> None:
        """Take in the record of an image, in the place of the one of its id."""
        if image.id == REFERENCE_ID:
            self.reference = image
        else:
            self.images[image.id] = image

    def apply(self, change: Mapping[str, Any]) -> None:
        """Take in a change, as the journal has it: whole records, so that it does no harm twice.

        Raises:
            SetError: If it is none.
        """
        self.made_with |= {key: check_mapping(value, "made_with") for key, value in change.get("made_with", {}).items()}
        for record in change.get("images", []):
            self.put(parse_image(record))
        if "set" in change:
            _read_settings(self, check_mapping(change["set"], "set"))

    def dump_settings(self) -> dict[str, Any]:
        """Return what is said of the whole set, as JSON has it."""
        sheet = {"title": self.sheet.title, "columns": self.sheet.columns, "settings": self.sheet.settings}
        extras = {"extras": self.extras} if self.extras else {}
        return {
            "model": self.model, **extras, "style": self.style, "prefix": self.prefix, "suffix": self.suffix,
            "sheet": sheet, "compare": self.compare,
        }  # fmt: skip


def write_set(folder: Path, state: SetState) -> None:
    """Write `set.json`, whole or not at all."""
    dumped = {
        "version": VERSION,
        "journal": state.journal,
        **state.dump_settings(),
        "made_with": state.made_with,
        "reference": dump_image(state.reference),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in dumped.items()]

    def parts() -> Iterator[bytes]:
        yield ("{\n" + ",\n".join(lines) + ',\n"images": [').encode()
        for index, image_id in enumerate(sorted(state.images)):
            yield b",\n  " if index else b"\n  "
            yield json.dumps(dump_image(state.images[image_id]), ensure_ascii=False).encode()
        yield b"\n]\n}\n" if state.images else b"]\n}\n"

    write_bytes(folder / SET_FILE, parts())  # never whole in memory


def read_set(folder: Path) -> SetState:
    """Read `set.json`, of this version or an older one.

    Raises:
        SetError: If it is damaged, of a newer version, or names a file outside the folder.
        FileNotFoundError: If there is none.
    """
    path = folder / SET_FILE
    content = path.read_bytes()
    try:
        loaded = check_mapping(json.loads(content), "it")
        version = check(loaded, "version", int)
    except (ValueError, RecursionError) as error:
        raise SetError(f"{path} is damaged: {error}: move it away, and the images tell what they are") from None
    if version > VERSION:
        raise SetError(f"{path} is of version {version}, and this style-aligned knows up to {VERSION}: upgrade it")
    try:
        for older in range(version, VERSION):
            loaded = MIGRATIONS[older](loaded)
        return _parse(loaded)
    except (KeyError, SetError, TypeError, AttributeError) as error:
        raise SetError(f"{path} is damaged: {error}: move it away, and the images tell what they are") from None


def _parse(loaded: dict[str, Any]) -> SetState:
    state = SetState(
        reference=parse_image(loaded["reference"]),
        style={},
        made_with=check(loaded, "made_with", dict, {}),
        journal=check(loaded, "journal", int, 0),
    )
    _read_settings(state, loaded)
    for record in check(loaded, "images", list):
        image = parse_image(record)
        if image.id in state.images:
            raise SetError(f"expected one image of id {image.id}, got two")
        state.images[image.id] = image
    files = [image.drawing.file.casefold() for image in (state.reference, *state.images.values())]
    if len(set(files)) != len(files):
        raise SetError(f"expected a file for each image, got one for two: {max(files, key=files.count)}")
    return state


def _read_settings(state: SetState, loaded: Mapping[str, Any]) -> None:
    sheet = check(loaded, "sheet", dict, {})
    state.style = check(loaded, "style", dict)
    source = check(state.style, "source", dict, {})
    if "file" in source:
        check_file(check(source, "file", str))
    state.model = loaded["model"] if loaded.get("model") is None else check(loaded, "model", str)
    state.extras = check(loaded, "extras", dict, {})
    if isinstance(next(iter(state.extras.get("control", ())), None), str):  # earlier versions have a single one
        state.extras = {**state.extras, "control": [state.extras["control"]]}
    state.prefix, state.suffix = check(loaded, "prefix", str, ""), check(loaded, "suffix", str, "")
    columns = sheet.get("columns")
    state.sheet = SheetSettings(
        title=check(sheet, "title", str, ""),
        columns=None if columns is None else max(1, check(sheet, "columns", int)),
        settings=check(sheet, "settings", bool, True),
    )
    state.compare = check(loaded, "compare", bool, False)
