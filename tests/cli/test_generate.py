"""The images that `generate` makes, and the settings that they hold."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from style_aligned.cli import drawing, overview
from style_aligned.cli.console import Progress
from style_aligned.files import read_texts
from style_aligned.models.mini import Mini
from style_aligned.sampling import generation as sampling
from style_aligned.styles.style import Style
from tests.cli.conftest import FOX, SMALL, Run, assert_error, contents, read_image


def test_images_and_their_settings(run: Run, loads: list[Any], random_mini: Mini, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, output, error = run(
        "generate", *FOX, "--prompt", "a rocket, neon sign", "--prompt", "a cat", "--seed", "5", "--guidance", "3",
        "--negative", "a dog", "--scale", "1.5", "--output", out,
    )  # fmt: skip
    assert code == 0, error
    assert output == f"2 new images in {out}; all together: {out / 'sheet.png'}\n"
    assert "trained for images of about 256x256: at 64x64" in error
    assert set(contents(out)) == {
        "000-a-rocket-neon-sign.png", "001-a-cat.png", "reference.png", "sheet.png", "style.safetensors",
    }  # fmt: skip
    assert loads == [("mini", "cpu", "float32")]

    texts = read_texts(out / "000-a-rocket-neon-sign.png")
    settings = json.loads(texts["settings"])
    assert (texts["prompt"], texts["seed"]) == ("a rocket, neon sign", "6")
    assert settings["reference"] == "a fox, neon sign"
    assert (settings["steps"], settings["guidance"], settings["size"]) == (2, 3.0, "64x64")
    assert (settings["negative_prompt"], settings["options"]) == (
        "a dog",
        {"share_group_norm": True, "scale": 1.5},
    )

    # the library, called directly, gives the same pixels
    style = Style.load(out / "style.safetensors")
    sample = sampling.generate(random_mini, style, ["a rocket, neon sign", "a cat"])[0]
    assert read_image(out / "000-a-rocket-neon-sign.png").tobytes() == sample.image.tobytes()


def test_same_command_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("generate", *FOX, "--prompt", "a cat", "--compare", "--output", tmp_path / name)[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_compare(run: Run, random_mini: Mini, tmp_path: Path) -> None:
    run("generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--compare", "--output", tmp_path)
    assert {"unaligned/000-a-cat.png", "unaligned/001-a-dog.png"} < set(contents(tmp_path))
    style = Style.load(tmp_path / "style.safetensors")
    sample = sampling.generate(random_mini, style, ["a cat", "a dog"], aligned=False)[0]
    assert read_image(tmp_path / "unaligned" / "000-a-cat.png").tobytes() == sample.image.tobytes()
    assert json.loads(read_texts(tmp_path / "unaligned" / "000-a-cat.png")["settings"])["aligned"] is False


def test_the_sheet_says_which_row_is_which(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    contact_sheet = overview.contact_sheet

    def spy(lines: Any, **options: Any) -> Image.Image:
        drawn.extend(lines)
        return contact_sheet(lines, **options)

    monkeypatch.setattr(overview, "contact_sheet", spy)
    monkeypatch.setattr(overview, "MAX_COLUMNS", 2)  # how many cells are in a row when there are more is a minimum of 6
    targets = ["a cat", "a dog", "a rocket", "a cat", "a dog", "a fox"]
    prompts = [argument for target in targets for argument in ("--prompt", target)]
    sources = ["--reference", "a fox, neon sign", "--reference", "a dog, ink", *SMALL]
    assert run("generate", *sources, *prompts, "--compare", "--output", tmp_path)[0] == 0
    names = ["000-a-cat", "001-a-dog", "002-a-rocket", "003-a-cat", "004-a-dog", "005-a-fox"]
    sets = (("000-a-fox-neon-sign", "a fox, neon sign"), ("001-a-dog-ink", "a dog, ink"))
    for first, (folder, reference) in zip((0, 4), sets, strict=True):
        for line, name, places in ((0, "unaligned", "unaligned/"), (1, "aligned", "")):
            (top,), (rest,) = drawn[first + line], drawn[first + line + 2]
            assert top.label == rest.label == f"{reference}: {name}"
            assert (top.note, rest.note) == ("palette distance 7", "")
            paths = [f"{folder}/reference.png", *(f"{folder}/{places}{name}.png" for name in names)]
            cells = [cell for cell in (*top.cells, *rest.cells) if cell is not None]
            assert [cell.image for cell in cells] == [tmp_path / path for path in paths]
            assert [cell.is_reference for cell in cells] == [True] + [False] * 6
            captions = [f"reference: {reference}", *targets] if name == "aligned" else [""] * 7
            assert [cell.caption for cell in cells] == captions


def test_style_files_make_a_grid(run: Run, tmp_path: Path) -> None:
    for name, reference in (("fox", "a fox, neon sign"), ("dog", "a dog, ink")):
        file = tmp_path / f"{name}.safetensors"
        assert run("style", "make", "--reference", reference, *SMALL, "--output", file)[0] == 0
    grid = tmp_path / "grid"
    code, output, _ = run(
        "generate", "--style", tmp_path / "fox.safetensors", "--style", tmp_path / "dog.safetensors",
        "--prompt", "a cat", "--prompt", "a rocket", "--output", grid,
    )  # fmt: skip
    assert code == 0
    assert output.startswith("4 new images")
    assert set(contents(grid)) == {"sheet.png"} | {
        f"{folder}/{name}"
        for folder in ("000-fox", "001-dog")
        for name in ("reference.png", "000-a-cat.png", "001-a-rocket.png")
    }
    alone = tmp_path / "alone"
    run("generate", "--reference", "a dog, ink", *SMALL, "--prompt", "a cat", "--prompt", "a rocket", "--output", alone)
    assert (alone / "001-a-rocket.png").read_bytes() == (grid / "001-dog" / "001-a-rocket.png").read_bytes()


def test_seeds_of_prompts_and_overrides_of_style_files(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", "--seed", "3", *SMALL, "--output", file)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a cat", "seed": 77}\n{"prompt": "a dog"}\n')
    command = ["generate", "--style", file, "--prompts", prompts]
    assert run(*command, "--output", tmp_path / "a")[0] == 0
    overrides = ["--seed", "20", "--shift", "0.5", "--no-share-group-norm"]
    assert run(*command, *overrides, "--output", tmp_path / "b")[0] == 0
    seeds = [read_texts(tmp_path / name)["seed"] for name in ("a/000-a-cat.png", "a/001-a-dog.png", "b/001-a-dog.png")]
    assert seeds == ["77", "5", "22"]
    options = [json.loads(read_texts(tmp_path / name / "000-a-cat.png")["settings"])["options"] for name in ("a", "b")]
    assert options == [{"share_group_norm": True}, {"share_group_norm": False, "shift": 0.5}]


def test_the_library_is_quiet(run: Run, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("generate", *FOX, "--prompt", "a cat", "--output", tmp_path)[0] == 0


def test_prompts_of_no_known_word(run: Run, tmp_path: Path) -> None:
    prompts = [argument for text in ("!!!", "🦊", "ロケット", "a cat") for argument in ("--prompt", text)]
    code, _, error = run("generate", *FOX, *prompts, "--output", tmp_path)
    assert code == 0, error
    lines = [line for line in error.splitlines() if "embedded model" in line]
    assert lines == [
        "style-aligned: warning: the embedded model does not know 'ロケット':"
        " `style-aligned concepts` lists what it draws",
        "style-aligned: warning: 3 prompts are without any word that the embedded model knows, such as '!!!':"
        " it draws anything",
    ]


@pytest.mark.parametrize(
    ("chunk", "options", "expected"),
    [
        (32, [], [2, 4, 2] * 2),  # rows at each of two steps: two halves of the reference, then of two images, and one
        (32, ["--compare"], [2, 4, 2] * 2 + [4, 2] * 2),
        (2, [], [2, 4] * 2 + [2, 2] * 2),  # recorded anew for the second chunk
        (32, ["--reference", "a dog, ink"], [2, 4, 2] * 4),
    ],
    ids=["set", "compare", "chunks", "two sets"],
)
def test_the_reference_goes_through_the_model_once_a_step(
    run: Run,
    random_mini: Mini,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    options: list[str],
    expected: list[int],
) -> None:
    monkeypatch.setattr(drawing, "CHUNK", chunk)
    prompts = ["--prompt", "a cat", "--prompt", "a dog", "--prompt", "a rocket", "--batch-size", "2"]
    rows: list[int] = []
    hook = random_mini.unet.register_forward_hook(lambda unet, arguments, output: rows.append(len(arguments[0])))
    try:
        assert run("generate", *FOX, *prompts, *options, "--output", tmp_path)[0] == 0
    finally:
        hook.remove()
    assert rows == expected


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list["Bar"]:
    """Have what is shown as progress collected."""
    shown: list[Bar] = []

    class Collected(Bar):
        def __init__(self, images: int, steps: int) -> None:
            super().__init__(images, steps)
            shown.append(self)

    monkeypatch.setattr("style_aligned.cli.run.Progress", Collected)
    return shown


class Bar(Progress):
    """Adds up what it is told."""

    def __init__(self, images: int, steps: int) -> None:
        super().__init__(images, steps)
        self.announced, self.images, self.steps = (images, steps), 0, 0

    def step(self, count: int = 1) -> None:
        super().step(count)
        assert count > 0
        self.steps += count

    def image(self) -> None:
        super().image()
        self.images += 1

    @property
    def counted(self) -> tuple[int, int]:
        return self.images, self.steps


@pytest.mark.parametrize(
    ("chunk", "options", "expected"),
    [
        (32, [], (4, 8)),  # a reference and three images, of two steps each
        (2, [], (4, 8)),
        (2, ["--compare"], (7, 14)),
        (32, ["--style", "dog.safetensors"], (7, 17)),  # three images of three steps: the style is there
        (2, ["--reference", "a dog", "--compare"], (14, 28)),
    ],
    ids=["set", "chunks", "compare", "with a style file", "two sets"],
)
def test_all_that_is_announced_is_counted(
    run: Run,
    bars: list[Bar],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    options: list[str],
    expected: tuple[int, int],
) -> None:
    file = tmp_path / "dog.safetensors"
    if "--style" in options:
        assert run("style", "make", "--reference", "a dog", "--size", "64", "--steps", "3", "--output", file)[0] == 0
        bars.clear()
    monkeypatch.setattr(drawing, "CHUNK", chunk)
    out = tmp_path / "out"
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--prompt", "a rocket", "--batch-size", "2"]
    command += [str(file) if option == file.name else option for option in options]
    assert run(*command, "--output", out)[0] == 0
    assert [bar.announced for bar in bars] == [bar.counted for bar in bars] == [expected]

    # the one that is gone, and the one that shares its micro-batch
    bars.clear()
    sorted(out.rglob("000-a-cat.png"))[0].unlink()
    assert run(*command, "--output", out)[0] == 0
    assert [bar.announced for bar in bars] == [bar.counted for bar in bars]
    assert [bar.images for bar in bars] == [2]


def test_a_reference_that_is_made_for_images_that_are_there_is_counted(
    run: Run, bars: list[Bar], tmp_path: Path
) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--prompt", "a dog", "--batch-size", "1", "--output", tmp_path]
    assert run(*command)[0] == 0
    (tmp_path / "style.safetensors").unlink()
    (tmp_path / "001-a-dog.png").unlink()
    bars.clear()
    assert run(*command)[0] == 0
    assert [bar.announced for bar in bars] == [bar.counted for bar in bars] == [(1, 2), (1, 2)]
    bars.clear()
    assert run("style", "make", *FOX, "--output", tmp_path / "fox.safetensors")[0] == 0
    assert [bar.announced for bar in bars] == [bar.counted for bar in bars] == [(1, 2)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_bank_device_that_is_not_there(run: Run, tmp_path: Path) -> None:
    command = ["generate", *FOX, "--prompt", "a cat", "--output", tmp_path / "out", "--bank-device"]
    assert_error(run(*command, "cuda"), "expected a device that is there, got 'cuda'")
    assert_error(run(*command, "toaster"), "expected --bank-device to be cpu, cuda, cuda:1, mps or xpu, got 'toaster'")
    assert not (tmp_path / "out").exists()
    assert run(*command, "cpu")[0] == 0


def test_width_comes_before_height(run: Run, tmp_path: Path) -> None:
    command = ["generate", "--reference", "a fox", "--steps", "1", "--size", "128x64", "--prompt", "a cat"]
    assert run(*command, "--output", tmp_path)[0] == 0
    assert read_image(tmp_path / "000-a-cat.png").size == read_image(tmp_path / "reference.png").size == (128, 64)
    assert json.loads(read_texts(tmp_path / "000-a-cat.png")["settings"])["size"] == "128x64"
    assert Style.load(tmp_path / "style.safetensors").size == (64, 128)


@pytest.mark.parametrize("command", [["generate", "--prompt", "a cat"], ["style", "make"]])
def test_the_model_that_is_asked_for(run: Run, loads: list[Any], tmp_path: Path, command: list[str]) -> None:
    options = ["--model", "base.safetensors", "--device", "cpu:0", "--dtype", "bfloat16"]
    assert run(*command, *FOX, *options, "--output", tmp_path / "out")[0] == 0
    assert loads == [("base.safetensors", "cpu:0", "bfloat16")]


def test_the_sheet_of_many_styles(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def spy(lines: Any, *, title: str, subtitle: str, **_: Any) -> Image.Image:
        drawn.append((title, subtitle, len(lines)))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(overview, "contact_sheet", spy)
    monkeypatch.setattr(overview, "MAX_IMAGES", 4)
    references = [argument for name in ("a fox", "a dog", "a cat") for argument in ("--reference", name)]
    for options in ([], ["--compare"]):
        out = tmp_path / f"out{len(options)}"
        assert run("generate", *references, *SMALL, "--prompt", "a rocket", *options, "--output", out)[0] == 0
    settings = "mini · 2 steps · guidance 2 · seed 0"
    assert drawn == [("3 styles", f"{settings} · 2 of 3 images", 2), ("3 styles", f"{settings} · 1 of 3 images", 2)]
