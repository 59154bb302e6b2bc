"""The command `evaluate` on folders of images."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from style_aligned.files import describe_image, open_image, write_png
from tests.cli.conftest import Run, assert_error
from tests.evaluation.tiny import make_clip, make_csd, make_dino


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sets, of which one is plain in colour."""
    for name, colors in (("plain", ("navy", "navy", "navy")), ("mixed", ("navy", "red", "white"))):
        for index, color in enumerate(colors):
            (tmp_path / "sets" / name).mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (8, 8), color)
            write_png(tmp_path / "sets" / name / f"{index}.png", image, describe_image(f"a {color} cat, ink", 0, {}))
    return tmp_path / "sets"


def test_table_figures_and_plot(run: Run, folder: Path, tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "figures.png"
    command = ("evaluate", folder, "--metrics", "palette", "--output", figures, "--plot", plot)
    run(*command)
    code, output, error = run(*command)  # its own files are replaced
    assert (code, error) == (0, "")
    rows = [re.split("  +", line.strip()) for line in output.splitlines()]
    assert rows[0] == ["set", "images", "palette distance"]
    assert [row[:2] for row in rows[1:]] == [["mixed", "3"], ["plain", "3"], ["all: 2 sets", "6"]]
    assert rows[2][2] == "0.0 (0.0 to 0.0)"
    values = json.loads(figures.read_text())
    assert [one["values"]["palette"]["value"] for one in values["sets"]][1] == 0
    assert f"{values['groups'][0]['values']['palette']['value']:.1f} (" in rows[3][2]
    assert open_image(plot).width == 2000


def test_all_metrics(run: Run, folder: Path, tmp_path: Path) -> None:
    options = ["--clip", make_clip(tmp_path / "clip"), "--dino", make_dino(tmp_path / "dino")]
    code, output, error = run("evaluate", folder, *options, "--csd", make_csd(tmp_path / "csd.safetensors"))
    assert (code, error) == (0, "")
    assert re.split("  +", output.splitlines()[0]) == [
        "set",
        "images",
        "CLIP text",
        "DINO",
        "CSD style",
        "palette distance",
    ]
    assert "1.000 (1.000 to 1.000)" in output  # equal images


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["FOLDER", "--metrics", "clip,beauty"], "expected metrics of clip, dino, csd, palette, got clip, beauty"),
        (["FOLDER", "--sets", "5"], "expected no --sets beside a FOLDER"),
        (["FOLDER", "--model", "mini", "--set-size", "3"], "expected no --set-size, --model beside a FOLDER"),
        (["--metrics", "clip", "--plot", "a.png"], "expected no --metrics, --plot without a FOLDER"),
        (["FOLDER/none"], "expected a folder of images, got .*none, which is not there"),
        (["FOLDER", "--metrics", "dino", "--dino", "FOLDER"], "expected a vision transformer in safetensors at .*sets"),
        (["FOLDER", "--plot", "FOLDER/plain/0.png"], "expected --plot to be new, or of an earlier evaluation"),
        (["FOLDER", "--device", "cuda:9"], "expected a device that is there, got 'cuda:9'"),
    ],
)
def test_errors(
    run: Run, folder: Path, loads: list[Any], options: list[str], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_error(run("evaluate", *(option.replace("FOLDER", str(folder)) for option in options)), pattern)
    assert loads == []
