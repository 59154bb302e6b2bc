from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler, LCMSolver, Solver
from torch import Generator, Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter
from style_aligned.models.mini import Mini
from style_aligned.models.solvers import sample_noise
from style_aligned.sampling.generation import generate
from style_aligned.styles.file import StyleError
from style_aligned.styles.style import Style
from tests.chains import snapshot
from tests.models.checkpoints.narrow import build_narrow_1
from tests.oracle import relative_error

SIZE = (64, 64)
STEPS = 4
PROMPTS = ["a dog, neon sign", "a rocket", "a cat, ink", "fox", "dog"]


def make_style(model: Any, **options: Any) -> Style:
    return Style.from_prompt(
        model, "a fox, neon sign", negative_prompt="ink", num_inference_steps=STEPS, condition_scale=3.0, size=SIZE,
        options={"share_group_norm": False, **options},
    ).complete()  # fmt: skip


def in_one_batch(model: Any, options: dict[str, Any] | None) -> Tensor:
    """The reference and its targets in one batch, in the loop that Refiners' users write, unaligned without options."""
    solver, model.solver = model.solver, model.solver.rebuild(num_inference_steps=STEPS)
    prompts = ["a fox, neon sign", *PROMPTS]
    x = torch.cat([sample_noise(model, seed, SIZE) for seed in range(len(prompts))])
    x = model.solver.scale_model_input(x, step=-1)
    embeddings = model.compute_clip_text_embedding(prompts, ["ink"] * len(prompts))
    embeddings = embeddings if isinstance(embeddings, tuple) else (embeddings,)
    halves = 2 if model.classifier_free_guidance else 1
    embeddings = [embedding[-halves * len(prompts) :] for embedding in embeddings]
    context: dict[str, Tensor] = dict(zip(("clip_text_embedding", "pooled_text_embedding"), embeddings, strict=False))
    if len(context) == 2:
        context["time_ids"] = torch.tensor([[*SIZE, 0, 0, *SIZE]]).repeat(halves * len(prompts), 1)
    adapter = nullcontext() if options is None else StyleAlignedAdapter(model.unet, set_size=len(prompts), **options)
    with torch.no_grad(), adapter:
        for step in model.steps:
            x = model(x, step=step, condition_scale=3.0, **context)
    model.solver = solver
    return x


def latents(samples: Any) -> Tensor:
    return torch.cat([sample.latents for sample in samples])


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.6, "shift": 0.5}, {"share_group_norm": True, "only_self_level": 0.5}, {"share_attention": False}],
    ids=str,
)
def test_generate_equals_one_batch(model: Mini, options: dict[str, Any]) -> None:
    expected = in_one_batch(model, options)
    style = make_style(model, **options)
    assert relative_error(style.latents[-1:], expected[:1]) < 1e-5
    for batch_size, chunk_size in ((1, 32), (2, 3), (32, 32)):
        samples = generate(model, style, PROMPTS, batch_size=batch_size, chunk_size=chunk_size)
        assert relative_error(latents(samples), expected[1:]) < 1e-5
    unaligned = latents(generate(model, style, PROMPTS, aligned=False))
    assert relative_error(unaligned, expected[1:]) > 1e-3


def test_unaligned_images_are_those_of_refiners(model: Mini) -> None:
    expected = in_one_batch(model, None)
    assert (
        relative_error(latents(generate(model, make_style(model), PROMPTS, aligned=False, batch_size=2)), expected[1:])
        < 1e-5
    )


@pytest.mark.parametrize("solver", [Euler(30), DPMSolver(30), DPMSolver(30, last_step_first_order=True)], ids=repr)
def test_generate_works_with_stateful_solvers(model: Mini, solver: Solver) -> None:
    model.solver = solver
    expected = in_one_batch(model, {})
    assert relative_error(latents(generate(model, make_style(model), PROMPTS, batch_size=2)), expected[1:]) < 1e-4


