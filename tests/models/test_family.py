import subprocess
import sys

import pytest

from style_aligned import Style
from style_aligned.models.denoising import time_ids
from style_aligned.models.family import MINI, SD1, SDXL, family_of
from style_aligned.models.mini import Mini
from tests.models.checkpoints.narrow import build_narrow_1, build_narrow_xl


def test_the_family_of_a_model(model: Mini) -> None:
    assert family_of(model) is MINI
    assert family_of(type("Own", (Mini,), {}).__new__(Mini)) is MINI
    assert family_of(build_narrow_xl()) is SDXL
    assert family_of(build_narrow_1()) is SD1
    with pytest.raises(TypeError, match=r"expected a model of Mini, .* or a subclass, got a str"):
        family_of("mini")


def test_recommended_settings_are_those_of_a_style(model: Mini) -> None:
    style = Style.from_prompt(model, "a fox")
    assert (style.condition_scale, style.num_inference_steps, style.size) == (2.0, 30, (256, 256))
    assert style.options == {"share_group_norm": True}
    style = Style.from_prompt(model, "a fox", share_group_norm=False, options={"scale": 0.5}, condition_scale=3)
    assert style.options == {"share_group_norm": False, "scale": 0.5}
    assert style.condition_scale == 3


def test_time_ids_say_the_size() -> None:
    assert time_ids((768, 1344)).tolist() == [[768, 1344, 0, 0, 768, 1344]] * 2


def test_recommended_settings_are_known_without_pytorch() -> None:
    code = "import sys; from style_aligned.models.family import MINI; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
