"""The scripts that measure: that they run, and print what is published."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_cells(output: str) -> list[str]:
    return [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("|")]


@pytest.mark.full_size
def test_steps_of_the_full_size_unet() -> None:
    output = run(
        "scripts/benchmark.py", "--latents", "16", "--images", "2", "--rounds", "1", "--reference-latents", "8"
    )
    contestants = ["plain", "bound", "ours", "built-in", "targets' bound", "replay", "smaller reference"]
    assert first_cells(output)[2:] == contestants
    assert "ours / bound: " in output


def test_references_of_other_sizes() -> None:
    output = run("-m", "scripts.evaluate_sizes", "--sets", "1", "--steps", "1", "--sides", "128", "256")
    expected = ["128, counts as one image", "128, counts as its tokens", "256, counts as one image"]
    assert first_cells(output)[2:] == expected


def test_memory_of_a_set() -> None:
    growth, peak = map(float, run("scripts/benchmark_sets.py", "--images", "5").split())
    assert 0 < growth < peak < 2000  # MiB


def test_switches_between_recording_and_replaying() -> None:
    output = run("scripts/benchmark_switching.py", "--rounds", "20")
    assert output.startswith("70 self-attentions")
    assert float(output.rpartition("switches of a step: ")[2]) < 1  # milliseconds


def test_the_evaluation_and_its_pictures(tmp_path: Path) -> None:
    variants = ["--variant", "unaligned", "--variant", "shared group normalization"]
    command = ["-m", "scripts.evaluate", "--sets", "3", "--set-size", "2", "--steps", "1", *variants]
    output = run(*command, "--output", tmp_path, "--json", tmp_path / "figures.json", "--sheets", tmp_path / "sheets")
    page = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert page in output
    assert "The first 3 of these sets" in page
    assert len(json.loads((tmp_path / "figures.json").read_text())["rows"]) == 4
    assert len(list((tmp_path / "sheets").iterdir())) == 4
    for name in ("evaluation.png", "evaluation-sets.jpg"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300
