"""The sets of a folder: nothing outside of it has a name."""

from pathlib import Path

import pytest

from style_aligned.sets.create import new_set
from style_aligned.sets.image_set import open_set
from style_aligned.sets.records import SetError
from style_aligned.sets.sources import Source
from style_aligned.web.library import Library


def make_set(folder: Path) -> None:
    with open_set(folder, new=new_set(Source("prompt", "a fox"), {})):
        pass


def test_sets_have_the_names_of_their_folders(tmp_path: Path) -> None:
    make_set(tmp_path / "sets/fox")
    (tmp_path / "sets/notes").mkdir()
    library = Library(tmp_path / "sets")
    assert library.sets() == ["fox"]
    assert library.path("fox") == tmp_path / "sets/fox"


@pytest.mark.parametrize("name", ["..", "../other", "notes", "", ".", "/etc", "linked", ".hidden", "fox/../../other"])
def test_nothing_else_has_a_name(tmp_path: Path, name: str) -> None:
    for folder in ("sets/fox", "other", "sets/.hidden"):
        make_set(tmp_path / folder)
    (tmp_path / "sets/notes").mkdir()
    (tmp_path / "sets/linked").symlink_to(tmp_path / "other")
    library = Library(tmp_path / "sets")
    assert library.sets() == ["fox"]
    with pytest.raises(SetError, match="there is no set"):
        library.path(name)
    with pytest.raises(SetError, match="there is no style"):
        library.style_path(name)


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".x", "-x", "con", "x" * 200, "a\0b"])
def test_a_new_set_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="the set's name"):
        Library(tmp_path).new_folder(name, "a fox")


def test_new_sets_get_names_that_are_free(tmp_path: Path) -> None:
    library = Library(tmp_path)
    assert library.new_folder("", "A fox, neon sign!").name == "a-fox-neon-sign"
    make_set(tmp_path / "a-fox")
    assert library.new_folder("", "a fox").name == "a-fox-2"
    with pytest.raises(SetError, match="expected a name that is free, got 'A-Fox'"):
        library.new_folder("A-Fox", "a fox")


def test_a_set_itself_is_the_only_one(tmp_path: Path) -> None:
    make_set(tmp_path / "fox")
    library = Library(tmp_path / "fox")
    assert library.sets() == ["fox"]
    assert library.path("fox") == tmp_path / "fox"
    with pytest.raises(SetError, match="start style-aligned web in the folder above it"):
        library.new_folder("", "a cat")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder for sets, got the file"):
        Library(tmp_path / "file")
