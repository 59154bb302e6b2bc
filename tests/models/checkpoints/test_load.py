import gc
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from refiners.fluxion import layers as fl
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import DDIM, Solver

from style_aligned.models.checkpoints import CheckpointError, load_model, time_ids, warn_about_prompts
from style_aligned.models.checkpoints.prompts import describe_prompts, long_prompts
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.checkpoints.solver import SourceDDIM
from style_aligned.models.finite import NonFiniteError
from style_aligned.models.mini import Mini
from tests.models.checkpoints.narrow import SCHEDULER_CONFIG
from tests.models.checkpoints.pipelines import diffusers
from tests.models.checkpoints.test_parts import error, random
from tests.models.checkpoints.test_sources import altered


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Stable Diffusion 1.5 alone, which is faster, unless a test asks for both."""
    return getattr(request, "param", "1")


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_the_model_is_complete(folder: Path, kind: str) -> None:
    model = load_model(folder)
    assert type(model) is (StableDiffusion_XL if kind == "xl" else StableDiffusion_1)
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert not list(model.buffers())
    assert {norm.eps for norm in model.lda.layers(fl.GroupNorm)} == {1e-6}
    assert model.lda.encoder_scale == {"xl": 0.13025, "1": 0.18215}[kind]


def test_nothing_is_initialised() -> None:
    """No weight is filled, and nothing is imported for it: that takes longer than all the rest."""
    code = (
        "import sys; from style_aligned.models.checkpoints import architectures; modules = set(sys.modules); "
        "architectures.build_stable_diffusion_xl(); sys.exit(len(set(sys.modules) - modules) > 20)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(str(folder), dtype=dtype)
    full = load_model(folder)
    assert model.dtype == dtype
    for part in ("unet", "clip_text_encoder", "lda"):
        expected = torch.float32 if (dtype, part) == (torch.float16, "lda") else dtype
        state = getattr(model, part).state_dict()
        assert {weight.dtype for weight in state.values()} == {expected}
        for key, weight in getattr(full, part).state_dict().items():
            assert torch.equal(state[key], weight.to(expected))


def test_weights_of_the_right_type_are_mapped(folder: Path, tmp_path: Path) -> None:
    folder = altered(folder, tmp_path, {})
    # the kernel's list of what is mapped names the files
    model = load_model(folder)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what is mapped")
    assert str(folder / "unet" / "diffusion_pytorch_model.safetensors") in maps.read_text()
    del model
    gc.collect()
    model = load_model(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert str(folder / "unet" / "diffusion_pytorch_model.safetensors") not in maps.read_text()


@torch.no_grad()
def test_the_autoencoder_of_a_half_precision_model(folder: Path) -> None:
    model, full = load_model(folder, dtype=torch.float16), load_model(folder)
    latents = random(1, 4, 8, 8).half()
    image, expected = model.lda.latents_to_image(latents), full.lda.latents_to_image(latents.float())
    assert image.tobytes() == expected.tobytes()
    encoded = model.lda.image_to_latents(image)
    assert encoded.dtype == torch.float16
    assert error(encoded.float(), full.lda.image_to_latents(image)) < 1e-3


@torch.no_grad()
def test_the_autoencoder_does_not_overflow(folder: Path) -> None:
    model, naive = load_model(folder, dtype=torch.float16), load_model(folder)
    for lda in (model.lda, naive.lda):
        convolution = lda.layer(("Decoder", "Chain_1", "Chain_1", "Resnet_1", "Chain", "Conv2d_2"), fl.Conv2d)
        convolution.weight.data *= 3e4
    latents = random(1, 4, 4, 4).half()
    expected = model.lda.decode(latents)
    assert expected.isfinite().all()
    for parameter in naive.lda.parameters():
        parameter.data = parameter.data.half()
    with pytest.raises(
        NonFiniteError, match=r"the numbers of an image overflowed .+ in the autoencoder \(float16\): exp"
    ):
        naive.lda.decode(latents)
    moved = load_model(folder)
    moved.lda.load_state_dict(model.lda.state_dict())
    for move in (moved.half, lambda: moved.to(dtype=torch.float16), lambda: moved.lda.to(dtype=torch.float16)):
        move()
        assert (moved.lda.dtype, moved.lda.latents_dtype) == (torch.float32, torch.float16)
        assert torch.equal(moved.lda.decode(latents), expected)
    assert moved.unet.dtype == torch.float16
    moved.to(device="cpu")
    assert (moved.lda.dtype, moved.lda.latents_dtype) == (torch.float32, torch.float16)
    moved.to(dtype=torch.bfloat16)
    assert (moved.lda.dtype, moved.lda.latents_dtype) == (torch.bfloat16, torch.bfloat16)


def test_pictures_of_damaged_weights_are_refused(folder: Path) -> None:
    model = load_model(folder)
    model.lda.layer(("Decoder", "Conv2d_2"), fl.Conv2d).weight.data[0, 0] = torch.nan
    message = (
        r"the numbers of an image hold NaN or infinity: the autoencoder has a weight .+ 'Decoder\.Conv2d_2\.weight'; "
    )
    with torch.no_grad(), pytest.raises(NonFiniteError, match=message):
        model.lda.latents_to_image(random(1, 4, 4, 4))
    model.lda.layer(("Encoder", "Conv2d"), fl.Conv2d).weight.data[0, 0] = torch.inf
    with (
        torch.no_grad(),
        pytest.raises(NonFiniteError, match=r"the latents of an image hold .+ 'Encoder\.Conv2d\.weight'"),
    ):
        model.lda.image_to_latents(Image.new("RGB", (32, 32)))


def test_weights_beyond_float16(folder: Path, tmp_path: Path) -> None:

    copy = altered(folder, tmp_path, {"unet.conv_in.bias": torch.full((32,), 1e6)})
    with pytest.raises(CheckpointError, match=r"'conv_in\.bias' exceeds the range of float16; use bfloat16 or float32"):
        load_model(copy, dtype=torch.float16)
    load_model(copy, dtype=torch.bfloat16)


def test_another_type(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; expected one of torch\.float32, torch\.float16"):
        load_model(folder, dtype=torch.int8)


def test_mini_is_the_embedded_model() -> None:
    model = load_model("mini", dtype=torch.bfloat16)
    assert isinstance(model, Mini)
    assert (model.device, model.unet.dtype) == (torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "expected device to be auto, cpu, cuda, cuda:1, mps or xpu, got 'gpu'"),
        ({"device": "cuda:99"}, "expected a device that is there, got 'cuda:99'"),
        ({"name_or_path": ""}, "expected the name or the path of a model, such as 'mini', got ''"),
    ],
)
def test_what_is_no_device_or_no_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(**arguments)


@pytest.mark.parametrize("steps", [1, 3, 30, 50, 999])
def test_the_solver_is_that_of_the_source(steps: int) -> None:
    theirs: Any = diffusers.DDIMScheduler(**SCHEDULER_CONFIG)
    theirs.set_timesteps(steps)
    ours = Schedule().solver(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x, noise = random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1)
    for step in {0, steps // 2, steps - 1}:
        expected = theirs.step(noise, theirs.timesteps[step], x).prev_sample
        assert error(ours(x, noise, step=step), expected) < 1e-5


def test_why_the_solver_is_not_that_of_refiners() -> None:
    x, noise = random(2, 4, 8, 8), random(2, 4, 8, 8, seed=1)
    difference = Schedule().solver(10)(x, noise, step=9) - DDIM(10)(x, noise, step=9)
    assert (difference / noise).mean().item() == pytest.approx(0.0292, abs=1e-4)


def test_the_solver_is_precise_in_a_half_precision_model(folder: Path) -> None:
    model = load_model(folder, dtype=torch.float16)
    model.set_inference_steps(20)
    solver: Solver = model.solver
    assert isinstance(solver, SourceDDIM)
    assert solver.dtype == torch.float32
    assert solver(random(1, 4, 8, 8).half(), random(1, 4, 8, 8).half(), step=19).dtype == torch.float16


def test_the_schedule_of_the_settings() -> None:
    config = {**SCHEDULER_CONFIG, "steps_offset": 0, "beta_schedule": "linear", "beta_end": 0.02}
    theirs: Any = diffusers.DDIMScheduler(**config)
    theirs.set_timesteps(10)
    ours = Schedule.from_config(config, where="here").solver(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert torch.allclose(ours.cumulative_scale_factors**2, theirs.alphas_cumprod, atol=1e-5)


def test_settings_that_are_not_supported() -> None:
    with pytest.raises(CheckpointError, match="here: a model that predicts 'sample'; expected 'epsilon'"):
        Schedule.from_config({"prediction_type": "sample"}, where="here")
    with pytest.raises(CheckpointError, match="here: a beta schedule 'squaredcos_cap_v2'; expected one of"):
        Schedule.from_config({"beta_schedule": "squaredcos_cap_v2"}, where="here")
    with pytest.raises(CheckpointError, match="here: settings that make no sense"):
        Schedule.from_config({"beta_end": None}, where="here")
    with pytest.raises(CheckpointError, match="here: a timestep spacing 'karras'; expected one of leading, trailing"):
        Schedule.from_config({"timestep_spacing": "karras"}, where="here")
    with pytest.raises(CheckpointError, match="here: settings that make no sense: expected true or false as rescale"):
        Schedule.from_config({"rescale_betas_zero_snr": "false"}, where="here")


def test_time_ids_follow_the_size() -> None:
    ids = time_ids((768, 1344), original_size=(500, 600), crop=(1, 2), rows=3)
    assert ids.tolist() == [[500, 600, 1, 2, 768, 1344]] * 3


def test_long_prompts(folder: Path) -> None:
    model = load_model(folder)
    long = "Word " * 70 + "one two  three FOUR five, 'tis the END"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_prompts(model, ["A fox", "word " * 75])
    assert long_prompts(model, ["A fox", "word " * 75, long, "café 🦊 " * 5, "score_9 " * 25 + "末尾…"]) == [
        "", "", ", 'tis the END", "", "末尾…",
    ]  # fmt: skip
    message = r"the prompt 'Word .+…' is longer than 77 tokens; the model does not see its end: \", 'tis the END\""
    with pytest.warns(UserWarning, match=message):
        warn_about_prompts(model, ["A fox", long])
    tokenizer = model.clip_text_encoder.ensure_find(CLIPTokenizer)
    assert torch.equal(tokenizer(long), tokenizer(long.replace(", 'tis the END", "; but something else")))
    assert not torch.equal(tokenizer(long), tokenizer(long.replace("five", "six")))


def test_the_syntax_of_other_programs(folder: Path) -> None:
    model = load_model(folder)
    for prompt, found in [
        ("a (red:1.3) fox", "(red:1.3)"), ("a ((red)) fox", "((red))"), ("a [red] fox", "[red]"),
        ("a [red:blue:0.5] fox", "[red:blue:0.5]"), ("a fox BREAK a cat", "BREAK"), ("a fox AND a cat", "AND"),
        ("a fox <lora:ink:0.8>", "<lora:ink:0.8>"), ("embedding:ink, a fox", "embedding:ink,"),
        ("a {red|blue} fox", "{red|blue}"),
    ]:  # fmt: skip
        with pytest.warns(UserWarning, match=re.escape(f"is read word for word: {found!r} has no special")) as caught:
            warn_about_prompts(model, ["a fox", prompt, prompt, "a (blue:1.2) cat"])
        assert len(caught) == 1
    plain = ["saber (fate), at 10:30", r"a \(red:1.3\) fox", "SANDY BREAKFAST AND", "a fox: 3.5 < 4 > 2", "a <3 fox"]
    assert describe_prompts(model, plain) == []


def test_a_model_without_that_tokenizer_warns_of_nothing() -> None:
    model = types.SimpleNamespace(clip_text_encoder=fl.Chain())
    assert long_prompts.__wrapped__(model, ["x " * 100]) == [""]  # pyright: ignore
    assert describe_prompts.__wrapped__(model, ["(x:1.3) " * 100]) == []  # pyright: ignore
