"""Ids, seeds and names of images, and what of a set is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from style_aligned.files import encode_png, read_texts
from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.sets.names import check_name, find_image, free_name
from style_aligned.sets.plan import find_missing, plan_images, unused_seed
from style_aligned.sets.prompts import Prompt
from style_aligned.sets.records import Drawing, SetError, SetImage
from tests.sets.conftest import Draw, fox, pictures


def images(*prompts: str) -> list[SetImage]:
    return [
        SetImage(number, prompt, Drawing(number, f"{number:03d}-{prompt.split(',')[0].replace(' ', '-')}.png"))
        for number, prompt in enumerate(prompts, start=1)
    ]


def plan(folder: Path, *prompts: str | Prompt, seed: int | None = None) -> list[tuple[int, str, int, str]]:
    with open_set(folder, new=fox(seed=10)) as image_set:
        given = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        new = plan_images(image_set, given, seed=seed).new
        image_set.commit(new)
    return [(image.id, image.prompt, image.drawing.seed, image.drawing.file) for image in new]


def test_ids_seeds_and_names_count_on(tmp_path: Path) -> None:
    assert plan(tmp_path, "a key", "a crown") == [
        (1, "a key", 11, "001-a-key.png"),
        (2, "a crown", 12, "002-a-crown.png"),
    ]
    assert plan(tmp_path, "a gem", "a key", "a crown") == [(3, "a gem", 13, "003-a-gem.png")]
    assert plan(tmp_path, "a crown", "a gem") == []
    assert plan(tmp_path, "a key", "a key") == [(4, "a key", 14, "004-a-key.png")]
    assert plan(tmp_path, "a cat", "a dog", seed=13) == [
        (5, "a cat", 15, "005-a-cat.png"),  # 13 and 14 are in use
        (6, "a dog", 16, "006-a-dog.png"),
    ]


def test_prompts_bring_seeds_and_names(tmp_path: Path) -> None:
    assert plan(tmp_path, Prompt("a key", 5, "skeleton key"), Prompt("a crown", 5)) == [
        (1, "a key", 5, "skeleton key.png"),
        (2, "a crown", 5, "002-a-crown.png"),
    ]
    assert plan(tmp_path, Prompt("a key", 5, "skeleton key"), "a key") == [(3, "a key", 13, "003-a-key.png")]
    assert plan(tmp_path, Prompt("a key", 6)) == [(4, "a key", 6, "004-a-key.png")]
    with pytest.raises(SetError, match="expected a new name for 'a lock', got 'Skeleton Key', that of 'a key'"):
        plan(tmp_path, Prompt("a lock", name="Skeleton Key"))


def test_seeds_start_again_after_the_last_one() -> None:
    assert unused_seed({2**32 - 1, 0}, 2**32 - 1) == 1
    assert unused_seed({3, 4, 6}, 3) == 5


def test_names_leave_files_of_other_programs_alone(tmp_path: Path) -> None:
    (tmp_path / "001-a-key.png").write_text("mine")
    (tmp_path / "002-A-CROWN.jpg").write_text("mine")
    assert [file for *_, file in plan(tmp_path, "a key", "a crown")] == ["001-a-key-2.png", "002-a-crown-2.png"]


PLAN = """
import sys, time
from pathlib import Path
from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.sets.plan import find_missing, plan_images
from style_aligned.sets.prompts import collect_prompts

start = time.process_time()
with open_set(Path("set")) as image_set:
    image_set.commit(plan_images(image_set, collect_prompts([], ["prompts.txt"])).new)
with open_set(Path("set")) as image_set:
    assert plan_images(image_set, collect_prompts([], ["prompts.txt"])).new == []
    assert len(find_missing(image_set).images) == 10_000
