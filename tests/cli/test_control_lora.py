"""A ControlLora of SDXL by `--control`."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.cli.test_extras import Program, find, run
from tests.models.checkpoints.conftest import folder, folders, kind, narrow, pipeline, pipelines
from tests.models.extras.test_control_lora import narrow_control_lora, random_control_lora

__all__ = ["folder", "folders", "kind", "narrow", "narrow_control_lora", "pipeline", "pipelines", "run"]

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["xl"], indirect=True)]


def test_a_set_follows_a_control_lora_and_remembers_it(run: Program, pipeline: Any) -> None:
    state, _ = random_control_lora(pipeline)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, "canny.safetensors")
    Image.effect_noise((64, 64), 50).save("boat.png")
    assert run.generate("--output", "plain")[0] == 0
    control = ["--control", "canny.safetensors:0.7", "--control-image", "boat.png"]
    result = run("generate", "plain", "a boat", *control, "--output", "boats")
    assert result[0] == 0, result
    assert run("generate", "plain", "a boat", "--output", "others")[0] == 0
    assert find("boats/a-boat.png").read_bytes() != find("others/a-boat.png").read_bytes()
    assert run("add", "boats", "a car", "--control-image", "boat.png")[0] == 0
    records = json.loads(Path("boats/set.json").read_text())
    assert records["extras"] == {"control": [[str(Path("canny.safetensors").resolve()), 0.7]]}
    assert [image["inputs"] for image in records["images"]] == [{"control": [str(Path("boat.png").resolve())]}] * 2
