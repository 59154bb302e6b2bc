"""The commands `concepts`, `demo`, `convert` and `evaluate`."""

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from style_aligned.evaluation.palette import set_palette_distance
from style_aligned.files import write_png
from style_aligned.models.mini import Mini, known_styles, load_mini
from style_aligned.sampling.generation import generate
from style_aligned.styles.style import Style
from tests.cli.conftest import SMALL, Run, assert_error, error_lines
from tests.sets.conftest import contents


def test_concepts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("style_aligned.models.mini.known_concepts", lambda: ["rocket", "fox"])
    monkeypatch.setattr("style_aligned.models.mini.known_styles", lambda: ["neon sign"])
    code, output, _ = run("concepts")
    assert code == 0
    assert output.splitlines()[:4] == ["Styles (1):", "  neon sign", "Concepts (2):", "  fox     rocket"]


def test_demo(run: Run, loads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from style_aligned import demo

    picture = tmp_path / "demo.png"

    def draw_demo(model: Any, **options: Any) -> Image.Image:
        assert options["steps"] == 2
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(demo, "draw_demo", draw_demo)
    code, output, _ = run("demo", "--steps", "2", "--output", picture)
    assert code == 0
    assert output.count("\n") == 1
    assert str(picture) in output
    assert "style-aligned generate" in output
    with Image.open(picture) as drawn:
        assert drawn.size == (8, 8)
    assert run("demo", "--steps", "2", "--output", picture)[0] == 0

    loads.clear()
    others = tmp_path / "others.png"
    write_png(others, Image.new("RGB", (8, 8), "red"))
    (tmp_path / "notes.txt").write_bytes(b"my own notes")
    for path in (others, tmp_path / "notes.txt"):
        before = path.read_bytes()
        assert_error(run("demo", "--output", path), "expected --output to be new, or of an earlier demo, got .*/[no]")
        assert path.read_bytes() == before
    assert loads == []


def test_the_picture_of_the_demo(random_mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    from style_aligned import demo

    drawn: list[Any] = []
    contact_sheet = demo.contact_sheet

    def spy(lines: Any, **options: Any) -> Image.Image:
        drawn.extend(lines)
        return contact_sheet(lines, **options)

    monkeypatch.setattr(demo, "contact_sheet", spy)
    rows = [demo.Row("ink", ("a cat", "a dog"), seed=1), demo.Row("neon sign", ("a fox", "a rocket"), seed=2)]
    steps: list[int] = []
    images: list[None] = []
    picture = demo.draw_demo(random_mini, rows, steps=1, on_step=steps.append, on_image=lambda: images.append(None))
    assert demo.count_images(rows) == sum(steps) == len(images) == 6
    assert picture.width > picture.height

    assert [[strip.label for strip in line] for line in drawn] == [
        ["ink, unaligned", "ink, aligned"],
        ["neon sign, unaligned", "neon sign, aligned"],
    ]
    style = Style.from_prompt(
        random_mini, "a fox, neon sign", seed=2, num_inference_steps=1, condition_scale=2.0,
        options={"share_group_norm": True},
    )  # fmt: skip
    for strip, aligned in zip(drawn[1], (False, True), strict=True):
        (sample,) = generate(random_mini, style, ["a rocket, neon sign"], aligned=aligned)
        expected = [style.image(random_mini), sample.image]
        assert [cell.image.tobytes() for cell in strip.cells] == [image.tobytes() for image in expected]
        assert [cell.is_reference for cell in strip.cells] == [True, False]
        assert strip.note == f"palette distance {set_palette_distance(expected):.0f}"


def test_a_row_of_the_demo_from_a_picture(random_mini: Mini) -> None:
    from style_aligned import demo

    row = demo.Row("neon sign", ("cherries", "a rocket"), picture=demo.PICTURE)
    steps: list[int] = []
    images: list[None] = []
    demo.draw_demo(random_mini, [row], steps=1, on_step=steps.append, on_image=lambda: images.append(None))
    assert demo.count_images([row]) == sum(steps) == len(images) == 2


def test_the_demo_draws_what_the_model_knows() -> None:
    from style_aligned.demo import ROWS

    assert len({row.style for row in ROWS}) >= 4
    assert {row.style for row in ROWS} <= set(known_styles())
    tokenizer = load_mini().clip_text_encoder.tokenizer
    for row in ROWS:
        assert len(set(row.things)) == len(row.things) >= 4
        assert not [word for thing in row.things for word in tokenizer.unknown_words(thing)]


def test_a_demo_without_targets_is_refused(random_mini: Mini) -> None:
    from style_aligned.demo import Row, draw_demo

    with pytest.raises(ValueError, match=r"expected a reference and targets in each row, got \('a cat',\)"):
        draw_demo(random_mini, [Row("ink", ("a cat",))])


def test_convert(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def convert_checkpoint(source: str, target: Path, *, half: bool, dry_run: bool) -> str:
        asked.append((source, target, half, dry_run))
        if source == "bad.ckpt":
            raise ValueError("bad.ckpt: a pickle,\nwhich could run anything")
        return "converted"

    module = ModuleType("style_aligned.models.checkpoints")
    vars(module)["convert_checkpoint"] = convert_checkpoint
    monkeypatch.setitem(sys.modules, "style_aligned.models.checkpoints", module)
    assert run("convert", "--from", "model", "--to", tmp_path / "new", "--half", "--dry-run") == (0, "converted\n", "")
    assert run("convert", "--from", "model", "--to", tmp_path / "new")[0] == 0
    assert asked == [("model", tmp_path / "new", True, True), ("model", tmp_path / "new", False, False)]
    assert_error(run("convert", "--from", "bad.ckpt", "--to", tmp_path), "a pickle, which could run anything")
    assert_error(run("convert", "--from", "model"), "Missing option '--to'")


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have the command evaluate nothing. The options that it gives are collected."""
    number = SimpleNamespace(value=0.5, low=0.25, high=0.75)
    names = ("style", "concept", "leakage", "leakage_probability", "palette_distance")
    figures = dict.fromkeys(names, number)
    rows = [
        SimpleNamespace(setting=setting, variant=variant, **figures)
        for setting in ("same style", "style in the reference only")
        for variant in ("unaligned", "aligned, but without anything at all")
    ]
    asked: dict[str, Any] = {}

    def evaluate(model: Mini, *, on_progress: Callable[[int, int], None], **options: Any) -> SimpleNamespace:
        asked.update(options)
        on_progress(1, 2)
        return SimpleNamespace(rows=rows, to_dict=lambda: {"sets": 50, "set_size": 5, **options, "rows": [3]})

    module = ModuleType("style_aligned.evaluation.sets")
    vars(module)["evaluate"] = evaluate
    monkeypatch.setitem(sys.modules, "style_aligned.evaluation.sets", module)
    return asked


def test_evaluate(run: Run, evaluated: dict[str, Any], tmp_path: Path) -> None:
    code, output, error = run("evaluate", "--sets", "3", "--steps", "2", "--output", tmp_path / "results.json")
    assert (code, error) == (0, "")
    lines = output.splitlines()
    table = [re.split("  +", line) for line in lines]
    measures = ["style", "concept", "leakage", "leakage probability", "palette distance"]
    assert table[0] == ["setting", "variant", *measures]
    share = "50.0% (25% to 75%)"
    assert table[1] == ["same style", "unaligned", share, share, share, share, "0.5 (0.2 to 0.8)"]
    assert table[4][:2] == ["style in the reference only", "aligned, but without anything at all"]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index(cells[1]) for line, cells in zip(lines, table, strict=True)}) == 1
    assert evaluated == {"sets": 3, "steps": 2}
    assert json.loads((tmp_path / "results.json").read_text())["sets"] == 3


def test_an_evaluation_replaces_evaluations_only(
    run: Run, loads: list[Any], evaluated: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    for content in (b"my own notes", b"", b"[1, 2]", b'{"rows": []}', b"[" * 100_000, b"\xff"):
        path.write_bytes(content)
        result = run("evaluate", "--output", path)
        assert_error(result, "expected --output to be new, or of an earlier evaluation, got .*results.json")
        assert path.read_bytes() == content
    assert loads == []
    path.unlink()
    for sets in (2, 3):
        assert run("evaluate", "--sets", str(sets), "--output", path)[0] == 0
        assert json.loads(path.read_text())["sets"] == sets


@pytest.mark.parametrize("option", ["--sets", "--set-size"])
def test_evaluations_of_one_image_or_set_are_refused(run: Run, loads: list[Any], option: str) -> None:
    assert_error(run("evaluate", option, "1"), f"expected {option} to be a whole number of at least 2, got 1$")
    assert loads == []


def test_figures_in_a_place_that_is_taken(run: Run, loads: list[Any], tmp_path: Path) -> None:
    assert_error(run("evaluate", "--output", tmp_path), "expected --output to be a file, got the folder")
    (tmp_path / "file").touch()
    assert_error(run("evaluate", "--output", tmp_path / "file" / "new"), "to be in a folder, got the file")
    assert loads == []


def test_a_full_disk_leaves_what_was_there(
    run: Run, evaluated: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from style_aligned import demo

    def draw_demo(model: Any, **_: Any) -> Image.Image:
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(demo, "draw_demo", draw_demo)
    commands = {
        "demo.png": ["demo", "--steps", "2"],
        "fox.safetensors": ["style", "a fox", *SMALL, "--force"],
        "figures.json": ["evaluate"],
    }
    for name, command in commands.items():
        assert run(*command, "--output", tmp_path / name)[0] == 0
    before = contents(tmp_path)
    assert before.keys() == commands.keys()

    def fsync(file: int) -> None:
        os.truncate(file, 10)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    for name, command in commands.items():
        for path in (tmp_path / name, tmp_path / f"new-{name}"):
            code, output, error = run(*command, "--output", path)
            assert code == 2
            assert error_lines(error) == [f"style-aligned: error: {path}: no space left on device"]
            assert output.startswith("setting") == (command == ["evaluate"])  # its table is told all the same
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["style", "demo", "evaluate"])
def test_interrupted_while_it_draws(
    run: Run, random_mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    options = ["a fox", *SMALL] if command == "style" else ["--steps", "2"]
    output = tmp_path / "new.safetensors"
    passes: list[None] = []

    def interrupt(*_: object) -> None:
        passes.append(None)
        if len(passes) == 2:
            raise KeyboardInterrupt

    before = [type(layer) for layer in random_mini.unet.modules()]
    hook = random_mini.unet.register_forward_hook(interrupt)
    try:
        code, printed, error = run(command, *options, "--output", output)
    finally:
        hook.remove()
    assert (code, printed) == (130, "")
    assert error.splitlines()[-1] == "style-aligned: interrupted"
    assert list(tmp_path.iterdir()) == []
    assert [type(layer) for layer in random_mini.unet.modules()] == before


def test_figures_are_kept_if_nobody_reads_the_table(
    run: Run, evaluated: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def echo(message: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("typer.echo", echo)
    code, output, error = run("evaluate", "--output", tmp_path / "figures.json")
    assert (code, output, error) == (2, "", "style-aligned: error: output: no space left on device\n")
    assert json.loads((tmp_path / "figures.json").read_text())["rows"] == [3]
