"""What is of another run, of another model or of others is not replaced, but with `--force`."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from style_aligned.cli import drawing
from style_aligned.cli.locking import sole_use
from style_aligned.files import is_damaged, read_texts, write_png
from style_aligned.models.mini import Mini
from style_aligned.models.model import describe_model
from style_aligned.styles.style import Style
from tests.cli.conftest import FOX, SMALL, Run, assert_error, contents, error_lines


def test_images_of_other_settings_are_not_replaced(run: Run, loads: list[Any], tmp_path: Path) -> None:
    command = ["generate", "--reference", "a fox", "--size", "64", "--prompt", "a cat", "--output", tmp_path]
    assert run(*command, "--steps", "2")[0] == 0
    before = contents(tmp_path)
    loads.clear()
    assert_error(run(*command, "--steps", "3"), "000-a-cat.png is of another run: it has steps=2, not 3 .*--force")
    assert_error(run(*command, "--steps", "2", "--seed", "9"), "another run: it has reference_seed=0, not 9")
    assert loads == []
    assert contents(tmp_path) == before
    code, output, _ = run(*command, "--steps", "3", "--force")
    assert code == 0
    assert output.startswith("1 new image in")
    assert json.loads(read_texts(tmp_path / "000-a-cat.png")["settings"])["steps"] == 3

    (tmp_path / "000-a-cat.png").write_bytes(b"my own notes")
    assert_error(run(*command, "--steps", "3"), "000-a-cat.png is of another program: it holds no settings")
    assert (tmp_path / "000-a-cat.png").read_bytes() == b"my own notes"


def test_what_is_of_others_is_not_replaced(run: Run, loads: list[Any], tmp_path: Path) -> None:
    style = tmp_path / "fox.safetensors"
    assert run("style", "make", "--reference", "a fox", *SMALL, "--output", style)[0] == 0
    loads.clear()
    out = tmp_path / "out"
    command = ["generate", "--style", style, "--reference", "a dog", "--prompt", "a cat", "--compare"]
    others = Image.effect_noise((64, 64), 50).convert("RGB")
    foreign: list[tuple[str, dict[str, str], str]] = [
        ("sheet.png", {}, "is of another program: it is no contact sheet"),
        ("sheet.png", {"kind": "demonstration"}, "is of another program: it is no contact sheet"),
        ("000-a-dog/reference.png", {}, "is of another program: it holds no settings"),
        ("001-fox/reference.png", {}, "is of another program: it holds no settings"),
        ("001-fox/unaligned/000-a-cat.png", {}, "is of another program: it holds no settings"),
        ("001-fox/000-a-cat.png", {"settings": "no JSON"}, "is of another program: its settings are not a JSON object"),
        ("001-fox/000-a-cat.png", {"settings": "[]"}, "is of another program: its settings are not a JSON object"),
    ]
    for name, texts, message in foreign:
        write_png(out / name, others, texts)
        before = contents(out)
        assert_error(run(*command, "--output", out), re.escape(f"{out / name} {message} (--force replaces it, or take"))
        assert loads == []
        assert contents(out) == before
        (out / name).unlink()

    write_png(out / "sheet.png", others)
    assert run(*command, "--output", out, "--force")[0] == 0
    assert read_texts(out / "sheet.png")["kind"] == "contact sheet"
    (out / "sheet.png").write_bytes((out / "sheet.png").read_bytes()[:-20])
    assert run(*command, "--output", out)[0] == 0
    assert not is_damaged(out / "sheet.png")


def test_a_damaged_style_in_the_folder(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path]
    run(*command)
    before = contents(tmp_path)
    path = tmp_path / "style.safetensors"
    for content in (before["style.safetensors"][:-100], b"my own notes"):
        path.write_bytes(content)
        code, _, error = run(*command)
        assert code == 2
        assert f"error: {path} is damaged, or no style file: expected" in error.splitlines()[-1]
        assert error.splitlines()[-1].endswith("(--force replaces it)")
        assert path.read_bytes() == content
    assert run(*command, "--force")[0] == 0
    assert contents(tmp_path) == before


def test_a_style_of_other_weights_takes_force(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    command = ["generate", "--style", file, "--compare", "--output", tmp_path / "out"]
    cat, dog = ["--prompt", "a cat"], ["--prompt", "a dog"]
    weight = next(random_mini.unet.parameters())
    before = weight.clone()

    def models() -> set[str]:
        images = [path for path in (tmp_path / "out").rglob("*.png") if path.name != "sheet.png"]
        return {json.loads(read_texts(path)["settings"])["model"]["fingerprint"] for path in images}

    try:
        weight.data += 1
        code, _, error = run(*command, *cat)
        assert code == 2
        assert "fingerprint" in error.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        weight.data.copy_(before)
        assert run(*command, *cat)[0] == 0
        assert models() == {describe_model(random_mini)["fingerprint"]}
        by_the_first = (tmp_path / "out" / "000-a-cat.png").read_bytes()

        # the images say which model drew them, and those of the other are made again
        weight.data += 1
        code, output, _ = run(*command, *cat, *dog, "--force")
        assert (code, output[:13]) == (0, "4 new images ")
        assert models() == {describe_model(random_mini)["fingerprint"]}
        assert (tmp_path / "out" / "000-a-cat.png").read_bytes() != by_the_first
        assert run(*command, *cat, *dog, "--force")[1].startswith("0 new images")
    finally:
        weight.data.copy_(before)
    assert_error(run(*command, *cat), "000-a-cat.png is of another run: it has model=")


def test_what_is_in_the_way_is_found_before_anything_is_drawn(run: Run, loads: list[Any], tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--compare", "--output"]
    for name, is_folder in (
        ("sheet.png", True),
        ("style.safetensors", True),
        ("reference.png", True),
        ("000-a-cat.png", True),
        ("unaligned", False),
    ):
        folder = tmp_path / name
        (folder / name).mkdir(parents=True) if is_folder else folder.mkdir()
        if not is_folder:
            (folder / name).write_text("mine")
        found = r"to be a file, or free for one, got a folder" if is_folder else r"to be a folder, or free for one"
        for options in ([], ["--force"]):
            assert_error(run(*command, folder, *options), f"{name} {found}")
        assert [path.name for path in folder.rglob("*")] == [name]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert_error(run(*command, tmp_path / "link"), "link to be a folder")
    assert not loads


def test_images_of_another_decoder_are_not_replaced(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path / "out"]
    assert run(*command)[0] == 0
    weight = next(random_mini.lda.parameters())
    before = weight.clone()
    try:
        weight.data += 1
        code, _, error = run(*command)
        assert code == 2
        assert "is of another run: it has decoder=" in error.splitlines()[-1]
    finally:
        weight.data.copy_(before)


def test_the_style_of_another_model_in_the_folder(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path]
    assert run(*command)[0] == 0
    whole, path = contents(tmp_path), tmp_path / "style.safetensors"
    style = Style.load(path)

    def assert_refused(field: str, name: str, value: object) -> None:
        replace(style, **{field: {**getattr(style, field), name: value}}).save(path)
        before = contents(tmp_path)
        code, output, error = run(*command)
        assert (code, output) == (2, "")
        (line,) = error_lines(error)
        assert f"error: {path} is of another run: expected a {field} with {name}={value}, as the style's, got " in line
        assert line.endswith("(--force replaces it)")
        assert contents(tmp_path) == before

    assert_refused("model", "class", "StableDiffusion_1")
    assert_refused("solver", "name", "PNDM")
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert_refused("model", "precision", "bfloat16")  # images or not
    assert run(*command, "--force")[0] == 0
    assert contents(tmp_path) == whole


def test_a_refusal_leaves_no_new_style_beside_the_images_of_another(
    run: Run, random_mini: Mini, tmp_path: Path
) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path]
    assert run(*command)[0] == 0
    (tmp_path / "style.safetensors").unlink()
    before = contents(tmp_path)
    weight = next(random_mini.unet.parameters())
    own = weight.clone()
    try:
        weight.data += 1
        code, output, error = run(*command)
        assert (code, output) == (2, "")
        assert "is of another run: it has model=" in error.splitlines()[-1]
        assert contents(tmp_path) == before
    finally:
        weight.data.copy_(own)
    assert run(*command)[1].startswith("0 new images ")


def test_one_run_at_a_time(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path / "new" / "out"]
    with sole_use(tmp_path / "new" / "out"):
        code, output, error = run(*command)
        assert (code, output) == (2, "")
        assert error_lines(error) == [
            f"style-aligned: error: expected --output to be free, got {tmp_path / 'new' / 'out'}, where another run is"
            " at work"
        ]
        assert contents(tmp_path) == {}
    assert run(*command)[0] == 0


def test_an_error_leaves_no_empty_folders(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise ValueError("overflowed")

    monkeypatch.setattr(drawing, "generate", generate)
    command = ["generate", *FOX, "--prompt", "a cat", "--output"]
    assert error_lines(run(*command, tmp_path / "new" / "out")[2]) == ["style-aligned: error: overflowed"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert run(*command, tmp_path / "mine")[0] == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
