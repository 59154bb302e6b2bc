"""The folder of a set: its file, its journal, and one writer at a time."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.sets.journal import JOURNAL_FILE
from style_aligned.sets.records import Drawing, SetError, SetImage
from style_aligned.sets.set_file import MIGRATIONS, SET_FILE, SheetSettings
from tests.sets.conftest import fox


def cat(image_id: int = 1, file: str = "001-a-cat.png", **drawing: Any) -> SetImage:
    return SetImage(image_id, "a cat", Drawing(image_id, file, **drawing))


def test_a_set_comes_back_as_it_was(tmp_path: Path) -> None:
    image = SetImage(
        7,
        "a cät, “neon”",
        Drawing(2**32 - 1, "key.png", "", 12, {"strength": 0.7}, {"control": [{"kind": "canny"}]}, "unaligned/key.png"),
        replaced=(Drawing(3, "replaced/key-seed-3.png"),),
        is_removed=True,
    )
    with open_set(tmp_path / "a" / "b", new=fox()) as image_set:
        image_set.commit([image])
        image_set.commit_settings(sheet=SheetSettings("Client A", 4, False), model="sdxl", prefix="x ", suffix="")
        key = image_set.settings_key({"steps": 2, "options": {}})
        assert image_set.settings_key({"options": {}, "steps": 2}) == key
    state = read_image_set(tmp_path / "a" / "b").state
    assert state == image_set.state
    assert state.images == {7: image}
    assert (state.model, state.prefix, state.suffix, state.sheet.title) == ("sdxl", "x ", "", "Client A")
    assert state.made_with == {key: {"steps": 2, "options": {}}}
    assert not (tmp_path / "a" / "b" / JOURNAL_FILE).exists()


def test_readers_see_each_change_at_once_while_set_json_stays(tmp_path: Path) -> None:
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.start()
        written = (tmp_path / SET_FILE).stat()
        for number in range(1, 4):
            image_set.commit([cat(number, f"{number}.png")])
            assert list(read_image_set(tmp_path).state.images) == list(range(1, number + 1))
        assert (tmp_path / SET_FILE).stat() == written
    assert list(read_image_set(tmp_path).state.images) == [1, 2, 3]


@pytest.mark.parametrize("torn", [b"", b'{"images": [{"id": 3, "pro', b"\xff\0\0"])
def test_a_journal_is_taken_in_by_the_next_writer(tmp_path: Path, torn: bytes) -> None:
    with open_set(tmp_path, new=fox()):
        pass
    number = json.loads((tmp_path / SET_FILE).read_text())["journal"]
    lines = [{"journal": number}, {"images": [{"id": 2, "prompt": "a dog", "seed": 5, "file": "002-a-dog.png"}]}]
    journal = "".join(json.dumps(line) + "\n" for line in lines).encode() + torn
    (tmp_path / JOURNAL_FILE).write_bytes(journal)
    assert read_image_set(tmp_path).state.images[2].prompt == "a dog"
    with open_set(tmp_path) as image_set:
        assert image_set.state.images[2].drawing == Drawing(5, "002-a-dog.png")
        assert not (tmp_path / JOURNAL_FILE).exists()
    # one that set.json has taken in already says nothing any more, such as after a kill between the two
    (tmp_path / JOURNAL_FILE).write_bytes(journal.replace(b"a dog", b"a cow"))
    assert read_image_set(tmp_path).state.images[2].prompt == "a dog"
    with open_set(tmp_path) as image_set:
        assert image_set.state.images[2].prompt == "a dog"


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_moves_that_were_half_done_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int) -> None:
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.commit([cat()])
    (tmp_path / "001-a-cat.png").write_text("old")
    (tmp_path / "replaced").mkdir()
    (tmp_path / "replaced" / "new.png").write_text("new")
    rename = Path.replace
    renames: list[Path] = []

    def replace(path: Path, target: Path) -> Path:
        if path.suffix == ".png":
            if len(renames) == renamed:
                raise KeyboardInterrupt
            renames.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    moves = [("001-a-cat.png", "replaced/old.png"), ("replaced/new.png", "001-a-cat.png")]
    with contextlib.suppress(KeyboardInterrupt), open_set(tmp_path) as image_set:
        monkeypatch.setattr(image_set, "save", lambda: None)  # killed: it never gets there
        image_set.commit([cat(made_with="x")], moves)
    monkeypatch.undo()
    with open_set(tmp_path) as image_set:
        assert image_set.state.images[1].drawing.made_with == "x"
    assert (tmp_path / "001-a-cat.png").read_text() == "new"
    assert (tmp_path / "replaced" / "old.png").read_text() == "old"
    assert not (tmp_path / "replaced" / "new.png").exists()


OPEN = "import sys; from pathlib import Path; from style_aligned.sets.image_set import open_set\n"
HOLD = OPEN + "with open_set(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"


def test_one_writer_at_a_time_others_are_refused_or_wait(tmp_path: Path) -> None:
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.start()
        message = r"another run is at work in .*: wait for it, or take another folder"
        with pytest.raises(SetError, match=message), open_set(tmp_path):
            pass
        image_set.commit([cat()])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(SetError, match="another run is at work"), open_set(tmp_path):
            pass
        assert list(read_image_set(tmp_path).state.images) == [1]  # looking is always possible
        other.stdin.close()
        with open_set(tmp_path, wait=True) as image_set:
            assert list(image_set.state.images) == [1]
    assert other.returncode == 0


def test_a_process_that_is_gone_keeps_nobody_out(tmp_path: Path) -> None:
    with open_set(tmp_path, new=fox()):
        pass
    code = OPEN + "import os\nwith open_set(Path(sys.argv[1])): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with open_set(tmp_path):
        pass


def test_an_error_leaves_no_empty_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(SetError, match=r"expected .* to be the folder of a set, got nothing"),
        open_set(tmp_path / "new"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        loaded = json.loads(content)
        change(loaded)
        return json.dumps(loaded).encode()

    return edit


def cut_off(content: bytes) -> bytes:
    return content[:-40]


def put(other: bytes) -> Callable[[bytes], bytes]:
    def put(content: bytes) -> bytes:
        return other

    return put


def set_file(file: str) -> Callable[[bytes], bytes]:
    return edit(lambda loaded: loaded["images"][0].update(file=file))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "is damaged"),
        (put(b""), "is damaged"),
        (put(b"[]"), "is damaged: expected it to be a JSON object"),
        (edit(lambda loaded: loaded.update(version=2)), "is of version 2, and this style-aligned knows up to 1"),
        (edit(lambda loaded: loaded.update(version="1")), "expected 'version' of type int, got '1'"),
        (edit(lambda loaded: loaded.pop("images")), "expected 'images' of type list, got None"),
        (edit(lambda loaded: loaded.pop("reference")), "is damaged"),
        (edit(lambda loaded: loaded["images"][0].update(seed=-1)), "expected a seed of at least 0, got -1"),
        (edit(lambda loaded: loaded["images"][0].update(seed=True)), "expected 'seed' of type int, got True"),
        (edit(lambda loaded: loaded["images"].append(loaded["images"][0])), "one image of id 1, got two"),
        (edit(lambda loaded: loaded["images"].append({**loaded["images"][0], "id": 2})), "one for two: 001-a-cat.png"),
        *(
            (set_file(file), "expected a file within the set's folder")
            for file in ("../x.png", "/x.png", "C:x.png", "a\\..\\x.png", "sub/x.png", "replaced/../../x.png", "..", "")
        ),
    ],
)
def test_a_damaged_set_is_refused_and_stays(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.commit([cat()])
    path = tmp_path / SET_FILE
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(SetError, match=f"{SET_FILE} .*{message}"):
        read_image_set(tmp_path)
    with pytest.raises(SetError, match=message), open_set(tmp_path, new=fox()):
        pass
    assert path.read_bytes() == damaged


def test_older_versions_are_migrated_when_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.commit([cat()])
    path = tmp_path / SET_FILE
    loaded = json.loads(path.read_text())
    loaded["version"], loaded["pictures"] = 0, loaded.pop("images")
    path.write_text(json.dumps(loaded))
    monkeypatch.setitem(MIGRATIONS, 0, lambda older: {**older, "images": older["pictures"]})
    assert read_image_set(tmp_path).state.images[1].prompt == "a cat"
    with open_set(tmp_path) as image_set:
        image_set.commit([cat(2, "2.png")])
    assert json.loads(path.read_text())["version"] == 1


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from style_aligned.sets import journal

    real, failing = journal.sync, [False]

    def sync(file: Any) -> None:
        real(file)
        if failing[0]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "sync", sync)
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.commit([cat()])
        failing[0] = True
        with pytest.raises(OSError, match="No space"):
            image_set.commit([cat(2, "2.png")])
        failing[0] = False
        image_set.commit([cat(3, "3.png")])
        assert list(read_image_set(tmp_path).state.images) == [1, 3]
    assert list(read_image_set(tmp_path).state.images) == [1, 3]
