"""`generate`: where the style comes from, what is drawn, and what a second run does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from style_aligned.files import read_texts
from style_aligned.models.mini import Mini
from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.sets.sheet import sheet_path
from style_aligned.styles.style import Style
from tests.cli.conftest import FOX, SMALL, Run, assert_error, error_lines
from tests.sets.conftest import contents, pictures


def test_a_set_and_what_is_said_of_it(run: Run, loads: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "icons"
    code, output, error = run("generate", *FOX, "a cat", "a dog, neon sign", "--suffix", ", neon sign", "--output", out)
    assert (code, error_lines(error)) == (0, [])
    assert output == f"2 new images in {out}; all together: {out / 'sheet.png'}\n"
    assert contents(out).keys() == {
        "001-a-cat.png", "002-a-dog.png", "reference.png", "set.json", "sheet.png", "style.safetensors",
    }  # fmt: skip
    assert loads == [("mini", "auto", "auto")]
    texts = [read_texts(out / name) for name in ("reference.png", "001-a-cat.png", "002-a-dog.png")]
    assert [text["prompt"] for text in texts] == ["a fox, neon sign", "a cat, neon sign", "a dog, neon sign"]
    assert [text["seed"] for text in texts] == ["0", "1", "2"]
    style = Style.load(out / "style.safetensors")
    assert (style.prompt, style.num_inference_steps, style.size) == ("a fox, neon sign", 2, (64, 64))
    state = read_image_set(out).state
    assert (state.model, state.suffix) == ("mini", ", neon sign")


def test_settings_reach_the_reference(run: Run, tmp_path: Path) -> None:
    run(
        "generate", "a fox", "a cat", "--size", "64x128", "--steps", "3", "--guidance", "3", "--seed", "7",
        "--negative", "ink", "--scale", "0.5", "--no-share-group-norm", "--output", tmp_path / "out",
    )  # fmt: skip
    style = Style.load(tmp_path / "out" / "style.safetensors")
    assert (style.size, style.num_inference_steps, style.condition_scale) == ((128, 64), 3, 3.0)
    assert (style.seed, style.negative_prompt) == (7, "ink")
    assert style.options == {"scale": 0.5, "share_group_norm": False}
    assert read_texts(tmp_path / "out" / "001-a-cat.png")["seed"] == "8"


def test_the_same_command_draws_only_what_is_missing(run: Run, icons: Path) -> None:
    before = contents(icons)
    command = ["generate", *FOX, "a cat", "a dog", "--suffix", ", neon sign", "--output", icons]
    assert run(*command)[1].startswith("0 new images in icons (2 were there already)")
    assert pictures(icons) == {name: content for name, content in before.items() if name in pictures(icons)}
    code, output, _ = run("generate", *FOX, "a rocket", "a cat", "--output", icons)  # the set's own suffix
    assert (code, output) == (0, "1 new image in icons (1 was there already); all together: icons/sheet.png\n")
    after = pictures(icons)
    assert read_texts(icons / "003-a-rocket.png")["prompt"] == "a rocket, neon sign"
    assert {name: after[name] for name in after if name in before} == pictures_in(before)


def pictures_in(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".png") and name != "sheet.png"}


def test_what_was_deleted_damaged_or_edited_is_said(run: Run, icons: Path) -> None:
    before = pictures(icons)
    (icons / "001-a-cat.png").unlink()
    (icons / "002-a-dog.png").write_bytes(b"")
    code, output, error = run("add", icons)
    assert (code, output[:12]) == (0, "2 new images")
    assert "warning: 1 image was gone, and was drawn again: 001-a-cat\n" in error
    assert "warning: 1 image was damaged, and was drawn again: 002-a-dog\n" in error
    after = pictures(icons)
    assert after.pop("replaced/002-a-dog.png") == b""
    assert after == before
    Image.new("RGB", (64, 64), "red").save(icons / "001-a-cat.png")
    edited = (icons / "001-a-cat.png").read_bytes()
    assert "1 image was changed by another program, and is kept: 001-a-cat" in run("add", icons)[2]
    assert (icons / "001-a-cat.png").read_bytes() == edited


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["a fox, ink", *SMALL], "icons holds a set with prompt 'a fox, neon sign', not 'a fox, ink'"),
        ([*FOX[:3], "--steps", "3"], "icons holds a set with steps 2, not 3"),
        ([*FOX, "--seed", "1"], "icons holds a set with seed 0, not 1"),
        ([*FOX, "--guidance", "3"], r"icons holds a set with guidance 2.0, not 3.0"),
        ([*FOX, "--size", "128"], "icons holds a set with size 64x64, not 128x128"),
        (
            [*FOX, "--scale", "0.5"],
            r"with scale 1.0, not 0.5: take another --output, or add to it by style-aligned add",
        ),
    ],
)
def test_a_folder_with_a_set_of_another_style_is_refused(
    run: Run, icons: Path, options: list[str], pattern: str
) -> None:
    before = contents(icons)
    assert_error(run("generate", *options, "a cat", "a bird", "--output", icons), pattern)
    assert contents(icons) == before


def test_settings_of_a_set_that_is_planned_are_kept_too(run: Run, icons: Path) -> None:
    """As if it was interrupted before its reference was drawn."""
    with open_set(icons) as image_set:
        image_set.commit([image_set.state.reference.with_drawing(made_with="", bytes=0)])
    (icons / "style.safetensors").unlink()
    (icons / "reference.png").unlink()
    for options, told in (
        (["--guidance", "3"], "guidance by default, not 3.0"),
        (["--negative", "ink"], "negative prompt by default, not 'ink'"),
        (["--strength", "2"], "strength by default, not 2.0"),
        (["--size", "128x64"], "size 64x64, not 128x64"),
    ):
        assert_error(run("generate", *FOX, "a cat", *options, "--output", icons), f"icons holds a set with {told}: ")
    command = ["generate", *FOX, "a cat", "a dog", "--suffix", ", neon sign", "--output", icons]
    assert run(*command)[1].startswith("0 new images in icons (2 were there already)")


def test_what_images_that_are_there_do_not_follow_is_said(run: Run, icons: Path) -> None:
    told = "warning: what is there keeps its {}: 001-a-cat (style-aligned reroll icons draws images again)\n"
    before = pictures(icons)
    assert told.format("seed") in run("add", icons, "a cat", "--seed", "7")[2]
    assert told.format("options") in run("add", icons, "a cat", "--strength", "2")[2]
    init = ["--init", icons / "001-a-cat.png", "--seed", "7", "--output", icons]
    assert told.format("pictures and seed") in run("generate", icons, "a cat", *init)[2]
    assert pictures(icons) == before
    assert "keeps" not in run("add", icons, "a cat", "a bird", "--seed", "7", "--strength", "2")[2].replace(
        told.format("options"), ""
    )
    again = run("add", icons, "a bird", "--seed", "7", "--strength", "2")  # as before
    assert (again[0], "keeps" in again[2]) == (0, False)


def test_a_style_from_a_set_a_file_and_a_candidate(run: Run, icons: Path) -> None:
    style = (icons / "style.safetensors").read_bytes()
    Path("fox.safetensors").write_bytes(style)
    for source, out in (("icons", "a"), ("fox", "b"), ("fox.safetensors", "c")):
        code, output, _ = run("generate", source, "a rocket", "--output", out)
        assert (code, output[:12]) == (0, "1 new image "), output
        assert (Path(out) / "style.safetensors").read_bytes() == style
        assert read_texts(Path(out) / "reference.png") == read_texts(icons / "reference.png")
        prompt = "a rocket, neon sign" if source == "icons" else "a rocket"
        assert read_texts(Path(out) / "001-a-rocket.png")["prompt"] == prompt
    assert run("generate", "fox", "a rocket", "a cat", "--output", "b")[1].startswith("1 new image in b (1 was there")
    assert run("explore", "a fox", *SMALL, "--count", "2", "--output", "looks")[0] == 0
    for source in ("looks/2", "looks/2.png"):
        assert run("generate", source, "a cat", "--output", "from-looks")[0] == 0
        assert (Path("from-looks") / "style.safetensors").read_bytes() == Path("looks/2.safetensors").read_bytes()
    assert_error(
        run("generate", "looks/1", "a cat", "--output", "from-looks"), "from-looks holds a set with seed 1, not 0"
    )


def test_options_change_how_a_style_is_followed(run: Run, icons: Path) -> None:
    assert run("generate", "icons", "a cat", "--scale", "0.5", "--seed", "30", "--output", "weak")[0] == 0
    style = Style.load(Path("weak") / "style.safetensors")
    assert style.options == {"scale": 0.5, "share_group_norm": True}
    texts = read_texts(Path("weak") / "001-a-cat.png")
    assert texts["seed"] == "31"
    assert json.loads(texts["settings"])["options"]["scale"] == 0.5
    assert run("generate", "icons", "a dog", "--scale", "0.5", "--output", "weak")[0] == 0
    assert_error(run("generate", "icons", "a dog", "--scale", "0.6", "--output", "weak"), "with scale 0.5, not 0.6")


@pytest.mark.parametrize("option", [["--steps", "3"], ["--size", "64"], ["--guidance", "3"], ["--negative", "ink"]])
def test_a_style_has_settings_of_its_own(run: Run, loads: list[Any], icons: Path, option: list[str]) -> None:
    loads.clear()
    result = run("generate", "icons", "a cat", *option, "--output", "new")
    assert_error(result, f"expected no {option[0]} beside a style that is there: it has its own")
    assert loads == []
    assert not Path("new").exists()


def test_several_styles_have_a_folder_each(run: Run, icons: Path) -> None:
    options = ["--style", "icons", "--reference", "a lion, ink", *SMALL, "--prompt", "a cat", "--output", "grid"]
    code, output, _ = run("generate", "a dog", *options)
    assert (code, output) == (0, "4 new images in grid; all together: grid/sheet.png\n")
    folders = ["000-a-lion-ink", "001-icons"]
    assert sorted(path.name for path in Path("grid").iterdir()) == [*folders, "sheet.png"]
    for folder in folders:
        assert {"001-a-dog.png", "002-a-cat.png"} <= contents(Path("grid") / folder).keys()
    again = run("generate", "a dog", *options)
    assert again[1].startswith("0 new images in grid (4 were there already)")
    assert_error(run("generate", "x", *options, "--style", "icons"), "expected each --style once, got 'icons' twice")
    twice = ["--reference", "a fox", "--reference", "a fox"]
    assert_error(run("generate", "x", *twice, "--output", "y"), "expected each --reference once, got 'a fox' twice")


def test_prompts_of_files_bring_seeds_and_names(run: Run, icons: Path) -> None:
    Path("more.csv").write_text('prompt,seed,name\n"a bird, red",77,tweety\na cow,,\n')
    assert run("add", icons, "--prompts", "more.csv")[0] == 0
    assert read_texts(icons / "tweety.png")["prompt"] == "a bird, red, neon sign"
    assert read_texts(icons / "tweety.png")["seed"] == "77"
    assert read_texts(icons / "004-a-cow.png")["seed"] == "4"
    assert run("add", icons, "--prompts", "more.csv")[1].startswith("0 new images in icons (2 were there already)")


def test_compare_draws_twins(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("generate", *FOX, "a cat", "--output", out)
    with Image.open(out / "sheet.png") as sheet:
        plain = sheet.size
    assert run("add", out, "--compare")[0] == 0
    assert json.loads(read_texts(out / "unaligned" / "001-a-cat.png")["settings"])["aligned"] is False
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 1.5 * plain[1]


def test_json_tells_what_was_drawn(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output, _ = run("generate", *FOX, "a cat", "--json", "--output", out)
    told = json.loads(output)
    assert code == 0
    assert (told["new"], told["there"], told["sheet"]) == (1, 0, str(out / "sheet.png"))
    assert told["sets"][0]["images"] == [{"id": 1, "prompt": "a cat", "seed": 1, "file": "001-a-cat.png"}]
    assert told["sets"][0]["reference"]["file"] == "reference.png"


def test_open_opens_the_sheet(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_page(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", open_page)
    assert run("generate", *FOX, "a cat", "--open", "--output", tmp_path / "out")[0] == 0
    assert opened == [(tmp_path / "out" / "sheet.png").as_uri()]


def test_the_model_is_that_of_the_option_the_set_or_the_environment(
    run: Run, loads: list[Any], icons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads.clear()
    monkeypatch.setenv("STYLE_ALIGNED_MODEL", "sdxl")
    run("explore", "a fox", *SMALL, "--count", "1", "--output", "looks", "--device", "cpu")
    run("add", icons)
    run("reroll", icons, "cat", "--model", "other", "--dtype", "bfloat16")
    run("generate", "looks/1", "a cat", "--output", "new")
    assert loads == [
        ("sdxl", "cpu", "auto"), ("mini", "auto", "auto"), ("other", "auto", "bfloat16"), ("mini", "auto", "auto"),
    ]  # fmt: skip
    monkeypatch.delenv("STYLE_ALIGNED_MODEL")


def test_the_model_of_a_set_is_known_in_other_folders(
    run: Run, loads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    run("generate", *FOX, "a cat", "--model", "model", "--output", "out")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run("add", "../out", "a dog")
    assert loads[-1][0] == str(tmp_path / "model")


def test_an_interruption_says_what_is_kept(
    run: Run, model: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    passes: list[None] = []

    def interrupt(*_: object) -> None:
        passes.append(None)
        if len(passes) == 6:  # the reference and two images have done two steps, and the next ones one
            raise KeyboardInterrupt

    command = ["generate", *FOX, "a cat", "a dog", "a bird", "a cow", "--batch-size", "2", "--output", "out"]
    hook = model.unet.register_forward_hook(interrupt)
    try:
        code, output, error = run(*command)
    finally:
        hook.remove()
    assert (code, output) == (130, "")
    assert error_lines(error) == [
        "style-aligned: interrupted: 2 of 4 images are in out, 2 of them new; style-aligned add out draws the others"
    ]
    kept = pictures(Path("out"))
    assert kept.keys() == {"001-a-cat.png", "002-a-dog.png", "reference.png"}
    assert run("add", "out")[1] == "2 new images in out; all together: out/sheet.png\n"
    after = pictures(Path("out"))
    assert {name: after[name] for name in kept} == kept
    assert after.keys() - kept.keys() == {"003-a-bird.png", "004-a-cow.png"}
    assert run(*command)[1].startswith("0 new images in out (4 were there already)")


def test_a_set_goes_on_from_the_seed_of_its_reference(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("generate", *FOX, "a cat", "--seed", "5", "--output", out)[0] == 0
    note = f"warning: {out} goes on in the style of its reference, which has seed 5"
    assert note in run("generate", *FOX, "a cat", "a dog", "--output", out)[2]
    assert note not in run("generate", *FOX, "a cat", "--seed", "5", "--output", out)[2]
    assert_error(run("generate", *FOX, "a cat", "--seed", "6", "--output", out), "holds a set with seed 5, not 6: take")


def test_a_folder_without_set_json_opens_and_grows(run: Run, icons: Path) -> None:
    (icons / "set.json").unlink()
    before = pictures(icons)
    assert run("show", icons)[0] == 0
    assert not (icons / "set.json").exists()
    command = ["generate", "--reference", *FOX, "--prompt", "a cat, neon sign", "--prompt", "a cow, neon sign"]
    _, output, error = run(*command, "--output", icons)
    assert output.startswith("1 new image in icons (1 was there already)")
    assert "warning: icons has no set.json, and gets one from what its images say: all but the sheet's title" in error
    after = pictures(icons)
    assert after.pop("003-a-cow.png")
    assert after == before
    assert run("add", icons, "a hen")[0] == 0
    assert read_texts(icons / "004-a-hen.png")["prompt"] == "a hen, neon sign"  # it knows its suffix


def test_other_programs_files_are_never_overwritten(run: Run, icons: Path) -> None:
    Image.new("RGB", (8, 8)).save(icons / "sheet.png")
    before = contents(icons)
    message = r"icons/sheet\.png is no contact sheet of style-aligned: move it, or give it another name"
    for command in (["add", icons, "a cow"], ["generate", *FOX, "a cow", "--output", icons], ["sheet", icons]):
        assert_error(run(*command), message)
        assert contents(icons) == before
    shutil.move(icons / "sheet.png", icons / "mine.png")
    (icons / "003-a-cow.png").write_text("mine")
    assert run("add", icons, "a cow")[0] == 0
    assert (icons / "003-a-cow.png").read_text() == "mine"
    assert read_image_set(icons).state.images[3].drawing.file == "003-a-cow-2.png"
    assert sheet_path(read_image_set(icons)).is_file()
