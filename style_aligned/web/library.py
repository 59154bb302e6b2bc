"""The sets of a folder, by name. Nothing outside of the folder is read or written."""

from collections.abc import Iterator
from pathlib import Path

from style_aligned.files import slug
from style_aligned.sets.explore import find_candidates
from style_aligned.sets.image_set import is_set
from style_aligned.sets.names import check_name, free_name
from style_aligned.sets.records import SetError
from style_aligned.sets.set_file import STYLE_FILE
from style_aligned.sets.sources import STYLE_ENDING

LOOKS = "looks"  # what folders of candidates end with


class Library:
    """The sets of a folder, the candidates for new ones, and style files.

    Attributes:
        folder: The folder. It may be a set itself, which is then the only one.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            ValueError: If it is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"expected a folder for sets, got the file {folder}")
        self.folder = folder.resolve()
        self.is_single = is_set(self.folder)

    def sets(self) -> list[str]:
        """Return the names of the sets: the one that was changed last comes first."""
        if self.is_single:
            return [self.folder.name]
        found = [path for path in self._folders() if is_set(path)]
        return [path.name for path in sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))]

    def looks(self) -> list[str]:
        """Return the names of the folders with candidates."""
        if self.is_single:
            return []
        return sorted(
            path.name
            for path in self._folders()
            if not is_set(path) and (find_candidates(path) or path.name.partition(f"-{LOOKS}")[1])
        )

    def styles(self) -> list[str]:
        """Return the names of the styles that are there: of sets, candidates and style files."""
        if self.is_single:
            return [self.folder.name] if (self.folder / STYLE_FILE).is_file() else []
        names = [name for name in self.sets() if (self.folder / name / STYLE_FILE).is_file()]
        names += [f"{name}/{number}" for name in self.looks() for number in find_candidates(self.folder / name)]
        if self.folder.is_dir():
            names += sorted(path.stem for path in self.folder.glob(f"*{STYLE_ENDING}") if self._is_inside(path))
        return names

    def path(self, name: str) -> Path:
        """Return the folder of a set, or of candidates.

        Raises:
            SetError: If there is none of that name.
        """
        if name in self.sets() or name in self.looks():
            return self.folder if self.is_single else self.folder / name
        raise SetError(f"there is no set {name!r} here")

    def style_path(self, name: str) -> Path:
        """Return the path of a style file, by the name that `styles` has for it.

        Raises:
            SetError: If there is none of that name.
        """
        if name not in self.styles():
            raise SetError(f"there is no style {name!r} here")
        if name in self.sets():
            return self.path(name) / STYLE_FILE
        path = self.folder / f"{name}{STYLE_ENDING}"
        return path if path.is_file() else self.folder / name / STYLE_FILE

    def new_folder(self, name: str, text: str) -> Path:
        """Return a folder for a new set, which is not there yet.

        Args:
            name: What people call it. Empty makes a name of the text.
            text: What it is about.

        Raises:
            ValueError: If the name is none for a folder.
            SetError: If it is taken, or there is a single set here.
        """
        if self.is_single:
            raise SetError(f"{self.folder.name} is a set: for new ones, start style-aligned web in the folder above it")
        there = list(self.folder.iterdir()) if self.folder.is_dir() else []
        taken = {path.name.removesuffix(STYLE_ENDING).casefold() for path in there}
        if not name.strip():
            return self.folder / free_name(slug(text), taken)
        stem = check_name(name, "the set's name")
        if stem.casefold() in taken:
            raise SetError(f"expected a name that is free, got {stem!r}: open that set, and add to it")
        return self.folder / stem

    def _folders(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in self.folder.iterdir() if self._is_inside(path) and path.is_dir())

    def _is_inside(self, path: Path) -> bool:
        return not path.name.startswith(".") and path.resolve().parent == self.folder
