"""The command line, run within the process, with a model of random weights."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from style_aligned.cli import library, main
from style_aligned.cli.options import ModelOptions
from style_aligned.models.mini import Mini

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--size", "64", "--steps", "2"]
FOX = ["a fox, neon sign", *SMALL]


@pytest.fixture
def loads(model: Mini, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Have the commands load a model with random weights. What they ask for is collected."""
    asked: list[tuple[str, str, str]] = []

    def load_model(name: str, options: ModelOptions, bank_device: str | None = None, extras: object = None) -> Mini:
        asked.append((name, options.device, options.dtype.value))
        return model

    monkeypatch.setattr(library, "load_model", load_model)
    monkeypatch.delenv("STYLE_ALIGNED_MODEL", raising=False)
    return asked


@pytest.fixture
def run(loads: list[tuple[str, str, str]], capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: gives exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def icons(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of a fox, a cat and a dog, in the folder `icons` of the current one."""
    monkeypatch.chdir(tmp_path)
    result = run("generate", *FOX, "a cat", "a dog", "--suffix", ", neon sign", "--output", "icons")
    assert result[0] == 0, result
    return Path("icons")


def assert_error(result: tuple[int, str, str], pattern: str) -> None:
    """Assert that a command has ended with one line on standard error."""
    code, output, error = result
    assert code == 2
    assert output == ""
    lines = error_lines(error)
    assert len(lines) == 1, error
    assert lines[0].startswith("style-aligned: error: ")
    assert re.search(pattern, lines[0]), error


def error_lines(error: str) -> list[str]:
    """Return the lines on standard error that are no warnings."""
    return [line for line in error.splitlines() if not line.startswith("style-aligned: warning: ")]