def test_generate_works_with_a_solver_that_adds_noise(model: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    model.solver = LCMSolver(30)
    samples = latents(generate(model, make_style(model), PROMPTS, batch_size=2))
    generators = [Generator().manual_seed(seed) for seed in range(1 + len(PROMPTS))]

    def sample_noises() -> Tensor:
        return torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])

    sample_noises()  # those that the images start from
    add_noise = Solver.add_noise

    def add_noises(self: Solver, x: Tensor, noise: Tensor, step: int) -> Tensor:
        return add_noise(self, x, sample_noises(), step)

    monkeypatch.setattr(Solver, "add_noise", add_noises)
    assert relative_error(samples, in_one_batch(model, {})[1:]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "solver_dtype"),
    [
        (solver_type(30), dtype)
        for solver_type in (DDIM, Euler, DPMSolver, LCMSolver)
        for dtype in (torch.float32, torch.bfloat16)
        if (solver_type, dtype) != (Euler, torch.bfloat16)  # which Refiners cannot make
    ],
    ids=str,
)
def test_half_precision_works_with_every_solver(
    fresh_mini: Mini, solver: Solver, solver_dtype: torch.dtype, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {name: getattr(fresh_mini, name) for name in ("unet", "lda", "clip_text_encoder")}
    model = Mini(**parts, dtype=torch.bfloat16)
    model.solver = solver.to(dtype=solver_dtype)  # the loader leaves it in float32
    style = make_style(model)
    assert style.latents.dtype == torch.bfloat16
    samples = list(generate(model, style, PROMPTS, batch_size=2))
    assert {sample.latents.dtype for sample in samples} == {torch.bfloat16}
    style.save(tmp_path / "style.safetensors")
    loaded = Style.load(tmp_path / "style.safetensors")
    assert torch.equal(loaded.latents, style.latents)
    assert torch.equal(latents(generate(model, loaded, PROMPTS, batch_size=2)), latents(samples))


def test_generate_works_without_guidance(model: Mini) -> None:
    model.classifier_free_guidance = False
    expected = in_one_batch(model, {})
    assert relative_error(latents(generate(model, make_style(model), PROMPTS, batch_size=2)), expected[1:]) < 1e-4


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_set(model: Mini) -> None:
    model.solver = LCMSolver(30)  # adds noise at each step
    style = make_style(model)
    together = latents(generate(model, style, PROMPTS, seeds=[5, 6, 7, 8, 9], batch_size=4, chunk_size=4))
    for index in (0, 4):
        alone = latents(generate(model, style, [PROMPTS[index]], seeds=[5 + index]))
        assert relative_error(alone, together[index : index + 1]) < 1e-4
    reversed_set = latents(generate(model, style, PROMPTS[::-1], seeds=[9, 8, 7, 6, 5]))
    assert relative_error(reversed_set.flip(0), together) < 1e-4


def test_added_noise_is_not_the_first_noise_again(model: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    model.solver = LCMSolver(30)
    added: list[Tensor] = []
    add_noise = Solver.add_noise

    def spy(self: Solver, x: Tensor, noise: Tensor, step: int) -> Tensor:
        added.append(noise)
        return add_noise(self, x, noise, step)

    monkeypatch.setattr(Solver, "add_noise", spy)
    make_style(model)
    assert len(added) == STEPS - 1
    for noise in added:
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), sample_noise(model, 0, SIZE).flatten()]))[0, 1]) < 0.2


def test_noise_in_place_of_seeds(model: Mini) -> None:
    style = make_style(model)
    noise = torch.cat([sample_noise(model, seed, SIZE) for seed in range(1, 1 + len(PROMPTS))])
    expected = latents(generate(model, style, PROMPTS))
    assert relative_error(latents(generate(model, style, PROMPTS, noise=noise)), expected) < 1e-5
    assert relative_error(latents(generate(model, style, PROMPTS, noise=noise.flip(0))), expected) > 1e-2


