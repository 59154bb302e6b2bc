"""What the command line asks for reaches the loader."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from style_aligned import Style
from style_aligned.cli import main

SMALL = ("--size", "64", "--steps", "2", "--device", "cpu")


def test_an_autoencoder_and_a_spacing_are_taken(
    single_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = single_files["1"], tmp_path / "fox.safetensors"
    without = tmp_path / "without.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if "first_stage_model" not in key}, without)
    command = ["style", "a fox", "--output", str(output), "--model", str(without), *SMALL]

    assert main(command) == 2
    assert "give one with --vae" in capsys.readouterr().err
    assert not output.exists()

    assert main([*command, "--vae", str(file), "--timestep-spacing", "trailing"]) == 0
    assert Style.load(output).solver["timesteps_spacing"] == "trailing"


@pytest.mark.parametrize("given", [("--vae", "vae.safetensors"), ("--timestep-spacing", "trailing")])
def test_the_embedded_model_has_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, str]
) -> None:
    name = given[0].removeprefix("--").replace("-", "_")
    assert main(["style", "a fox", "--output", str(tmp_path / "fox.safetensors"), *SMALL, *given]) == 2
    expected = f"style-aligned: error: the embedded model is complete, with one schedule; expected no {name}\n"
    assert capsys.readouterr().err == expected
