"""Masks on the reference and blends of styles, on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from style_aligned.files import parse_settings, read_texts
from style_aligned.sets.image_set import read_image_set
from style_aligned.styles.style import Style
from tests.cli.conftest import FOX, SMALL, Run, assert_error
from tests.sets.conftest import pictures


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def styles(run: Run) -> list[str]:
    """Two style files, `fox` and `owl`."""
    assert run("style", *FOX, "--output", "fox.safetensors")[0] == 0
    assert run("style", "an owl, ink", *SMALL, "--seed", "7", "--output", "owl.safetensors")[0] == 0
    return ["--style", "fox:0.7", "--style", "owl.safetensors:0.3", "--blend"]


def left_half(size: tuple[int, int] = (64, 64)) -> str:
    """Write a mask that takes the left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save("mask.png")
    return "mask.png"


class TestBlend:
    def test_a_set_in_a_blend_grows(self, run: Run, styles: list[str]) -> None:
        command = ["generate", *styles, "a cat", "--output", "mixed"]
        assert run(*command)[0] == 0
        blend = Style.load("mixed/style.safetensors")
        assert [(part.prompt, weight) for part, weight in blend.parts] == [
            ("a fox, neon sign", 0.7), ("an owl, ink", 0.3),
        ]  # fmt: skip
        assert read_image_set(Path("mixed")).state.style == {"source": {"kind": "blend"}}
        shown = json.loads(run("show", "mixed/style.safetensors", "--json")[1])
        assert [part["weight"] for part in shown["blend"]] == [0.7, 0.3]
        before = pictures(Path("mixed"))
        assert run(*command)[1].startswith("0 new images")
        assert run("add", "mixed", "a dog")[0] == 0
        assert {name: pictures(Path("mixed"))[name] for name in before} == before
        other = [text.replace("0.3", "0.9") for text in command]
        assert_error(run(*other), "mixed holds a set of another style")

    @pytest.mark.parametrize(
        ("arguments", "pattern"),
        [
            (["--style", "fox:0.7"], "expected at least two --style to blend, got 1"),
            (["--style", "fox", "--style", "fox.safetensors:0.3"], "expected each style of a blend once, got 'fox"),
            (["--style", "fox:-1", "--style", "owl:2"], "expected weights of at least 0 that do not sum up to nothing"),
            (["--style", "fox:nan", "--style", "owl"], "expected weights of at least 0"),
            (["--style", "fox:0", "--style", "owl:0"], "do not sum up to nothing"),
            (["--style", "fox:1.2.3", "--style", "owl"], "expected a number as the weight behind the colon"),
            (["--style", "fox", "--style", "cat"], "got 'cat', which is not there"),
            (["--style", "fox", "--style", "few"], "expected styles with the same num_inference_steps to blend"),
            (["--reference", "a cat", "--style", "fox"], "expected no --reference beside --blend"),
        ],
    )
    def test_what_cannot_be_blended(self, run: Run, styles: list[str], arguments: list[str], pattern: str) -> None:
        assert run("style", "a cat", "--size", "64", "--steps", "1", "--output", "few.safetensors")[0] == 0
        assert_error(run("generate", *arguments, "--blend", "a dog", "--output", "mixed"), pattern)
        assert not Path("mixed").exists()