def test_samples_come_in_order_and_tell_what_they_are(model: Mini) -> None:
    steps: list[int] = []
    samples = list(generate(model, make_style(model), PROMPTS, batch_size=2, chunk_size=4, on_step=steps.append))
    assert [sample.prompt for sample in samples] == PROMPTS
    assert [sample.seed for sample in samples] == [1, 2, 3, 4, 5]
    assert all(sample.image.size == (64, 64) for sample in samples)
    assert steps == [2, 2] * STEPS + [1] * STEPS


def test_latents_are_shown_as_they_come_along(model: Mini) -> None:
    shown: dict[int, list[Tensor]] = {index: [] for index in range(len(PROMPTS))}
    calls: list[list[int]] = []

    def show(indices: Sequence[int], latents: Sequence[Tensor]) -> None:
        calls.append(list(indices))
        for index, own in zip(indices, latents, strict=True):
            shown[index].append(own.clone())

    samples = generate(model, make_style(model), PROMPTS, batch_size=2, chunk_size=4, on_latents=show)
    final = [sample.latents for sample in samples]
    assert calls == [[0, 1], [2, 3]] * STEPS + [[4]] * STEPS
    for index, own in enumerate(final):
        assert torch.equal(shown[index][-1], own)
        distances = [float((each - own).norm()) for each in shown[index]]
        assert distances == sorted(distances, reverse=True)


def test_the_model_is_left_as_it_was(model: Mini) -> None:
    style = make_style(model)
    model.unet.set_context("unet", {"residuals": [0.0] * 10})
    before = [line[:2] for line in snapshot(model.unet)]
    samples = iter(generate(model, style, PROMPTS, chunk_size=2))
    next(samples)
    assert [line[:2] for line in snapshot(model.unet)] == before  # between images too
    samples.close()  # pyright: ignore
    assert [line[:2] for line in snapshot(model.unet)] == before

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, style, PROMPTS, on_step=interrupt)[0]
    assert [line[:2] for line in snapshot(model.unet)] == before
    assert len(list(generate(model, style, PROMPTS[:1]))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a cat", " "]}, "expected prompts with at least one word, got an empty one at index 1"),
        ({"seeds": [1]}, "expected a seed for each of 5 prompts, got 1"),
        ({"noise": torch.zeros(2, 4, 8, 8)}, r"expected noise of shape \(5, 4, 8, 8\), got \(2, 4, 8, 8\)"),
        ({"noise": torch.full((5, 4, 8, 8), torch.nan)}, "expected noise to be finite, got NaN or infinity"),
        ({"seeds": [1, 2, -3, 4, 5]}, r"expected seeds between 0 and 2\*\*63 - 1, got -3"),
        ({"batch_size": 0}, "expected batch_size to be an integer of at least 1, got 0"),
        ({"chunk_size": -1}, "expected chunk_size to be an integer of at least 1, got -1"),
    ],
)
def test_wrong_arguments(model: Mini, arguments: dict[str, Any], message: str) -> None:
    style = make_style(model)
    with pytest.raises(ValueError, match=message):
        generate(model, style, arguments.pop("prompts", PROMPTS), **arguments)  # at once, not at the first image


def test_an_image_that_is_not_there(model: Mini) -> None:
    with pytest.raises(IndexError, match="expected the index of one of 5 images, got 5"):
        generate(model, make_style(model), PROMPTS)[5]


def test_self_attention_guidance_is_refused(fresh_mini: Mini) -> None:
    style = make_style(fresh_mini)
    fresh_mini.set_self_attention_guidance(enable=True)
    with pytest.raises(ValueError, match="expected a model without self-attention guidance"):
        generate(fresh_mini, style, PROMPTS)
    with pytest.raises(ValueError, match="expected a model without self-attention guidance"):
        make_style(fresh_mini)


