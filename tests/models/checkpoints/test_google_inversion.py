"""Styles from pictures equal what Google's code makes of them, through this package's loader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from style_aligned import Style, generate
from style_aligned.models.checkpoints import load_model
from tests.golden import google_inversion as google
from tests.models.checkpoints.narrow import NARROW_XL
from tests.oracle import relative_error

ARCHITECTURE_XL = NARROW_XL  # as deep as the one that Google's code has run on
GOLDEN = load_file(google.FILE)
TOLERANCE = 1e-4  # it is 4e-6 where the file was made


@pytest.fixture(scope="module")
def kind() -> str:
    return "xl"


@pytest.fixture(scope="module")
def model(folders: dict[str, Path], narrow: None) -> Any:
    return load_model(folders["deep xl"])


def invert(model: Any, **changes: Any) -> Style:
    arguments: dict[str, Any] = {
        "method": "ddim", "offset": google.OFFSET, "inversion_scale": google.SCALE, "size": google.SIZE,
        "num_inference_steps": google.STEPS, "like": "google-transfer",
    }  # fmt: skip
    return Style.from_image(model, google.make_picture(), google.PROMPT, **{**arguments, **changes})


def test_the_trajectory(model: Any) -> None:
    """Without an offset, which only the targets see."""
    latents = invert(model, offset=0).latents
    assert latents.shape == GOLDEN["trajectory"].shape
    for ours, expected in zip(latents, GOLDEN["trajectory"], strict=True):
        assert relative_error(ours, expected) < TOLERANCE


def test_the_targets(model: Any) -> None:
    style = invert(model)
    assert style.condition_scale == google.GUIDANCE
    samples = generate(model, style, google.TARGETS, noise=google.make_noise())
    latents = torch.cat([sample.latents for sample in samples])
    assert relative_error(latents, GOLDEN["targets"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"offset": 0}, {"shift": 0.0}, {"share_group_norm": False}], ids=lambda x: str(x))
def test_each_setting_of_google_counts(model: Any, changes: dict[str, Any]) -> None:
    (sample,) = generate(model, invert(model, **changes), google.TARGETS[:1], noise=google.make_noise()[:1])
    assert relative_error(sample.latents, GOLDEN["targets"][:1]) > 100 * TOLERANCE


def test_a_picture_for_stable_diffusion_1(folders: dict[str, Path], narrow: None) -> None:
    model = load_model(folders["1"])
    for method in ("noise", "ddim"):
        style = invert(model, method=method, num_inference_steps=2)
        (aligned,), (unaligned,) = (generate(model, style, ["a cat"], aligned=aligned) for aligned in (True, False))
        assert aligned.latents.isfinite().all()
        assert relative_error(aligned.latents, unaligned.latents) > 0.1
