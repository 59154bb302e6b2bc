"""Copies of a style with other settings, and styles of a model in another precision."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM

from style_aligned import Style, StyleError, generate
from style_aligned.models.mini import Mini
from style_aligned.models.model import same_weights, sample_weights
from style_aligned.styles import file
from tests.conftest import build_random_mini


def test_other_options_with_the_same_reference(model: Mini) -> None:
    style = Style.from_prompt(model, "a fox, ink", num_inference_steps=2, size=(64, 64), scale=0.8)
    other = style.with_(scale=0.5, shift=0.25)
    assert other.options == {"share_group_norm": True, "scale": 0.5, "shift": 0.25}
    assert style.options == {"share_group_norm": True, "scale": 0.8}
    assert style.with_(options={"shift": 1.0}).options == {"shift": 1.0}
    (sample,) = generate(model, other, ["a cat"])
    assert style.is_complete, "they share their reference"
    (expected,) = generate(
        model,
        Style.from_prompt(model, "a fox, ink", num_inference_steps=2, size=(64, 64), scale=0.5, shift=0.25),
        ["a cat"],
    )
    assert torch.equal(sample.latents, expected.latents)
    assert style.with_(seed=0).seed == 0, "which is no change"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_inference_steps": 4}, "expected num_inference_steps to stay 3, got 4: the latents of the reference are"),
        ({"size": (64, 64)}, r"expected size to stay \(64, 128\), got \(64, 64\): .* generate\(…, size=…\)"),
        ({"seed": 4}, "expected seed to stay 3, got 4: the reference was made from the noise of its seed"),
        ({"condition_scale": 4.0}, "expected condition_scale to stay 2.5, got 4.0: the reference was made with its"),
        ({"prompt": "a cat"}, "expected prompt to stay 'a fox, neon sign', got 'a cat': the reference was made from"),
        ({"negative_prompt": ""}, "expected negative_prompt to stay 'ink', got ''"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_what_would_need_another_reference(model: Mini, style: Style, change: dict[str, Any], reason: str) -> None:
    for one in (style, style.complete()):
        with pytest.raises(ValueError, match=reason):
            one.with_(**change)
        with pytest.raises(ValueError, match=reason):
            dataclasses.replace(one, **change)


def test_changes_that_are_none(style: Style) -> None:
    with pytest.raises(
        TypeError, match=r"expected steps to be two numbers, .+num_inference_steps is how many .+, got 4"
    ):
        style.with_(steps=4)
    with pytest.raises(TypeError, match=r"with_\(\) takes no inference_steps: did you mean num_inference_steps\?"):
        style.with_(inference_steps=4)
    with pytest.raises(TypeError, match=r"Style.with_\(\) takes no scael: did you mean scale\?"):
        style.with_(scael=4)
    with pytest.raises(ValueError, match="expected scale to be a finite number of at least 0, got -1"):
        style.with_(scale=-1.0)
    with pytest.raises(ValueError, match="expected options without full_attention_share"):
        style.with_(full_attention_share=True)


def test_keywords_that_are_none(model: Mini) -> None:
    with pytest.raises(TypeError, match=r"Style.from_prompt\(\) takes no guidance: did you mean condition_scale\?"):
        Style.from_prompt(model, "a fox", guidance=3)


def test_a_style_goes_on_in_another_precision(model: Mini, style: Style, tmp_path: Path) -> None:
    style.save(tmp_path / "fox.safetensors")
    loaded = Style.load(tmp_path / "fox.safetensors")
    for dtype in (torch.float16, torch.bfloat16):
        other = build_random_mini()
        other.to(dtype=dtype)
        other.dtype = dtype
        other.solver = DDIM(30)
        for one in (style, loaded):
            with pytest.warns(UserWarning, match="the style was made in float32 and the model is in b?float16"):
                one.check(other)
        weight = next(other.unet.parameters())
        weight.mul_(1.05)
        with pytest.raises(StyleError, match="expected a model with the weights of the style's, which had precision="):
            loaded.check(other)
        loaded.check(other, force=True)


def test_a_style_in_half_precision_draws_nearly_the_same(model: Mini, style: Style) -> None:
    (expected,) = generate(model, style, ["a cat"])
    other = build_random_mini()
    other.to(dtype=torch.bfloat16)
    other.dtype = torch.bfloat16
    other.solver = DDIM(30)
    with pytest.warns(UserWarning, match="the style was made in float32"):
        (sample,) = generate(other, style, ["a cat"])
    assert sample.latents.dtype == torch.bfloat16
    distance = (sample.latents.float() - expected.latents).norm() / expected.latents.norm()
    assert distance < 0.1


def test_steps_that_are_left_are_done_in_the_precision_of_the_others(fresh_mini: Mini) -> None:
    style = Style.from_prompt(fresh_mini, "a fox", num_inference_steps=1, size=(64, 64))
    fresh_mini.to(dtype=torch.bfloat16)
    fresh_mini.dtype = torch.bfloat16
    fresh_mini.solver = DDIM(30)
    with pytest.raises(StyleError, match="expected a model with precision=float32, as the style's, got bfloat16"):
        generate(fresh_mini, style, ["a cat"], force=True)


def test_files_of_the_version_before(model: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format 1: neither method nor weights, and a negative row even where there is no guidance."""
    style = Style.from_prompt(model, "a fox", num_inference_steps=1, size=(64, 64), condition_scale=1.0)
    (expected,) = generate(model, style, ["a cat"])
    settings = {name: value for name, value in style.settings.items() if name not in file.DEFAULTS}
    rows = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in style.text.tensors.items()}
    monkeypatch.setattr(file, "FORMAT", 1)
    path = tmp_path / "fox.safetensors"
    file.write_style_file(path, {**settings, "size": [64, 64]}, {"latents": style.latents, **rows}, style.preview)
    monkeypatch.undo()
    loaded = Style.load(path)
    assert loaded.method == "prompt"
    assert torch.equal(generate(model, loaded, ["a cat"])[0].latents, expected.latents)

    other = build_random_mini()
    other.to(dtype=torch.bfloat16)
    other.dtype = torch.bfloat16
    other.solver = DDIM(30)
    with pytest.raises(StyleError, match="does not tell weights of another precision"):
        loaded.check(other)
    loaded.check(other, force=True)