def test_an_adapted_model_is_refused(model: Mini) -> None:
    style = make_style(model)
    with StyleAlignedAdapter(model.unet, set_size=2):
        for aligned in (True, False):
            with pytest.raises(ValueError, match="expected a target that no StyleAlignedAdapter is injected in"):
                generate(model, style, PROMPTS, aligned=aligned)
        with pytest.raises(ValueError, match="expected a target that no StyleAlignedAdapter is injected in"):
            make_style(model)


def test_an_overflow_is_no_image(model: Mini) -> None:
    style = make_style(model).with_(scale=1e300)
    with pytest.raises(ValueError, match=f"the latents of {PROMPTS[0]!r} overflowed to NaN or infinity"):
        generate(model, style, PROMPTS)[0]


def test_the_reference_goes_through_the_model_once_a_step(model: Mini) -> None:
    style, rows = make_style(model), list[int]()
    hook = model.unet.register_forward_hook(lambda unet, arguments, output: rows.append(len(arguments[0])))
    list(generate(model, style, PROMPTS, batch_size=2, chunk_size=3))
    hook.remove()
    first_chunk, second_chunk = [2, 4, 2], [2, 4]  # two halves of: the reference, then targets at most two at a time
    assert rows == first_chunk * STEPS + second_chunk * STEPS


def test_what_is_compared_has_the_styles_solver(model: Mini) -> None:
    style = make_style(model)
    model.solver = Euler(num_inference_steps=30)
    with pytest.raises(StyleError, match="expected a solver with name=DDIM, as the style's, got Euler"):
        generate(model, style, ["a cat"], aligned=False)


def test_a_bank_device_that_is_none(model: Mini) -> None:
    with pytest.raises(ValueError, match=r"expected bank_device to be auto, cpu, .* got 'toaster'"):
        generate(model, make_style(model), ["a cat"], bank_device="toaster")


def test_prompts_that_change_after_the_call(model: Mini) -> None:
    style, prompts, seeds = make_style(model), ["a cat", "a dog"], [5, 6]
    samples = generate(model, style, prompts, seeds=seeds)
    prompts[0], seeds[1] = "a car", 7
    assert [(sample.prompt, sample.seed) for sample in samples] == [("a cat", 5), ("a dog", 6)]