print(time.process_time() - start)
"""


@pytest.mark.slow  # it measures time
def test_ten_thousand_prompts_are_planned_in_two_seconds(tmp_path: Path) -> None:
    prompts = "".join(f"a thing of kind {number}, neon sign\n" for number in range(10_000))
    (tmp_path / "prompts.txt").write_text(prompts)
    with open_set(tmp_path / "set", new=fox()):
        pass
    done = subprocess.run([sys.executable, "-c", PLAN], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2
    image_set = read_image_set(tmp_path / "set")
    assert image_set.state.images[10_000].drawing == Drawing(10_000, "10000-a-thing-of-kind-9999-neon-sign.png")
    assert image_set.state.images[1].drawing.file.startswith("00001-")


def test_images_are_called_by_name_id_or_a_part_of_their_prompt() -> None:
    there = images("a key, neon sign", "a skeleton key, neon sign", "a keyhole, neon sign", "a crown, neon sign")
    for name, expected in (
        ("001-a-key", 1), ("001-a-key.png", 1), ("A-Key", 1), ("2", 2), ("002", 2), ("skeleton", 2), ("keyhole", 3),
        ("crown", 4), ("CROWN, neon", 4), ("a crown, neon sign", 4), ("cro", 4),
    ):  # fmt: skip
        assert find_image(there, name).id == expected, name
    with pytest.raises(SetError, match="'key' to name one image, got 2 that it fits: 001-a-key, 002-a-skeleton-key"):
        find_image(there, "key")
    for name in ("gem", "7", "", "."):
        with pytest.raises(SetError, match=r"no image is called .*: the set has 001-a-key, .*, 004-a-crown$"):
            find_image(there, name)
    with pytest.raises(SetError, match=r"'key' to name one image, got 5 .*, 004-a-key.*: take its id"):
        find_image(images(*["a key"] * 5), "key")
    with pytest.raises(SetError, match="no image is called 'key': the set has none"):
        find_image([], "key")


def test_a_renamed_image_is_called_by_its_new_name() -> None:
    assert find_image([SetImage(2, "a key", Drawing(2, "2024-poster.png"))], "2024-poster").id == 2
    with pytest.raises(SetError):  # 2024 is no number of ours
        find_image([SetImage(2, "a key", Drawing(2, "2024-poster.png"))], "oster-")


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "a\\b", "..", ".hidden", "-x", "con", "NUL.x", "com1", "sheet", "Reference.png", "x.", "a:b", "a*",
     "a\nb", "x" * 121, "é" * 61, "\udcff"],
)  # fmt: skip
def test_names_that_not_all_systems_take_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_name(name)


def test_names_that_people_give() -> None:
    assert check_name("skeleton-key") == "skeleton-key"
    assert check_name(" Élan vital 2.png ") == "Élan vital 2"
    assert free_name("Key", {"key", "key-2"}) == "Key-3"


def test_what_is_missing_is_found_and_what_others_changed_is_kept(draw: Draw, tmp_path: Path) -> None:
    folder = draw("a cat", "a dog", "a rocket", "a fox").folder
    before = pictures(folder)
    (folder / "001-a-cat.png").unlink()
    damaged = (folder / "002-a-dog.png").read_bytes()[:3000]
    (folder / "002-a-dog.png").write_bytes(damaged)
    edited = encode_png(Image.new("RGB", (64, 64), "red"))
    (folder / "003-a-rocket.png").write_bytes(edited)
    with open_set(folder) as image_set:
        missing = find_missing(image_set)
        assert [image.name for image in missing.deleted] == ["001-a-cat"]
        assert [image.name for image in missing.damaged] == ["002-a-dog"]
        assert [image.name for image in missing.edited] == ["003-a-rocket"]
        assert [image.name for image in missing.images] == ["001-a-cat", "002-a-dog"]
    draw()
    after = pictures(folder)
    assert after.pop("replaced/002-a-dog.png") == damaged
    assert after == {**before, "003-a-rocket.png": edited}


def test_an_optimised_png_stays(draw: Draw) -> None:
    folder = draw("a cat").folder
    path = folder / "001-a-cat.png"
    with Image.open(path) as image:
        image.load()
        image.save(path, optimize=True)  # without its texts
    optimised = path.read_bytes()
    assert read_texts(path) == {}
    draw("a dog")
    assert path.read_bytes() == optimised
    assert (folder / "002-a-dog.png").is_file()


def test_an_image_that_was_not_recorded_is_not_drawn_again(draw: Draw, model: object, tmp_path: Path) -> None:
    """A kill between the image and its line in the journal."""
    folder = draw("a cat", "a dog").folder
    drawn = pictures(folder)
    with open_set(folder) as image_set:
        cat = image_set.state.images[1]
        image_set.commit([cat.with_drawing(made_with="", bytes=0)])
        missing = find_missing(image_set)
        assert (missing.found, missing.images) == ([cat.with_drawing(made_with="", bytes=0)], [])
    image_set = draw()
    assert image_set.state.images[1] == cat
    assert pictures(folder) == drawn


def test_a_file_that_came_between_is_not_overwritten(draw: Draw, model: object, tmp_path: Path) -> None:
    folder = tmp_path / "icons"
    with open_set(folder, new=fox()) as image_set:
        image_set.commit(plan_images(image_set, [Prompt("a cat")]).new)
    (folder / "001-a-cat.png").write_text("mine")
    image_set = draw()
    assert (folder / "001-a-cat.png").read_text() == "mine"
    assert image_set.state.images[1].drawing.file == "001-a-cat-2.png"
    assert (folder / "001-a-cat-2.png").is_file()
