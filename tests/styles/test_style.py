from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion.freeu import SDFreeUAdapter
from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    LCMSolver,
    Solver,
    SolverParams,
)

from style_aligned.models.mini import Mini
from style_aligned.sampling.generation import generate
from style_aligned.styles.file import StyleError
from style_aligned.styles.style import Style
from tests.oracle import relative_error


def test_a_style_is_the_trajectory_of_its_reference(model: Mini, style: Style) -> None:
    style.complete()
    assert style.latents.shape == (4, 4, 8, 16)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(style.latents[0], torch.randn(1, 4, 8, 16, generator=generator)[0])

    model.solver = model.solver.rebuild(num_inference_steps=3)  # the loop that Refiners' users write
    x = style.latents[:1]
    embedding, pooled = model.compute_clip_text_embedding("a fox, neon sign", "ink")
    time_ids = torch.tensor([[64, 128, 0, 0, 64, 128]]).repeat(2, 1)
    for step in model.steps:
        with torch.no_grad():
            x = model(
                x, step=step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=time_ids,
                condition_scale=2.5,
            )  # fmt: skip
        assert relative_error(style.latents[step + 1 : step + 2], x) < 1e-5
    assert style.image(model).size == (128, 64)
    assert style.preview.size == (128, 64)


def test_a_style_of_given_noise(model: Mini, style: Style) -> None:
    given = Style.from_prompt(
        model, "a fox, neon sign", negative_prompt="ink", noise=style.complete().latents[:1], num_inference_steps=3,
        condition_scale=2.5, size=(64, 128),
    ).complete()  # fmt: skip
    assert torch.equal(given.latents, style.latents)


def test_a_loaded_style_is_the_saved_one(model: Mini, style: Style, tmp_path: Path) -> None:
    style.save(tmp_path / "fox.safetensors")
    loaded = Style.load(tmp_path / "fox.safetensors")
    assert loaded.settings == style.settings
    assert torch.equal(loaded.latents, style.latents)
    for name, tensor in style.text.tensors.items():
        assert torch.equal(loaded.text.tensors[name], tensor)
    assert loaded.preview.tobytes() == style.preview.tobytes()

    loaded.check(model)
    (ours,) = generate(model, loaded, ["a cat"])
    (expected,) = generate(model, style, ["a cat"])
    assert torch.equal(ours.latents, expected.latents)


def test_another_solver(model: Mini, style: Style) -> None:
    model.solver = Euler(num_inference_steps=30)
    with pytest.raises(StyleError, match="expected a solver with name=DDIM, as the style's, got Euler"):
        style.check(model)
    model.solver = DDIM(num_inference_steps=30, params=SolverParams(timesteps_offset=0))
    with pytest.raises(StyleError, match="expected a solver with timesteps_offset=1, as the style's, got 0"):
        style.check(model, force=True)


def test_another_last_step(model: Mini) -> None:
    model.solver = DPMSolver(num_inference_steps=30, last_step_first_order=True)
    style = Style.from_prompt(model, "a fox", num_inference_steps=2, size=(64, 64))
    style.check(model)
    model.solver = DPMSolver(num_inference_steps=30)
    with pytest.raises(StyleError, match=r"with last_step_first_order=True, as the style's, got False"):
        style.check(model)


def test_another_guidance(model: Mini, style: Style) -> None:
    model.classifier_free_guidance = False
    with pytest.raises(StyleError, match=r"expected a model with classifier_free_guidance=True, .* got False"):
        style.check(model, force=True)


@pytest.mark.parametrize("part", ["unet", "clip_text_encoder"])
def test_other_weights(model: Mini, style: Style, part: str) -> None:
    weight = next(getattr(model, part).parameters())
    before = weight.clone()
    weight.add_(1)
    try:
        with pytest.raises(StyleError, match="expected a model with fingerprint="):
            style.check(model)
        style.check(model, force=True)
    finally:
        weight.copy_(before)
    style.check(model)


