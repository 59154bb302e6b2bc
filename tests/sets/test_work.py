"""Drawing what a set is missing: in which chunks, what is on the disk when, and what stays as it is."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from style_aligned.files import parse_settings, read_texts
from style_aligned.models.mini import Mini
from style_aligned.sets import backend, drawing, work
from style_aligned.sets.changes import remove_image, rename_image, restore_image
from style_aligned.sets.image_set import ImageSet, open_set, read_image_set
from style_aligned.sets.plan import plan_images
from style_aligned.sets.prompts import Prompt, collect_prompts
from style_aligned.sets.records import SetError
from style_aligned.sets.sheet import draw_sheet
from style_aligned.sets.work import Artist, How, Report
from style_aligned.styles.style import Style
from tests.conftest import build_random_mini
from tests.sets.conftest import Draw, contents, fox, pictures


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.float32)


def test_images_are_those_of_generate(draw: Draw, model: Mini) -> None:
    image_set = draw("a cat", "a dog")
    style = Style.load(image_set.style_path)
    samples = drawing.draw(
        model, style, ["a cat, neon sign", "a dog, neon sign"], [1, 2], is_aligned=True, batch_size=4
    )
    for sample, name in zip(samples, ("001-a-cat.png", "002-a-dog.png"), strict=True):
        with Image.open(image_set.folder / name) as image:
            assert image.tobytes() == sample.image.tobytes()
        texts = read_texts(image_set.folder / name)
        assert (texts["prompt"], texts["seed"]) == (sample.prompt, str(sample.seed))
    with Image.open(image_set.folder / "reference.png") as image:
        assert image.tobytes() == style.image(model).tobytes()
    assert style.prompt == "a fox, neon sign"
    assert style.size == (64, 64)


def test_everything_that_an_image_was_made_with_is_in_the_set_and_in_its_file(draw: Draw) -> None:
    image_set = draw("a cat")
    image = image_set.state.images[1]
    made_with = image_set.settings_of(image.drawing)
    assert made_with == parse_settings(read_texts(image_set.path(image)))
    assert made_with["steps"] == 2
    assert made_with["guidance"] == 2.0  # recommended for the embedded model
    assert made_with["options"] == {"share_group_norm": True}
    assert made_with["model"]["class"] == "Mini"
    assert {"aligned", "negative_prompt", "size", "solver", "decoder", "style"} < made_with.keys()
    assert image.drawing.bytes == image_set.path(image).stat().st_size


def test_only_what_is_missing_is_drawn(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw("a cat", "a dog").folder
    before = contents(folder)
    drawn: list[str] = []
    real = drawing.draw

    def spy(model: Any, style: Any, prompts: list[str], *arguments: Any, **options: Any) -> Any:
        drawn.extend(prompts)
        return real(model, style, prompts, *arguments, **options)

    monkeypatch.setattr(drawing, "draw", spy)
    draw("a cat", "a dog")
    assert drawn == []
    assert contents(folder) == {**before, "set.json": (folder / "set.json").read_bytes()}
    draw("a rocket", "a cat")
    assert drawn == ["a rocket, neon sign"]
    after = pictures(folder)
    assert after.pop("003-a-rocket.png")
    assert after == pictures_of(before)


def pictures_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".png") and name != "sheet.png"}


def test_the_first_images_come_after_a_batch_then_chunks_take_their_time(
    model: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    chunks: list[int] = []
    on_sheet: list[int] = []
    real, write_sheet = drawing.draw, work.write_sheet

    def draw(model: Mini, style: Any, prompts: list[str], *arguments: Any, **options: Any) -> Any:
        chunks.append(len(prompts))
        now[0] += 2.0 * (1 + len(prompts))  # two seconds an image
        return real(model, style, prompts, *arguments, **options)

    def write(sets: list[ImageSet], path: Path) -> bool:
        on_sheet.append(sum(image.drawing.is_drawn for image in sets[0].state.current))
        return write_sheet(sets, path)

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(work, "write_sheet", write)
    for module in (backend, work):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.commit(plan_images(image_set, [Prompt(f"a cat {number}") for number in range(11)]).new)
        Artist(image_set, model, How(batch_size=2, chunk_seconds=13.0)).draw_missing()
    assert chunks == [2, 6, 3]  # six images in 13 seconds: three batches
    assert on_sheet == [2, 8, 11]


def test_an_interruption_loses_no_more_than_a_chunk(
    model: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_set(tmp_path / "whole", new=fox()) as image_set:
        image_set.commit(plan_images(image_set, collect_prompts(["a cat", "a dog", "a fox", "a rocket"])).new)
        Artist(image_set, model, How(batch_size=2)).draw_missing()
    steps = 0

    def step(count: int) -> None:
        nonlocal steps
        steps += count
        if steps > 8:  # of 2 · (1 reference + 2 images) for the first chunk
            raise KeyboardInterrupt

    folder = tmp_path / "icons"
    with contextlib.suppress(KeyboardInterrupt), open_set(folder, new=fox()) as image_set:
        image_set.commit(plan_images(image_set, collect_prompts(["a cat", "a dog", "a fox", "a rocket"])).new)
        Artist(image_set, model, How(batch_size=2), Report(step=step)).draw_missing()
    there = pictures(folder)
    assert there.keys() == {"001-a-cat.png", "002-a-dog.png", "reference.png"}
    assert (folder / "sheet.png").is_file()
    with open_set(folder) as image_set:
        done = Artist(image_set, model, How(batch_size=2)).draw_missing()
        assert [image.name for image in done.images] == ["003-a-fox", "004-a-rocket"]
    assert pictures(folder) == pictures(tmp_path / "whole")
    assert (folder / "style.safetensors").read_bytes() == (tmp_path / "whole" / "style.safetensors").read_bytes()


def test_what_is_announced_is_what_is_counted(model: Mini, tmp_path: Path) -> None:
    announced: list[tuple[int, int]] = []
    counts = {"steps": 0, "images": 0}

    def step(count: int) -> None:
        counts["steps"] += count

    def image(file: str) -> None:
        counts["images"] += 1

    def start(images: int, steps: int) -> None:
        announced.append((images, steps))

    report = Report(start=start, step=step, image=image)
    with open_set(tmp_path, new=fox()) as image_set:
        image_set.commit(plan_images(image_set, collect_prompts(["a cat", "a dog", "a fox"])).new)
        Artist(image_set, model, How(batch_size=2, compare=True), report).draw_missing()
        assert announced == [(7, 14)]
        assert counts == {"steps": 14, "images": 7}
        Artist(image_set, model, How(compare=True), report).draw_missing()
        assert announced == [(7, 14)]


def test_a_reroll_changes_one_image_and_keeps_the_old_one(draw: Draw, model: Mini) -> None:
    folder = draw("a cat", "a dog").folder
    before = pictures(folder)
    with open_set(folder) as image_set:
        changed = Artist(image_set, model).reroll(image_set.state.images[2])
    assert changed.drawing.seed == 3  # 0 to 2 are in use
    assert changed.drawing.file == "002-a-dog.png"
    after = pictures(folder)
    assert after.pop("replaced/002-a-dog-seed-2.png") == before["002-a-dog.png"]
    assert after.keys() == before.keys()
    assert after["002-a-dog.png"] != before["002-a-dog.png"]
    assert {name for name in after if after[name] != before[name]} == {"002-a-dog.png"}
    assert read_texts(folder / "002-a-dog.png")["seed"] == "3"
    assert read_image_set(folder).state.images[2] == changed


def test_several_rerolls_make_the_first_one_current(draw: Draw, model: Mini) -> None:
    folder = draw("a cat").folder
    with open_set(folder) as image_set:
        changed = Artist(image_set, model).reroll(image_set.state.images[1], seed=99, count=3, options={"scale": 0.5})
        assert changed.drawing.seed == 99
        assert changed.drawing.options == {"scale": 0.5}
        assert image_set.settings_of(changed.drawing)["options"]["scale"] == 0.5
        assert sorted(own.seed for own in changed.replaced) == [1, 100, 101]
        assert all(image_set.path(own).is_file() for own in changed.replaced)
        again = Artist(image_set, model).reroll(changed)
        assert (again.drawing.seed, again.drawing.options) == (102, {"scale": 0.5})
        back = restore_image(image_set, "cat", seed=100)
        assert (back.drawing.seed, back.drawing.file) == (100, "001-a-cat.png")
        with pytest.raises(SetError, match=r"seed of a drawing .* that was replaced: 1, 101, 99, 102, got 7"):
            restore_image(image_set, "cat", seed=7)
    assert read_texts(folder / "001-a-cat.png")["seed"] == "100"


def test_a_reroll_takes_one_image_and_no_reference(draw: Draw, model: Mini) -> None:
    folder = draw("a cat", "a dog", "a fox", "a rocket").folder
    announced: list[tuple[int, int]] = []

    def start(images: int, steps: int) -> None:
        announced.append((images, steps))

    with open_set(folder) as image_set:
        Artist(image_set, model, report=Report(start=start)).reroll(image_set.state.images[2])
    assert announced == [(1, 2)]


def test_removed_images_come_back(draw: Draw, model: Mini) -> None:
    folder = draw("a cat", "a dog", "a rocket").folder
    before = pictures(folder)
    with open_set(folder) as image_set:
        remove_image(image_set, image_set.state.images[2])
        assert [image.id for image in image_set.state.current] == [1, 3]
    after = pictures(folder)
    assert after.pop("replaced/002-a-dog.png") == before["002-a-dog.png"]
    assert after == {name: content for name, content in before.items() if name != "002-a-dog.png"}
    draw()  # what was removed is not missing
    assert not (folder / "002-a-dog.png").exists()
    assert draw("a bird").state.images[4].drawing.seed == 4  # its id and seed are not given away
    with open_set(folder) as image_set:
        assert restore_image(image_set, "dog").drawing.file == "002-a-dog.png"
        with pytest.raises(SetError, match=r"nothing of .*icons was replaced or removed$"):
            restore_image(image_set, "dog")
        remove_image(image_set, image_set.state.images[3])
        with pytest.raises(
            SetError, match=r"^nothing of 002-a-dog was replaced or removed: .* restore are 003-a-rocket$"
        ):
            restore_image(image_set, "dog")
        with pytest.raises(SetError, match=r"^no image is called 'lamp': those to restore are 003-a-rocket$"):
            restore_image(image_set, "lamp")
        with pytest.raises(SetError, match=r"^expected the seed of a drawing of 003-a-rocket .*: 3, got 7$"):
            restore_image(image_set, "rocket", seed=7)
        assert image_set.state.images[3].is_removed
        restore_image(image_set, "rocket", seed=3)
    after = pictures(folder)
    del after["004-a-bird.png"]
    assert after == before


def test_renamed_images_keep_everything_else(draw: Draw, model: Mini) -> None:
    folder = draw("a cat", "a dog", compare=True).folder
    before = pictures(folder)
    with open_set(folder) as image_set:
        dog = image_set.state.images[2]
        renamed = rename_image(image_set, dog, "good-dog.png")
        assert (renamed.id, renamed.drawing.seed, renamed.prompt) == (2, 2, dog.prompt)
        for name in ("001-A-cat", "reference", "Sheet"):
            with pytest.raises(ValueError, match=r"expected (a name that no other file of the set has|another name)"):
                rename_image(image_set, renamed, name)
        assert rename_image(image_set, renamed, "Good-Dog").drawing.file == "Good-Dog.png"
    expected = {name.replace("002-a-dog", "Good-Dog"): content for name, content in before.items()}
    assert pictures(folder) == expected
    draw("a cat", "a dog")
    assert pictures(folder) == expected


def test_unaligned_twins(draw: Draw, model: Mini) -> None:
    image_set = draw("a cat", compare=True)
    assert image_set.state.compare
    twin = image_set.folder / "unaligned" / "001-a-cat.png"
    assert json.loads(read_texts(twin)["settings"])["aligned"] is False
    before = pictures(image_set.folder)
    image_set = draw("a dog")  # the set remembers it
    assert image_set.state.images[2].drawing.unaligned == "unaligned/002-a-dog.png"
    image_set = draw("a bird", compare=False)
    assert draw("a bat").state.images[4].drawing.unaligned == ""
    draw(compare=True)
    assert {image.drawing.unaligned for image in read_image_set(image_set.folder).state.current} == {
        f"unaligned/{name}.png" for name in ("001-a-cat", "002-a-dog", "003-a-bird", "004-a-bat")
    }
    assert {name: pictures(image_set.folder)[name] for name in before} == before
    with open_set(image_set.folder) as image_set:
        changed = Artist(image_set, model).reroll(image_set.state.images[1])
    assert changed.drawing.unaligned == "unaligned/001-a-cat-2.png"
    assert changed.replaced[0].unaligned == "unaligned/001-a-cat.png"


@pytest.mark.filterwarnings("ignore:.+ has no set.json:UserWarning")
def test_a_folder_without_set_json_opens_and_grows(draw: Draw, model: Mini, tmp_path: Path) -> None:
    folder = draw("a cat", "a dog", compare=True).folder
    (folder / "set.json").unlink()
    shutil.move(folder / "001-a-cat.png", folder / "000-a-cat.png")
    shutil.move(folder / "unaligned" / "001-a-cat.png", folder / "unaligned" / "000-a-cat.png")
    Image.new("RGB", (8, 8)).save(folder / "mine.png")
    before = pictures(folder)
    state = read_image_set(folder).state
    assert not (folder / "set.json").exists()
    assert {number: image.drawing.file for number, image in state.images.items()} == {
        0: "000-a-cat.png", 2: "002-a-dog.png",
    }  # fmt: skip
    assert (state.reference.prompt, state.model) == ("a fox, neon sign", "mini")
    image_set = draw("a rocket, neon sign", "a cat, neon sign")
    assert image_set.state.images[3].drawing.seed == 3
    after = pictures(folder)
    assert after.pop("003-a-rocket.png")
    assert after.pop("unaligned/003-a-rocket.png")
    assert after == before
    assert image_set.state.images[0].drawing.unaligned == "unaligned/000-a-cat.png"


@pytest.mark.filterwarnings("ignore:.+ has no set.json:UserWarning")
def test_a_set_that_has_lost_its_file_can_be_undone(draw: Draw, model: Mini) -> None:
    folder = draw("a cat", "a dog", "a rocket").folder
    with open_set(folder) as image_set:
        artist = Artist(image_set, model)
        artist.reroll(image_set.state.images[1], options={"scale": 0.5})
        artist.reroll(image_set.state.images[1])
        remove_image(image_set, image_set.state.images[2])
        rename_image(image_set, image_set.state.images[3], "rocket")
    before = read_image_set(folder).state
    (folder / "set.json").unlink()
    state = read_image_set(folder).state
    assert {image.id: image.drawing.file for image in state.images.values()} == {
        1: "001-a-cat.png", 2: "replaced/002-a-dog.png", 3: "rocket.png",
    }  # fmt: skip
    assert state.images[1].drawing.options == {"scale": 0.5}
    assert [replace(own, made_with="") for own in state.images[1].replaced] == [
        replace(own, made_with="") for own in before.images[1].replaced
    ]
    with open_set(folder) as image_set:
        restored = restore_image(image_set, "dog")
        assert (restored.drawing.file, restored.drawing.seed) == ("002-a-dog.png", 2)
        assert restore_image(image_set, "cat", seed=1).drawing.options == {}


def test_a_sheet_of_another_program_is_not_overwritten(draw: Draw) -> None:
    folder = draw("a cat").folder
    Image.new("RGB", (8, 8)).save(folder / "sheet.png")
    mine = (folder / "sheet.png").read_bytes()
    with pytest.raises(SetError, match=r"sheet\.png is no contact sheet of style-aligned: move it"):
        draw("a dog")
    assert (folder / "sheet.png").read_bytes() == mine
    assert not (folder / "002-a-dog.png").exists()


def test_styles_of_other_weights_take_force(draw: Draw, model: Mini, fresh_mini: Mini) -> None:
    folder = draw("a cat").folder
    fresh_mini.unet.load_state_dict({key: 1.5 * value for key, value in fresh_mini.unet.state_dict().items()})
    warnings: list[str] = []
    with open_set(folder) as image_set:
        image_set.commit(plan_images(image_set, [Prompt("a dog")]).new)
        with pytest.raises(
            ValueError, match=r"style\.safetensors was made with other weights: pass that model by --model"
        ):
            Artist(image_set, fresh_mini)
        Artist(image_set, fresh_mini, How(force=True), Report(warn=warnings.append)).draw_missing()
    assert len(warnings) == 1
    made_with = [image_set.settings_of(image.drawing)["model"]["fingerprint"] for image in image_set.state.current]
    assert made_with[0] != made_with[1]


def test_a_set_begun_in_float32_grows_in_half_precision(draw: Draw, model: Mini) -> None:
    image_set = draw("a cat")
    before, warned = pictures(image_set.folder), list[str]()
    half = build_random_mini()
    half.to(dtype=torch.bfloat16)
    half.dtype = torch.bfloat16
    half.solver = model.solver
    with open_set(image_set.folder) as opened:
        artist = Artist(opened, half, How(), Report(warn=warned.append))
        artist.plan([Prompt("a dog, neon sign")])
        artist.draw_missing()
    assert len(warned) == 1
    assert "the style was made in float32 and the model is in bfloat16: images differ a little" in warned[0]
    after = pictures(image_set.folder)
    assert {name: after[name] for name in before} == before
    path = opened.path(opened.state.images[2])
    made = parse_settings(read_texts(path))
    assert made is not None
    assert made["model"]["precision"] == "bfloat16"
    (expected,) = drawing.draw(
        model, Style.load(opened.style_path), ["a dog, neon sign"], [2], is_aligned=True, batch_size=1
    )
    with Image.open(path) as image:
        drawn = torch.tensor(list(image.tobytes()), dtype=torch.float32)
    wanted = torch.tensor(list(expected.image.tobytes()), dtype=torch.float32)
    assert 0 < (drawn - wanted).abs().mean() < 8


def test_the_sheet_of_many_images_is_bounded(draw: Draw) -> None:
    image_set = draw("a cat")
    image = image_set.state.images[1]

    def size(count: int) -> tuple[int, int]:
        image_set.state.images.update({number: replace(image, id=number) for number in range(1, count + 1)})
        sheet = draw_sheet([image_set])
        assert sheet is not None
        return sheet.size

    assert size(95) == size(10_000)
