"""Styles from pictures: what becomes of the picture's latents, and that the style is one like any other."""

import importlib
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler, LCMSolver, Solver

from style_aligned import Style, StyleError, generate
from style_aligned.models.checkpoints import SourceDDIM
from style_aligned.models.mini import Mini
from style_aligned.styles.inversion import add_noise, encode_picture, invert, noise_levels, with_offset
from tests.oracle import relative_error

SIZE = (64, 64)
PROMPT = "a fox, ink"


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((64, 64))


def passes(model: Mini) -> tuple[list[int], Any]:
    rows: list[int] = []

    def hook(_: Any, arguments: Any, output: Any) -> None:
        rows.append(len(arguments[0]))

    return rows, model.unet.register_forward_hook(hook)


def test_noise_takes_no_pass_of_the_unet(model: Mini, picture: Image.Image) -> None:
    rows, handle = passes(model)
    style = Style.from_image(model, picture, PROMPT, size=SIZE, num_inference_steps=3, seed=4)
    assert style.is_complete
    assert rows == []
    (sample,) = generate(model, style, ["a cat"])
    handle.remove()
    assert rows == [2, 2] * 3
    assert sample.seed == 5
    assert sample.settings["method"] == "noise"
    assert sample.settings["picture"] == style.picture


@pytest.mark.parametrize("solver", [DDIM(30), SourceDDIM(30), DPMSolver(30), LCMSolver(30), Euler(30)], ids=type)
def test_latents_of_every_step_have_the_noise_of_the_schedule(
    model: Mini, picture: Image.Image, solver: Solver
) -> None:
    model.solver = solver
    style = Style.from_image(model, picture, PROMPT, size=SIZE, num_inference_steps=4)
    latents, noise = encode_picture(model, picture), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = solver.rebuild(num_inference_steps=4)
    for step in range(4):
        if isinstance(made, Euler):
            expected = latents + made.sigmas[step] * noise
        else:
            expected = made.add_noise(latents, noise, step)  # Refiners' own, which fails for Euler
        assert relative_error(style.latents[step : step + 1], expected) < 1e-5
    assert torch.equal(style.latents[-1:], latents)
    (sample,) = generate(model, style, ["a cat"])
    assert sample.latents.isfinite().all()


def test_statistics_of_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(1, 4, 64, 64, generator=generator), torch.randn(1, 4, 64, 64, generator=generator)
    solver = DDIM(10)
    same, fresh = add_noise(latents, solver, noise), add_noise(latents, solver, noise, fresh=generator)
    for rows in (same, fresh):
        for step, row in enumerate(rows[:-1]):
            timestep = int(solver.timesteps[step])
            added = row - solver.cumulative_scale_factors[timestep] * latents
            assert float(added.mean()) == pytest.approx(0, abs=0.03)
            assert float(added.std()) == pytest.approx(float(solver.noise_std[timestep]), rel=0.03)
    for rows, is_same in ((same, True), (fresh, False)):
        first, second = (
            (rows[step] - solver.cumulative_scale_factors[int(solver.timesteps[step])] * latents).flatten()
            for step in (0, 1)
        )
        correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
        assert (abs(correlation) > 0.99) is is_same


def test_the_seed_decides(model: Mini, picture: Image.Image) -> None:
    def latents(**arguments: Any) -> torch.Tensor:
        return Style.from_image(model, picture, PROMPT, size=SIZE, num_inference_steps=2, **arguments).latents

    assert torch.equal(latents(seed=1), latents(seed=1))
    assert not torch.equal(latents(seed=1), latents(seed=2))
    assert torch.equal(latents(seed=1, fresh_noise=True), latents(seed=1, fresh_noise=True))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(latents(noise=noise), latents(seed=1))


