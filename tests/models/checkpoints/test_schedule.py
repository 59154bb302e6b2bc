"""Predictions and noise schedules: drawn as diffusers does, and found wherever a checkpoint says them."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError, convert_checkpoint, load_model, time_ids
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.checkpoints.sources import open_checkpoint
from tests.models.checkpoints.narrow import SCHEDULER_CONFIG
from tests.models.checkpoints.pipelines import diffusers
from tests.models.checkpoints.test_parts import error, random
from tests.models.checkpoints.test_sources import altered

VELOCITY = {"prediction_type": "v_prediction"}
ZERO_SNR = {**VELOCITY, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SETTINGS: list[dict[str, Any]] = [
    {},
    VELOCITY,
    ZERO_SNR,
    {**VELOCITY, "rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {**ZERO_SNR, "timestep_spacing": "linspace", "beta_schedule": "linear"},
    {"set_alpha_to_one": True, "steps_offset": 0},
]


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "1")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("steps", [1, 3, 48, 1000])
def test_every_step_is_that_of_diffusers(settings: dict[str, Any], steps: int) -> None:
    config = {**SCHEDULER_CONFIG, **settings}
    if config["timestep_spacing"] == "leading":
        steps = min(steps, 998)  # there are no more timesteps, or noise alone
    theirs: Any = diffusers.DDIMScheduler(**config)
    theirs.set_timesteps(steps)
    ours = Schedule.from_config(config, where="here").solver(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert torch.allclose(ours.cumulative_scale_factors.square(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    x, prediction = random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1)
    for step in {0, steps // 2, steps - 1}:
        expected = theirs.step(prediction, theirs.timesteps[step], x)
        assert error(ours(x, prediction, step=step), expected.prev_sample) < 1e-4
        assert error(ours.remove_noise(x, prediction, step), expected.pred_original_sample) < 1e-4
    again = ours.rebuild(num_inference_steps=steps)
    assert again.params == ours.params
    assert torch.equal(again(x, prediction, step=0), ours(x, prediction, step=0))


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
@torch.no_grad()
def test_the_whole_with_velocity_and_zero_terminal_snr(
    pipeline: Any, single_file: Path, tmp_path: Path, kind: str
) -> None:
    pipeline = copy.copy(pipeline)
    pipeline.scheduler = diffusers.DDIMScheduler(**{**SCHEDULER_CONFIG, **ZERO_SNR})
    model = load_model(
        with_tensors(single_file, tmp_path, "alphas_cumprod", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    )
    noise = random(1, 4, 8, 8)
    expected = pipeline(
        "a fox", negative_prompt="ink", latents=noise.clone(), height=64, width=64, num_inference_steps=3,
        guidance_scale=5.0, output_type="latent",
    ).images  # fmt: skip
    model.set_inference_steps(3)
    context: dict[str, Tensor] = {}
    if isinstance(model, StableDiffusion_XL):
        text, context["pooled_text_embedding"] = model.compute_clip_text_embedding("a fox", "ink")
        context["time_ids"] = time_ids((64, 64))
    else:
        text = model.compute_clip_text_embedding("a fox", "ink")
    x = noise
    for step in model.steps:
        x = model(x, step=step, clip_text_embedding=text, condition_scale=5.0, **context)
    assert (x - expected).abs().max() < 1e-4


def with_tensors(file: Path, tmp_path: Path, *without: str, **tensors: Tensor) -> Path:
    """Copy a single file with some tensors removed, and others added."""
    state = {key: tensor for key, tensor in load_file(file).items() if key not in without}
    save_file({**state, **tensors}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def tiny(tmp_path: Path, tensors: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> Path:
    """A file that is recognised as a model: its weights are of no interest."""
    save_file({"model.diffusion_model.x": torch.zeros(1), **(tensors or {})}, tmp_path / "model.safetensors", metadata)
    return tmp_path / "model.safetensors"


def check(path: Path, expected: dict[str, Any] | str, **wanted: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path, **wanted)
        assert expected in str(caught.value)
    else:
        assert open_checkpoint(path, **wanted).schedule == Schedule(**expected)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"modelspec.prediction_type": "v"}, VELOCITY),
        ({"modelspec.prediction_type": "v_prediction"}, VELOCITY),
        ({"modelspec.prediction_type": "V-Prediction"}, VELOCITY),
        ({"modelspec.predict_key": "v"}, VELOCITY),
        ({"ss_v_parameterization": "True"}, VELOCITY),
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ZERO_SNR),
        ({"modelspec.prediction_type": "epsilon", "ss_zero_terminal_snr": "False"}, {}),
        ({"modelspec.prediction_type": "epsilon", "ss_zero_terminal_snr": "None"}, {}),
        ({"ss_zero_terminal_snr": "maybe"}, "ss_zero_terminal_snr: expected true or false, got 'maybe'"),
        ({"modelspec.prediction_type": "sample"}, "modelspec.prediction_type: a model that predicts 'sample'; exp"),
        (
            {"modelspec.prediction_type": "epsilon", "modelspec.predict_key": "v"},
            "modelspec.predict_key='v' of model.safetensors says prediction_type='v_prediction', but the metadata "
            "modelspec.prediction_type='epsilon' of model.safetensors says 'epsilon'; say which is right: prediction",
        ),
    ],
)  # fmt: skip
def test_metadata(tmp_path: Path, metadata: dict[str, str], expected: Any) -> None:
    check(tiny(tmp_path, metadata=metadata), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  params:\n    parameterization: v\n", VELOCITY),
        ("model: {params: {parameterization: eps, linear_start: 0.00085, linear_end: 0.02}}", {"beta_end": 0.02}),
        ("model: {params: {parameterization: x0}}", "model.yaml: parameterization: a model that predicts 'x0'"),
        ("a: [{scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}]", VELOCITY),
        ("target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling", {}),
        ("target: sgm.modules.diffusionmodules.denoiser_scaling.VScalingWithEDMcNoise", "a model with VScalingWithEDM"),
        ("model: {params: {parameterization: v, zero_terminal_snr: true}}", ZERO_SNR),
        ("model: {params: {beta_schedule: cosine}}", "a beta schedule 'cosine', for which there is no solver"),
        ("model: [", "model.yaml: not a YAML file"),
        ("just words", {}),
    ],
)
def test_a_yaml_of_the_same_name(tmp_path: Path, text: str, expected: Any) -> None:
    path = tiny(tmp_path)
    path.with_suffix(".yaml").write_text(text)
    check(path, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"rescale_betas_zero_snr": True}, {"beta_end": 0.02, "beta_schedule": "linear"}]
)
def test_tables_of_the_schedule(settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    theirs: Any = diffusers.DDIMScheduler(**{**SCHEDULER_CONFIG, **settings})
    table = theirs.alphas_cumprod.to(dtype)
    if "beta_end" in settings and dtype.itemsize < 4:  # too coarse to tell
        check(
            tiny(tmp_path, {"alphas_cumprod": table}),
            "'alphas_cumprod' holds a noise schedule for which there is no solver",
        )
        return
    for stored in (table, table.float()):
        found = open_checkpoint(tiny(tmp_path, {"alphas_cumprod": stored})).schedule
        assert found.beta_end == pytest.approx(settings.get("beta_end", 0.012), rel=1e-3)
        expected = Schedule(**settings)
        assert replace(found, beta_start=expected.beta_start, beta_end=expected.beta_end) == expected


def test_other_tables(tmp_path: Path) -> None:
    zero: Tensor = diffusers.DDIMScheduler(**{**SCHEDULER_CONFIG, "rescale_betas_zero_snr": True}).alphas_cumprod
    sigmas = ((1 - zero) / zero).sqrt().flip(0)
    betas = 1 - torch.cat([zero[:1], zero[1:] / zero[:-1]])
    for name, table in (("denoiser.sigmas", sigmas), ("betas", betas), ("sqrt_alphas_cumprod", zero.sqrt())):
        check(tiny(tmp_path, {name: table}), {"rescale_betas_zero_snr": True})
    for table in (torch.rand(1000), torch.zeros(1000), torch.full((1000,), torch.nan), torch.ones(1), torch.zeros(0)):
        check(
            tiny(tmp_path, {"alphas_cumprod": table}),
            "'alphas_cumprod' holds a noise schedule for which there is no solver here",
        )


def test_what_contradicts_itself(tmp_path: Path) -> None:
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    check(tiny(tmp_path, markers), ZERO_SNR)
    marked = tiny(tmp_path, {"alphas_cumprod": Schedule().alphas_cumprod, **markers})
    check(
        marked, "the tensor 'ztsnr' says rescale_betas_zero_snr=True, but the tensor 'alphas_cumprod' says False; "
        "say which is right: rescale_betas_zero_snr=…",
    )  # fmt: skip
    check(marked, ZERO_SNR, rescale_betas_zero_snr=True)
    check(marked, VELOCITY, rescale_betas_zero_snr=False)


def test_settings_of_a_folder(folder: Path, tmp_path: Path) -> None:
    copied = altered(folder, tmp_path, {})
    scheduler = copied / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    for settings in SETTINGS[:-2]:
        scheduler.write_text(json.dumps({**config, **settings}))
        check(copied, settings)
    for settings, message in [
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "cannot start at timestep 999"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "a model with flow matching, for which there is no solver",
        ),
        ({"use_flow_sigmas": True}, "a model with flow matching"),
    ]:
        scheduler.write_text(json.dumps({**config, **settings}))
        check(copied, message)
    scheduler.write_text(json.dumps(config))
    save_file({"v_pred": torch.zeros(0)}, copied / "unet" / "diffusion_pytorch_model.safetensors")
    check(
        copied, "prediction_type in scheduler_config.json says prediction_type='epsilon', but the tensor 'unet.v_pred'"
    )
    check(copied, VELOCITY, prediction_type="v_prediction")


def test_what_the_user_says_holds(single_file: Path) -> None:
    check(single_file, {})
    check(single_file, VELOCITY, prediction_type="v")
    check(single_file, "a timestep spacing 'late'; expected one of leading, trailing, lins", timestep_spacing="late")
    with pytest.raises(
        ValueError, match="the embedded model is complete, with one schedule; expected no timestep_spacing"
    ):
        load_model("mini", timestep_spacing="trailing")
    one_step = load_model(single_file, timestep_spacing="trailing").solver.rebuild(num_inference_steps=1)
    assert one_step.timesteps.tolist() == [999]


def test_conversion_keeps_it(single_file: Path, tmp_path: Path) -> None:
    source = with_tensors(single_file, tmp_path, "alphas_cumprod", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    target = convert_checkpoint(source, tmp_path / "refiners").target
    check(source, ZERO_SNR)
    check(target, ZERO_SNR)
    assert load_model(target).prediction_type == "v_prediction"


def test_usual_models_have_the_solver_that_style_files_of_before_name() -> None:
    assert set(vars(Schedule().solver().params)) == {
        "num_train_timesteps", "timesteps_spacing", "timesteps_offset", "initial_diffusion_rate",
        "final_diffusion_rate", "noise_schedule", "model_prediction_type",
    }  # fmt: skip