def test_an_overflow_is_no_style(model: Mini) -> None:
    with pytest.raises(ValueError, match="the latents of 'a fox' overflowed to NaN or infinity"):
        Style.from_prompt(
            model, "a fox", noise=torch.full((1, 4, 8, 8), 1e38), num_inference_steps=1, size=(64, 64)
        ).complete()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "expected a prompt with at least one word, got an empty one"),
        ({"prompt": "a" * 32_769}, "expected prompts of at most 32768 characters, got one of 32769"),
        ({"negative_prompt": "a" * 32_769}, "expected prompts of at most 32768 characters, got one of 32769"),
        (
            {"size": (8192, 8192), "num_inference_steps": 64},
            "expected at most 268435456 elements in the latents of all steps, got 272629760 with 64 steps of a size of",
        ),
        ({"num_inference_steps": 0}, "expected num_inference_steps to be an integer between 1 and 1000, got 0"),
        (
            {"condition_scale": float("nan")},
            "expected condition_scale to be a finite number between -10000 and 10000, got nan",
        ),
        ({"size": (100, 64)}, "expected a size of multiples of 8, at least 64 and at most 65536, got 100x64"),
        ({"noise": torch.zeros(1, 4, 4, 4)}, r"expected noise of shape \(1, 4, 32, 32\), got \(1, 4, 4, 4\)"),
        ({"noise": torch.full((1, 4, 32, 32), torch.nan)}, "expected noise to be finite, got NaN or infinity"),
        (
            {"options": {"full_attention_share": True}},
            "expected options without full_attention_share: the reference attends to its targets",
        ),
        ({"options": {"scale": -1.0}}, "expected scale to be a finite number of at least 0, got -1"),
    ],
    ids=lambda value: str(value)[:99],
)
def test_wrong_settings(model: Mini, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Style.from_prompt(model, arguments.pop("prompt", "a fox"), **arguments)


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [
        (DDIM(30), 600, "expected at most 500 steps of DDIM, got 600, which would start at timestep 600"),
        (DDIM(30), 1000, "expected at most 500 steps of DDIM, got 1000"),
        (LCMSolver(4), 60, "expected a solver that can do 60 steps, got LCMSolver: num_orig_steps"),
        (LCMSolver(4, num_orig_steps=40), 4, "expected LCMSolver with num_orig_steps=50, .* got 40"),
        (DDPM(10), 4, "expected a solver that can do 4 steps, got DDPM"),
    ],
    ids=str,
)
def test_solvers_that_cannot_do_the_steps(model: Mini, solver: Solver, steps: int, message: str) -> None:
    own, model.solver = model.solver, solver
    try:
        with pytest.raises(ValueError, match=message):
            Style.from_prompt(model, "a fox", num_inference_steps=steps, size=(64, 64))
    finally:
        model.solver = own


def test_solvers_that_differ_in_what_is_none(model: Mini, style: Style) -> None:
    style.complete().solver["sharpness"] = None
    with pytest.raises(StyleError, match=r"solver with sharpness=None, as the style's, got nothing of that name"):
        style.check(model)


def test_free_u_counts(fresh_mini: Mini) -> None:
    SDFreeUAdapter(fresh_mini.unet, backbone_scales=[1.2], skip_scales=[0.9]).inject()
    style = Style.from_prompt(fresh_mini, "a fox", num_inference_steps=1, size=(64, 64))
    style.check(fresh_mini)
    adapter = fresh_mini.unet.parent
    assert isinstance(adapter, SDFreeUAdapter)
    adapter.eject()
    for backbone, skip in ((1.2, 0.1), (1.1, 0.9)):
        other = SDFreeUAdapter(fresh_mini.unet, backbone_scales=[backbone], skip_scales=[skip]).inject()
        with pytest.raises(StyleError, match="expected a model with fingerprint="):
            style.check(fresh_mini)
        other.eject()
    adapter.inject()
    style.check(fresh_mini)