class TestMask:
    def test_of_a_prompt(self, run: Run) -> None:
        command = ["generate", *FOX, "a cat", "--output", "set", "--reference-mask"]
        assert run(*command, left_half())[0] == 0
        mask = Style.load("set/style.safetensors").reference_mask
        assert mask is not None
        torch.testing.assert_close(mask, torch.tensor([1.0] * 4 + [0.0] * 4).expand(8, 8))
        with Image.open("set/reference.png") as reference, Image.open("set/sheet.png") as sheet:
            original, shown = np.asarray(reference, float), np.asarray(sheet.convert("RGB"), float)
        assert abs(original[:, :32].mean() - original[:, 32:].mean()) < 60
        assert np.asarray(Image.open("set/reference-mask.png")).tolist() == [[255] * 4 + [0] * 4] * 8
        assert shown.shape[0] > 64
        assert run(*command, "mask.png")[1].startswith("0 new images")
        Image.new("L", (64, 64), 255).save("all.png")
        assert_error(run(*command, "all.png"), "set holds a set with another reference mask")

    def test_of_a_style_file_and_of_another_size(self, run: Run, styles: list[str]) -> None:
        code, _, error = run("generate", "fox", "a cat", "--output", "set", "--reference-mask", left_half((128, 128)))
        assert code == 0
        assert "the reference_mask of 128x128 was resized to the reference's 64x64" in error
        assert Style.load("set/style.safetensors").reference_mask is not None

    def test_the_transparency_of_a_picture(self, run: Run) -> None:
        picture = Image.new("RGBA", (96, 64), "orange")
        picture.paste((0, 0, 0, 0), (48, 0, 96, 64))
        picture.save("hole.png")
        command = ["style", "hole.png", "--prompt", "a fox", *SMALL, "--reference-mask", "alpha"]
        assert run(*command, "--output", "hole.safetensors")[0] == 0
        mask = Style.load("hole.safetensors").reference_mask
        assert mask is not None
        torch.testing.assert_close(mask, torch.tensor([1.0] * 4 + [0.0] * 4).expand(8, 8), atol=0.05, rtol=0)
        assert run(*command, "--fit", "pad", "--output", "padded.safetensors")[0] == 0
        padded = Style.load("padded.safetensors").reference_mask
        assert padded is not None
        assert padded[0].max() == 0, "what is padded gives no style"

    @pytest.mark.parametrize(
        ("mask", "pattern"),
        [
            ("none.png", "expected --reference-mask to be a picture, got 'none.png': no such file"),
            ("text.png", "text.png to be a picture, got a file that is none"),
            ("black.png", "expected reference_mask to leave something of the reference, got zeros alone"),
            ("alpha", "expected a picture as the reference beside --reference-mask alpha"),
        ],
    )
    def test_what_is_no_mask(self, run: Run, mask: str, pattern: str) -> None:
        Path("text.png").write_text("no picture")
        Image.new("L", (64, 64), 0).save("black.png")
        assert_error(run("generate", *FOX, "a cat", "--output", "set", "--reference-mask", mask), pattern)
        assert not list(Path().glob("set/*"))


def test_images_that_start_from_a_picture(run: Run, icons: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).resize((64, 64)).save("sketch.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    sketch, mask = (str(Path(name).resolve()) for name in ("sketch.png", "mask.png"))
    assert (
        run("add", "icons", "a lamp", "--init", "sketch.png", "--init-strength", "0.5", "--init-mask", "mask.png")[0]
        == 0
    )
    Path("more.jsonl").write_text('{"prompt": "a boat", "init": "sketch.png"}\n{"prompt": "a sun"}\n')
    assert run("add", "icons", "--prompts", "more.jsonl")[0] == 0
    inputs = {image.prompt: image.drawing.inputs for image in read_image_set(icons).state.current}
    assert inputs["a lamp, neon sign"] == {"init": sketch, "init_strength": 0.5, "init_mask": mask}
    assert inputs["a boat, neon sign"] == {"init": sketch}
    assert not inputs["a sun, neon sign"]
    settings = parse_settings(read_texts(next(icons.glob("*lamp.png"))))
    assert settings is not None
    assert settings["init"]["strength"] == 0.5
    assert set(settings["init"]) == {"picture", "strength", "mask"}

    # drawn again, it starts from the same picture, or from another one
    assert run("reroll", "icons", "lamp")[0] == 0
    assert run("reroll", "icons", "boat", "--init", "mask.png", "--init-strength", "1")[0] == 0
    inputs = {image.prompt: image.drawing.inputs for image in read_image_set(icons).state.current}
    assert inputs["a lamp, neon sign"] == {"init": sketch, "init_strength": 0.5, "init_mask": mask}
    assert inputs["a boat, neon sign"] == {"init": mask, "init_strength": 1.0}
    Path("sketch.png").unlink()
    assert_error(
        run("reroll", "icons", "lamp"), "expected the picture .*sketch.png, which an image is made from, but it is"
    )


def test_pictures_to_start_from_that_are_wrong(run: Run, icons: Path) -> None:
    Image.new("L", (64, 64)).save("black.png")
    for options, pattern in (
        (["--init", "no.png"], "expected --init to be a picture, got 'no.png', which is not there"),
        (["--init", "black.png", "--init-strength", "0"], "expected --init-strength above 0 and up to 1, got 0"),
        (["--init-mask", "black.png"], "--init-mask without --init"),
        (["--init", "black.png", "--init-mask", "black.png"], "expected init_mask to leave something of the image"),
    ):
        assert_error(run("add", "icons", "a lamp", *options), pattern)
    Path("more.jsonl").write_text('{"prompt": "a boat", "init": "no.png"}\n')
    assert_error(
        run("add", "icons", "--prompts", "more.jsonl"), "line 1: expected init to be a picture, got 'no.png', which is"
    )