def test_files_of_the_version_before_in_half_precision(model: Mini, tmp_path: Path) -> None:
    half = build_random_mini()
    half.to(dtype=torch.bfloat16)
    half.dtype = torch.bfloat16
    half.solver = DDIM(30)
    style = Style.from_prompt(half, "a fox", num_inference_steps=1, size=(64, 64))
    old = dataclasses.replace(style.complete(), weights=None)
    with pytest.warns(UserWarning, match="the style was made in bfloat16 and the model is in float32"):
        old.check(model)
    weight = next(model.unet.parameters())
    before = weight.clone()
    weight.mul_(1.05)
    try:
        with pytest.raises(StyleError, match="expected a model with the weights of the style's"):
            old.check(model)
    finally:
        weight.copy_(before)


def test_a_slight_change_of_weights_is_one(model: Mini) -> None:
    weights = sample_weights(model)
    for dtype in (torch.float16, torch.bfloat16):
        assert same_weights(weights, weights.to(dtype).float())
    generator = torch.Generator().manual_seed(0)
    assert not same_weights(weights, weights * (1 + 0.003 * torch.randn(len(weights), generator=generator)))
    assert not same_weights(weights, weights[:-1])


def test_files_of_a_version_to_come(style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "FORMAT", 3)
    style.save(tmp_path / "fox.safetensors")
    with pytest.raises(StyleError, match="to have format 1 or 2, got 3"):
        Style.load(tmp_path / "fox.safetensors")