def test_what_is_recorded_goes_where_it_is_told_to(model: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    banks: list[ReferenceBank] = []
    clear = ReferenceBank.clear

    def spy(self: ReferenceBank) -> None:
        banks.append(self)
        clear(self)

    monkeypatch.setattr(ReferenceBank, "clear", spy)
    style = make_style(model)
    list(generate(model, style, ["a cat"], bank_device="cpu"))
    assert banks[-1].device == torch.device("cpu")
    assert banks[-1].nbytes == 0, "nothing is left of it once images are decoded"
    list(generate(model, style, ["a cat"]))
    assert banks[-1].device is None


def test_a_unet_for_inpainting_is_refused(model: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    style = make_style(model)
    monkeypatch.setattr(model.unet, "in_channels", 9)
    with pytest.raises(ValueError, match="expected a U-Net with 4 input channels, got one with 9"):
        generate(model, style, ["a cat"])
    with pytest.raises(ValueError, match="expected a U-Net with 4 input channels, got one with 9"):
        make_style(model)


def test_the_scale_of_a_lora_counts(fresh_mini: Mini) -> None:
    model = fresh_mini
    linear = model.unet.ensure_find(fl.Linear)
    lora = LinearLora("style", in_features=linear.in_features, out_features=linear.out_features, rank=2)
    LoraAdapter(linear, lora).inject(model.unet.ensure_find_parent(linear))
    style = make_style(model)
    style.check(model)
    lora.scale = 1  # an integer, but the same
    style.check(model)
    for scale in (0.3, 2, 3):
        lora.scale = scale
        with pytest.raises(StyleError, match="expected a model with fingerprint="):
            style.check(model)
    style = make_style(model)
    lora.scale = 2
    with pytest.raises(StyleError, match="expected a model with fingerprint="):
        style.check(model)


def test_no_prompts_make_no_images(model: Mini) -> None:
    assert list(generate(model, make_style(model), [])) == []


@pytest.fixture(scope="module")
def narrow_sd1() -> StableDiffusion_1:
    """Stable Diffusion 1.5, layer for layer, with random weights of a tenth of the width."""
    model = build_narrow_1()
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, Any] = {name: getattr(model, name) for name in ("unet", "lda", "clip_text_encoder")}
    for part in parts.values():
        part.to_empty(device="cpu")
        for parameter in part.parameters():
            scale = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.requires_grad_(False).copy_(scale * torch.randn(parameter.shape, generator=generator))
    return StableDiffusion_1(**parts)


@pytest.mark.parametrize("guidance", [True, False])
def test_stable_diffusion_1_of_a_narrow_width(
    narrow_sd1: StableDiffusion_1, model: Mini, guidance: bool, tmp_path: Path
) -> None:
    narrow_sd1.classifier_free_guidance = guidance
    expected = in_one_batch(narrow_sd1, {})
    make_style(narrow_sd1).save(tmp_path / "style.safetensors")
    style = Style.load(tmp_path / "style.safetensors")
    assert style.text.pooled_text_embedding is None
    samples = list(generate(narrow_sd1, style, PROMPTS, batch_size=3))
    assert relative_error(latents(samples), expected[1:]) < 1e-4
    assert relative_error(latents(generate(narrow_sd1, style, PROMPTS, aligned=False)), expected[1:]) > 1e-3
    with pytest.raises(StyleError, match="expected a model with class=StableDiffusion_1, as the style's, got Mini"):
        generate(model, style, PROMPTS, force=True)


@pytest.mark.slow
@pytest.mark.full_size
def test_stable_diffusion_1() -> None:
    from refiners.foundationals.clip.text_encoder import CLIPTextEncoderL
    from refiners.foundationals.latent_diffusion.auto_encoder import LatentDiffusionAutoencoder
    from refiners.foundationals.latent_diffusion.stable_diffusion_1.unet import SD1UNet

    torch.manual_seed(0)
    model = StableDiffusion_1(
        unet=SD1UNet(in_channels=4, dtype=torch.float32),
        lda=LatentDiffusionAutoencoder(),  # pyright: ignore
        clip_text_encoder=CLIPTextEncoderL(),
    )
    expected = in_one_batch(model, {})
    assert relative_error(latents(generate(model, make_style(model), PROMPTS, batch_size=3)), expected[1:]) < 1e-4


def test_targets_of_another_size_than_their_reference(model: Mini) -> None:
    style = Style.from_prompt(model, "a fox, ink", num_inference_steps=1, size=(64, 64))
    samples = generate(model, style, PROMPTS, size=(64, 128))
    assert {sample.image.size for sample in samples} == {(128, 64)}
    assert samples[0].settings["size"] == "128x64"
    assert samples[0].settings["reference_size"] == "64x64"
    unaligned = generate(model, style, PROMPTS, size=(64, 128), aligned=False)
    assert relative_error(latents(samples), latents(unaligned)) > 1e-3
    plain = generate(model, style.with_(strength=0.0), PROMPTS, size=(64, 128))
    assert relative_error(latents(plain), latents(unaligned)) < 1e-5
    with pytest.raises(ValueError, match="expected a size of multiples of 8, at least 64"):
        generate(model, style, PROMPTS, size=(64, 100))
    with pytest.raises(ValueError, match=r"expected noise of shape \(1, 4, 8, 16\), got \(1, 4, 8, 8\)"):
        generate(model, style, PROMPTS[:1], size=(64, 128), noise=torch.zeros(1, 4, 8, 8))
