"""A set of images in a folder: opened by one writer at a time, and whole at any moment."""

import hashlib
import json
import sys
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from style_aligned.notes import Note
from style_aligned.sets.earlier import adopt, is_earlier_set
from style_aligned.sets.journal import Journal, read_journal
from style_aligned.sets.records import BusyError, Drawing, SetError, SetImage, dump_image
from style_aligned.sets.set_file import SET_FILE, STYLE_FILE, SetState, read_set, write_set

LOCK_FILE = ".lock"


class ImageSet:
    """A set of images in a folder.

    `read` is for looking at it, `open_set` for changing it.
    """

    def __init__(self, folder: Path, state: SetState, journal: Journal | None = None) -> None:
        """Make a set of what is known of it. Use `read_image_set` or `open_set` instead."""
        self.folder = folder
        self.state = state
        self._journal = journal
        self._has_file = (folder / SET_FILE).is_file()

    @property
    def style_path(self) -> Path:
        """The path of the style file, which is there once the reference is drawn."""
        return self.folder / STYLE_FILE

    def path(self, image: SetImage | Drawing) -> Path:
        """Return the path of an image's file."""
        drawing = image.drawing if isinstance(image, SetImage) else image
        return self.folder / drawing.file

    def commit(self, images: Iterable[SetImage] = (), moves: Sequence[tuple[str, str]] = ()) -> None:
        """Record images that are new or changed, and move files, all of it or nothing.

        Args:
            images: The records.
            moves: Files to rename, in their order: from where, and to where, relative to the folder. There must be
                none at the new place.
        """
        images = list(images)
        change: dict[str, Any] = {"images": [dump_image(image) for image in images]}
        if moves:
            change["moves"] = [list(move) for move in moves]
        self._record(change)
        for image in images:
            self.state.put(image)
        _move(self.folder, change)

    def commit_settings(self, **changes: Any) -> None:
        """Change what is said of the whole set, such as its `model` or its `sheet`."""
        for name, value in changes.items():
            setattr(self.state, name, value)
        self._record({"set": self.state.dump_settings()})

    def settings_key(self, settings: Mapping[str, Any]) -> str:
        """Return the key of what images were made with. Settings that are new are recorded."""
        key = sys.intern(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12])
        if key not in self.state.made_with:
            self._record({"made_with": {key: dict(settings)}})
            self.state.made_with[key] = dict(settings)
        return key

    def settings_of(self, drawing: Drawing) -> dict[str, Any]:
        """Return what a drawing was made with. Empty if that is not known."""
        return self.state.made_with.get(drawing.made_with, {})

    def start(self) -> None:
        """Write `set.json`, if there is none yet: of a new set, or of a folder of before."""
        if not self._has_file:
            write_set(self.folder, self.state)
            self._has_file = True

    def save(self) -> None:
        """Have `set.json` take in the journal."""
        if self._journal is not None and not self._journal.is_empty:
            self._journal.number = self.state.journal = self.state.journal + 1
            write_set(self.folder, self.state)
            self._journal.close()

    def _record(self, change: Mapping[str, Any]) -> None:
        if self._journal is None:
            raise SetError(f"{self.folder} was opened for reading")
        self.start()
        self._journal.append(change)


def is_set(folder: Path) -> bool:
    """Return whether a folder holds a set, of now or of before there was a `set.json`."""
    return (folder / SET_FILE).is_file() or is_earlier_set(folder)


def read_image_set(folder: Path) -> ImageSet:
    """Read a set, also while another process is at work on it.

    Raises:
        SetError: If the folder holds no set, or a damaged one.
    """
    if not (folder / SET_FILE).is_file():
        _check_is_set(folder)
        return ImageSet(folder, adopt(folder))
    while True:
        state = read_set(folder)
        has_changed = False
        for change in read_journal(folder, state.journal):
            state.apply(change)
            has_changed = True
        if has_changed or read_set(folder).journal == state.journal:  # not taken in between the two
            return ImageSet(folder, state)


@contextmanager
def open_set(folder: Path, *, new: SetState | None = None, wait: bool = False) -> Generator[ImageSet, None, None]:
    """Open a set to change it, for as long as the context lasts. Others are kept out until then.

    What an earlier process has left half-done is finished first.

    Args:
        folder: The folder.
        new: The set to start with, if the folder holds none. The folder is made then, and taken away again if an
            error leaves no set in it.
        wait: Whether to wait for another process that is at work in the folder, or to refuse.

    Yields:
        The set.

    Raises:
        BusyError: If another process is at work in the folder.
        SetError: If it holds no set.
    """
    if new is None:
        _check_is_set(folder)
    with sole_use(folder, wait=wait):
        if (folder / SET_FILE).is_file():
            state = _recover(folder)
        else:
            if is_earlier_set(folder):
                state = adopt(folder)
                warnings.warn(
                    f"{folder} has no set.json, and gets one from what its images say: all but the sheet's title, the"
                    " files of other adapters and the pictures that images start from or follow",
                    Note,
                    stacklevel=3,
                )
            elif new is not None:
                state = new
            else:
                raise SetError(f"{folder} holds no set")
        with Journal(folder, state.journal) as journal:
            image_set = ImageSet(folder, state, journal)
            try:
                yield image_set
                image_set.start()
            finally:
                image_set.save()


@contextmanager
def sole_use(folder: Path, *, wait: bool = False) -> Generator[None, None, None]:
    """Keep other processes out of a folder.

    Args:
        folder: The folder. It is made if need be, and taken away again if nothing is in it afterwards.
        wait: Whether to wait for another process, or to refuse.

    Raises:
        BusyError: If another process is at work in it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=-1 if wait else 0)
    try:
        try:
            lock.acquire()  # pyright: ignore[reportUnknownMemberType]
        except Timeout:
            raise BusyError(f"another run is at work in {folder}: wait for it, or take another folder") from None
        try:
            yield
        finally:
            if {path.name for path in folder.iterdir()} <= {LOCK_FILE}:
                (folder / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


def _recover(folder: Path) -> SetState:
    """Read a set, and finish what an earlier process has left half-done."""
    state = read_set(folder)
    has_changed = False
    for change in read_journal(folder, state.journal):
        state.apply(change)
        _move(folder, change)
        has_changed = True
    if has_changed:
        state.journal += 1
        write_set(folder, state)
    Journal(folder, state.journal).close()
    return state


def _move(folder: Path, change: Mapping[str, Any]) -> None:
    """Rename the files of a change. Those that were renamed already stay as they are."""
    for source, target in change.get("moves", []):
        if (folder / source).exists() and not (folder / target).exists():
            (folder / target).parent.mkdir(exist_ok=True)
            (folder / source).replace(folder / target)


def _check_is_set(folder: Path) -> None:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise SetError(f"expected {folder} to be the folder of a set, got {found}")
    if not is_set(folder):
        raise SetError(f"expected {folder} to be the folder of a set, got one without set.json: make a set by generate")