def test_a_step_of_the_inversion(model: Mini, picture: Image.Image) -> None:
    """Against diffusers' inverse scheduler, with the noise that a loop of Refiners predicts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers: Any = importlib.import_module("diffusers")
    steps = 5
    scheduler = diffusers.DDIMInverseScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    model.solver = SourceDDIM(30)
    style = Style.from_image(
        model, picture, PROMPT, method="ddim", offset=0, size=SIZE, num_inference_steps=steps, inversion_scale=2.0
    )
    text, pooled = model.compute_clip_text_embedding(PROMPT, "")
    time_ids = torch.tensor([[64, 64, 0, 0, 64, 64]]).repeat(2, 1)
    x = encode_picture(model, picture)
    assert torch.equal(style.latents[-1:], x)
    for step in reversed(range(steps)):
        timestep = model.solver.rebuild(steps).timesteps[step]
        model.set_unet_context(
            timestep=timestep[None], clip_text_embedding=text, pooled_text_embedding=pooled, time_ids=time_ids
        )
        with torch.no_grad():
            unconditional, conditional = model.unet(x.repeat(2, 1, 1, 1)).chunk(2)
        noise = unconditional + 2.0 * (conditional - unconditional)
        x = scheduler.step(noise, timestep, x).prev_sample
        assert relative_error(style.latents[step : step + 1], x) < 1e-5


def test_an_inversion_can_be_walked_back(model: Mini, picture: Image.Image) -> None:
    """Where a prediction does not depend on the latents, the way back is exact, and iterations change nothing."""
    solver = SourceDDIM(6)
    latents = encode_picture(model, picture)
    constant = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    def predict(*_: Any) -> torch.Tensor:
        return constant

    handle = model.unet.register_forward_hook(predict)
    style = Style.from_prompt(model, PROMPT, size=SIZE, num_inference_steps=6, condition_scale=1)
    with torch.no_grad():
        rows, _ = invert(model, latents, solver, style.text, condition_scale=1)
        refined, residual = invert(model, latents, solver, style.text, condition_scale=1, iterations=2)
    handle.remove()
    x = rows[0]
    for step in range(6):
        x = solver(x, predicted_noise=constant, step=step)
        assert relative_error(x, rows[step + 1]) < 1e-4
    assert relative_error(torch.cat(refined), torch.cat(rows)) < 1e-5
    assert residual < 1e-5


def test_iterations_bring_the_picture_back_more_closely(model: Mini, picture: Image.Image) -> None:
    def distance(iterations: int) -> tuple[float, float]:
        style = Style.from_image(
            model, picture, PROMPT, method="ddim", offset=0, iterations=iterations, inversion_scale=1,
            condition_scale=1, size=SIZE, num_inference_steps=8,
        )  # fmt: skip
        again = Style.from_prompt(
            model, PROMPT, noise=style.latents[:1], size=SIZE, num_inference_steps=8, condition_scale=1
        ).complete()
        return relative_error(again.latents[-1:], style.latents[-1:]), style.details.get("residual", math.inf)

    model.solver = SourceDDIM(30)
    (plain, _), (refined, residual) = distance(0), distance(8)
    assert refined < plain
    assert 0 <= residual < 1


def test_the_offset_skips_the_noisiest_latents() -> None:
    rows = [torch.full((1, 1), float(index)) for index in range(7)]
    google = [rows[3], *(rows[max(3 + 1, step + 1)] for step in range(6))]
    assert [float(row) for row in with_offset(rows, 3)] == [float(row) for row in google] == [3, 4, 4, 4, 4, 5, 6]
    assert with_offset(rows, 0) == rows


def test_a_style_from_a_picture_is_saved_like_any_other(model: Mini, picture: Image.Image, tmp_path: Path) -> None:
    style = Style.from_image(
        model, picture, PROMPT, method="ddim", offset=1, iterations=1, size=SIZE, num_inference_steps=2, strength=1.2
    )
    style.save(tmp_path / "style.safetensors")
    loaded = Style.load(tmp_path / "style.safetensors")
    assert loaded.settings == style.settings
    assert loaded.details["residual"] > 0
    assert loaded.method == "ddim"
    assert torch.equal(generate(model, loaded, ["a cat"])[0].latents, generate(model, style, ["a cat"])[0].latents)
    assert loaded.describe()["picture"] == style.picture
    assert loaded.preview.size == (64, 64)
    assert style.options == {"share_group_norm": True, "strength": 1.2}


def test_the_guidance_of_a_style_from_a_picture_can_change(model: Mini, picture: Image.Image) -> None:
    style = Style.from_image(model, picture, PROMPT, size=SIZE, num_inference_steps=1)
    other = style.with_(condition_scale=4.0)
    assert (other.condition_scale, style.condition_scale) == (4.0, 2.0)
    expected = Style.from_image(model, picture, PROMPT, size=SIZE, num_inference_steps=1, condition_scale=4.0)
    assert torch.equal(generate(model, other, ["a cat"])[0].latents, generate(model, expected, ["a cat"])[0].latents)
    without = style.with_(condition_scale=0)
    assert without.text.rows == 1
    with pytest.raises(ValueError, match="which is no guidance, got 3: the style holds no negative prompt for it"):
        without.with_(condition_scale=3)
    with pytest.raises(ValueError, match="expected seed to stay 0, got 1"):
        style.with_(seed=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(fresh_mini: Mini, picture: Image.Image, dtype: torch.dtype) -> None:
    latents = encode_picture(fresh_mini, picture)
    fresh_mini.to(dtype=dtype)
    fresh_mini.dtype = dtype
    fresh_mini.solver = DDIM(30)
    for method in ("noise", "ddim"):
        style = Style.from_image(fresh_mini, picture, PROMPT, method=method, offset=1, size=SIZE, num_inference_steps=2)
        assert style.latents.dtype == torch.float32
        assert relative_error(style.latents[-1:], latents) < 0.05
        (sample,) = generate(fresh_mini, style, ["a cat"])
        assert sample.latents.dtype == dtype
        assert sample.latents.isfinite().all()
    assert fresh_mini.lda.dtype == dtype


def test_an_autoencoder_that_overflows_in_float16(fresh_mini: Mini, picture: Image.Image) -> None:
    """As SDXL's does. It is the same in float32 up to the rounding of its weights, and stays in float16."""
    convolution = next(fresh_mini.lda.layers(fl.Conv2d))
    convolution.weight.mul_(30_000 / convolution.weight.abs().max())
    expected = encode_picture(fresh_mini, picture)
    fresh_mini.lda.to(dtype=torch.float16)
    with torch.no_grad():
        assert not fresh_mini.lda.image_to_latents(picture).isfinite().all()
    latents = encode_picture(fresh_mini, picture)
    assert relative_error(latents, expected) < 0.01
    assert fresh_mini.lda.dtype == torch.float16


