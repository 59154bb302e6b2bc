"""The commands `concepts`, `demo`, `convert` and `evaluate`."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from style_aligned.files import write_png
from style_aligned.mini import Mini
from tests.cli.conftest import Run, assert_error, read_image


def test_concepts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("style_aligned.mini.known_concepts", lambda: ["rocket", "fox"])
    monkeypatch.setattr("style_aligned.mini.known_styles", lambda: ["neon sign"])
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
    assert read_image(picture).size == (8, 8)
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


def test_the_picture_of_the_demo(random_mini: Mini) -> None:
    from style_aligned.demo import Row, count_images, draw_demo

    rows = [Row("ink", ("a cat", "a dog"), seed=1), Row("neon sign", ("a fox", "a rocket"), seed=2)]
    steps: list[int] = []
    images: list[None] = []
    picture = draw_demo(random_mini, rows, steps=1, on_step=steps.append, on_image=lambda: images.append(None))
    assert count_images(rows) == sum(steps) == len(images) == 6
    assert picture.width > picture.height


def test_convert(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def convert_checkpoint(source: str, target: Path, *, half: bool, dry_run: bool) -> str:
        asked.append((source, target, half, dry_run))
        if source == "bad.ckpt":
            raise ValueError("bad.ckpt: a pickle,\nwhich could run anything")
        return "converted"

    module = ModuleType("style_aligned.checkpoints")
    vars(module)["convert_checkpoint"] = convert_checkpoint
    monkeypatch.setitem(sys.modules, "style_aligned.checkpoints", module)
    assert run("convert", "--from", "model", "--to", tmp_path / "new", "--half", "--dry-run") == (0, "converted\n", "")
    assert run("convert", "--from", "model", "--to", tmp_path / "new")[0] == 0
    assert asked == [("model", tmp_path / "new", True, True), ("model", tmp_path / "new", False, False)]
    assert_error(run("convert", "--from", "bad.ckpt", "--to", tmp_path), "a pickle, which could run anything")
    assert_error(run("convert", "--from", "model"), "Missing option '--to'")


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have the command evaluate nothing. The options that it gives are collected."""
    number = SimpleNamespace(value=0.5)
    figures = {"style": number, "concept": number, "palette_distance": number}
    rows = [
        SimpleNamespace(setting=setting, variant=variant, **figures)
        for setting in ("same style", "style in the reference only")
        for variant in ("unaligned", "aligned, but without anything at all")
    ]
    asked: dict[str, Any] = {}

    def evaluate(model: Mini, *, on_progress: Callable[[int, int], None], **options: Any) -> SimpleNamespace:
        asked.update(options)
        on_progress(1, 2)
        return SimpleNamespace(rows=rows, to_dict=lambda: {**options, "rows": [3]})

    module = ModuleType("style_aligned.evaluation")
    vars(module)["evaluate"] = evaluate
    monkeypatch.setitem(sys.modules, "style_aligned.evaluation", module)
    return asked


def test_evaluate(run: Run, evaluated: dict[str, Any], tmp_path: Path) -> None:
    code, output, error = run("evaluate", "--sets", "3", "--steps", "2", "--output", tmp_path / "results.json")
    assert (code, error) == (0, "")
    lines = output.splitlines()
    table = [re.split("  +", line) for line in lines]
    assert table[0] == ["setting", "variant", "style", "concept", "palette distance"]
    assert table[1] == ["same style", "unaligned", "50.0%", "50.0%", "0.5"]
    assert table[4][:2] == ["style in the reference only", "aligned, but without anything at all"]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index(cells[1]) for line, cells in zip(lines, table, strict=True)}) == 1
    assert evaluated == {"sets": 3, "set_size": 5, "seed": 0, "steps": 2, "guidance": 2.0, "batch_size": 20}
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
