"""The options for workers of the commands that draw."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from style_aligned.cli import main

Run = Callable[..., tuple[int, str, str]]
NEON = ("generate", "a fox, neon sign", "a cat, neon sign", "an owl, neon sign", "a dog, neon sign")
SMALL = ("--steps", "2", "--size", "64", "--batch-size", "2", "--seed", "3", "--device", "cpu")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.slow
def test_a_set_by_two_workers_is_that_of_one_process(ray: Any, run: Run, tmp_path: Path) -> None:
    for folder, options in (("alone", ()), ("cluster", ("--workers", "2"))):
        code, output, error = run(*NEON, *SMALL, *options, "--output", tmp_path / folder)
        assert code == 0, error
        assert output == f"3 new images in {tmp_path / folder}; all together: {tmp_path / folder / 'sheet.png'}\n"
        known = ("at 64x64 objects may double", "2 steps of DDIM start at timestep")
        assert [line for line in error.splitlines() if not any(note in line for note in known)] == []
    assert len(pngs(tmp_path / "alone")) == 5
    assert pngs(tmp_path / "cluster") == pngs(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "expected a machine with 1 GPUs for a worker, got 0 on the largest of the cluster"),
        (["--device", "cuda:1"], "expected a device without a number, as Ray gives workers their GPUs, got 'cuda:1'"),
        (["--model", "owner/no-such-model"], "a worker cannot start: owner/no-such-model: "),
    ],
)
def test_workers_that_cannot_be(
    ray: Any, run: Run, tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output, error = run(*NEON, "--workers", "1", *options, "--output", tmp_path / "set")
    assert (code, output) == (2, "")
    errors = [line for line in error.splitlines() if "error: " in line]  # a slow start may be warned about
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "nowhere"], "expected the address of a Ray cluster such as 10.0.0.1:6379"),
        (
            ["--workers", "2"],
            "expected Ray to be installed, which hands work to workers: pip install 'style-aligned[ray]'",
        ),
        (["--workers", "0"], "expected --workers to be a whole number of at least 1, got 0"),
        (["--gpus-per-worker", "1"], "expected no --gpus-per-worker without --workers or --ray"),
    ],
)
def test_options_that_are_refused(
    run: Run, tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options[0] == "--workers":
        monkeypatch.setitem(sys.modules, "ray", None)
    code, output, error = run(*NEON, *options, "--output", tmp_path / "set")
    assert (code, output) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()
