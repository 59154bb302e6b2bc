"""The command line, run within the process, with a model of random weights."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from style_aligned.cli import library, main
from style_aligned.models.mini import Mini

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--size", "64", "--steps", "2"]
FOX = ["--reference", "a fox, neon sign", *SMALL]


@pytest.fixture
def loads(random_mini: Mini, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Have the commands load a model with random weights. What they ask for is collected."""
    asked: list[tuple[str, str, str]] = []

    def load_model(name: str, *, device: str, dtype: str) -> Mini:
        asked.append((name, device, dtype))
        return random_mini

    def palette_distance(images: list[Image.Image]) -> float:
        return float(len(images))

    monkeypatch.setattr(library, "load_model", load_model)
    monkeypatch.setattr(library, "palette_distance", palette_distance)
    return asked


@pytest.fixture
def run(loads: list[tuple[str, str, str]], capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: gives exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def assert_error(result: tuple[int, str, str], pattern: str) -> None:
    """Assert that a command has ended with one line on standard error."""
    code, output, error = result
    assert code == 2
    assert output == ""
    assert error.startswith("style-aligned: error: ")
    assert error.count("\n") == 1
    assert re.search(pattern, error), error


def error_lines(error: str) -> list[str]:
    """Give the lines on standard error that are no warnings."""
    return [line for line in error.splitlines() if not line.startswith("style-aligned: warning: ")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_image(path: Path) -> Image.Image:
    image = Image.open(path)
    with image:
        return image.copy()