def test_settings_of_google(model: Mini, picture: Image.Image) -> None:
    arguments: dict[str, Any] = {"size": SIZE, "num_inference_steps": 1}
    style = Style.from_image(model, picture, PROMPT, like="google-transfer", **arguments)
    assert style.condition_scale == 10.0
    assert style.options == {"share_group_norm": True, "scale": 1.0, "shift": pytest.approx(math.log(2))}
    style = Style.from_image(model, picture, PROMPT, like="google-famous", condition_scale=4.0, shift=0.1, **arguments)
    assert style.condition_scale == 4.0
    assert style.options == {"share_group_norm": True, "scale": 0.5, "shift": 0.1}


def test_what_is_done_to_a_picture_is_said(model: Mini, picture: Image.Image, tmp_path: Path) -> None:
    picture.resize((128, 64)).convert("LA").save(tmp_path / "wide.png")
    with pytest.warns(UserWarning, match=r"wide.png: cropped to its middle \(50% of it\)$"):
        Style.from_image(model, tmp_path / "wide.png", PROMPT, size=SIZE, num_inference_steps=1)
    with pytest.warns(UserWarning, match="^the picture: enlarged from 64x64 to 128x128"):
        style = Style.from_image(model, picture, PROMPT, size=(128, 128), num_inference_steps=1)
    assert style.size == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "null-text"}, "expected method to be one of noise, ddim, got 'null-text'"),
        ({"method": "ddim", "num_inference_steps": 5}, "expected offset to be less than the number of steps, 5, got 5"),
        ({"method": "ddim", "offset": -1}, "expected offset to be an integer of at least 0, got -1"),
        ({"method": "ddim", "iterations": 101}, "expected iterations to be an integer between 0 and 100, got 101"),
        ({"method": "ddim", "inversion_scale": math.nan}, "expected inversion_scale to be a finite number between"),
        ({"prompt": " "}, "expected a prompt with at least one word, got an empty one"),
        ({"like": "google"}, "expected like to be one of google-transfer, google-famous, got 'google'"),
        ({"size": (60, 64)}, "expected a size of multiples of 8"),
        ({"noise": torch.zeros(1, 4, 4, 4)}, r"expected noise of shape \(1, 4, 8, 8\), got \(1, 4, 4, 4\)"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:the picture")
def test_wrong_settings(model: Mini, picture: Image.Image, arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"prompt": PROMPT, "size": SIZE, "num_inference_steps": 8, **arguments}
    with pytest.raises(ValueError, match=message):
        Style.from_image(model, picture, given.pop("prompt"), **given)


def test_after_an_interruption_a_model_inverts_as_before(model: Mini, picture: Image.Image) -> None:
    arguments: dict[str, Any] = {"method": "ddim", "offset": 0, "size": SIZE, "num_inference_steps": 2}
    expected = Style.from_image(model, picture, PROMPT, **arguments)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Style.from_image(model, picture, PROMPT, on_step=interrupt, **arguments)
    assert torch.equal(Style.from_image(model, picture, PROMPT, **arguments).latents, expected.latents)


def test_another_solver_is_refused(model: Mini, picture: Image.Image) -> None:
    style = Style.from_image(model, picture, PROMPT, size=SIZE, num_inference_steps=1)
    model.solver = Euler(30)
    with pytest.raises(StyleError, match="expected a solver with name=DDIM"):
        generate(model, style, ["a cat"])


def test_noise_levels_end_where_the_solver_ends() -> None:
    for solver in (SourceDDIM(10), Euler(10)):
        levels = noise_levels(solver)
        assert torch.allclose(levels.signal**2 + levels.noise**2, torch.ones(11), atol=1e-6)
    assert float(noise_levels(Euler(10)).noise[-1]) == 0
    assert float(noise_levels(SourceDDIM(10)).noise[-1]) == pytest.approx(0.00085**0.5, rel=1e-3)
