"""A picture in place of the reference's prompt: `generate` and `style`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from style_aligned.cli.picture import Like
from style_aligned.files import digest_picture
from style_aligned.options import PRESETS
from style_aligned.sets.image_set import read_image_set
from style_aligned.styles.style import Style
from tests.cli.conftest import SMALL, Run, assert_error
from tests.sets.conftest import pictures


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def castle() -> Path:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).resize((96, 64)).save("castle.png")
    return Path("castle.png")


def test_a_set_in_the_style_of_a_picture(run: Run, castle: Path) -> None:
    command = ["generate", castle, "a cat", "a dog", "--caption", "a castle, ink", *SMALL, "--output", "sea"]
    code, output, error = run(*command)
    assert (code, output) == (0, "2 new images in sea; all together: sea/sheet.png\n")
    assert "castle.png: cropped to its middle (67% of it)" in error
    style = Style.load("sea/style.safetensors")
    assert (style.prompt, style.method, style.size) == ("a castle, ink", "noise", (64, 64))
    assert style.picture == digest_picture(Image.open(castle).convert("RGB"))
    assert read_image_set(Path("sea")).state.style == {"source": {"kind": "picture"}}
    shown = run("show", "sea/style.safetensors")[1]
    assert "method:           noise\n" in shown
    assert str(style.picture) in shown

    before = pictures(Path("sea"))
    assert run(*command)[1] == "0 new images in sea (2 were there already); all together: sea/sheet.png\n"
    assert run("add", "sea", "a lamp")[0] == 0
    assert {name: pictures(Path("sea"))[name] for name in before} == before


def test_a_picture_is_not_inverted_again_for_a_set_that_is_there(
    run: Run, castle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["generate", castle, "a cat", "--caption", "a castle", *SMALL, "--output", "sea"]
    assert run(*command, "--method", "ddim", "--offset", "1")[0] == 0
    with monkeypatch.context() as patch:
        patch.delattr(Style, "from_image")
        assert run(*command, "--method", "ddim", "--offset", "1")[0] == 0
    assert_error(run(*command, "--method", "ddim", "--offset", "0"), "sea holds a set of another style")
    assert_error(run(*command, "--method", "noise"), "sea holds a set of another style")
    assert run(*command)[0] == 0


def test_a_style_of_a_picture(run: Run, castle: Path) -> None:
    given = ["--method", "ddim", "--inversion-scale", "1.5", "--offset", "0", "--iterations", "2", "--fit", "pad"]
    assert run("style", castle, "--prompt", "a castle, ink", *SMALL, *given, "--output", "sea.safetensors")[0] == 0
    style = Style.load("sea.safetensors")
    assert (style.prompt, style.method) == ("a castle, ink", "ddim")
    residual = style.details.pop("residual")
    assert residual > 0
    assert style.details == {"fit": "pad", "inversion_scale": 1.5, "offset": 0, "iterations": 2}


@pytest.mark.parametrize("like", [like.value for like in Like])
def test_settings_of_google_by_name(run: Run, castle: Path, like: str) -> None:
    command = ["style", castle, "--caption", "a castle", *SMALL, "--like", like, "--output", "sea.safetensors"]
    assert run(*command)[0] == 0
    style, expected = Style.load("sea.safetensors"), dict(PRESETS[like])
    assert style.condition_scale == expected.pop("condition_scale") == 10
    assert style.options == expected


def test_a_caption_is_written_and_told(run: Run, castle: Path) -> None:
    code, output, _ = run("style", castle, "--caption-only")
    assert code == 0
    content, style, following = output.splitlines()
    written = f"{content.removeprefix('content: ')}, {style.removeprefix('style:   ')}"
    assert f'--caption "{written}"' in following
    error = run("style", castle, *SMALL, "--output", "sea.safetensors")[2]
    assert f"captioned {written!r}" in error
    assert Style.load("sea.safetensors").prompt == written
    assert run("generate", castle, "--caption-only", "--output", "sea")[1] == output
    assert not Path("sea").exists()


def test_several_pictures_get_a_set_each(run: Run, castle: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    command = ["generate", "a cat", "--style", castle, "--style", "red.png", "--caption", "a thing", *SMALL]
    assert run(*command, "--output", "both", "--json")[0] == 0
    assert [json.loads((path / "set.json").read_text())["style"] for path in sorted(Path("both").glob("*/"))] == [
        {"source": {"kind": "picture"}}
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["https://example.org/a.jpg"], "expected a file on this machine, got 'https://example.org/a.jpg': download"),
        (["text.png"], "expected text.png to be a picture, got a file that is none"),
        (["cut.png"], "expected cut.png to be a whole picture, got one that is damaged"),
        (["empty.png"], "expected empty.png to be a picture, got an empty file"),
        (["drawing.svg"], "expected drawing.svg to be a PNG, JPEG or WebP, got SVG: save it as one of them"),
        (["gone.png"], "'gone.png', which is not there"),
        (["castle.png", "--offset", "1"], "expected no --offset without --method ddim"),
        (["castle.png", "--method", "ddim", "--fresh-noise"], "expected no --fresh-noise beside --method ddim"),
        (["castle.png", "--method", "ddim", "--offset", "2"], "expected offset to be less than the number of steps, 2"),
        (["castle.png", "--method", "ddim", "--iterations", "-1"], "expected --iterations to be an integer between 0"),
        (["castle.png", "--method", "magic"], "expected --method to be noise or ddim, got 'magic'"),
        (["castle.png", "--caption", " "], "expected --caption to have at least one word"),
        (["castle.png", "--caption", "a", "--prompt", "b"], "expected no --caption beside --prompt"),
        (["castle.png", "--captioner", "no/such/model"], "expected a captioner by name or folder, got 'no/such/model'"),
        (["a castle", "--fit", "pad", "--caption", "x"], "expected no --fit, --caption without a picture"),
        (["a castle", "--caption-only"], "expected no --caption-only without a picture"),
    ],
)
def test_what_is_wrong_is_one_line(run: Run, castle: Path, arguments: list[str], pattern: str) -> None:
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(castle.read_bytes()[:200])
    Path("empty.png").touch()
    Path("drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert_error(run("style", *arguments, *SMALL, "--output", "sea.safetensors"), pattern)
    assert not Path("sea.safetensors").exists()
