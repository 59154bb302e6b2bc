"""A style whose steps are done along with the images of its set, or once it is completed or saved."""

from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler, LCMSolver, Solver

from style_aligned.models.mini import Mini
from style_aligned.sampling.generation import generate
from style_aligned.styles.file import StyleError
from style_aligned.styles.style import Style

STEPS = 3
PROMPTS = ["a dog, neon sign", "a rocket", "a cat, ink"]


def settings(**options: Any) -> dict[str, Any]:
    return {
        "prompt": "a fox, neon sign",
        "negative_prompt": "ink",
        "seed": 5,
        "num_inference_steps": STEPS,
        "condition_scale": 3.0,
        "size": (64, 64),
        "options": options,
    }


def assert_equal(style: Style, expected: Style) -> None:
    assert torch.equal(style.latents, expected.latents)
    assert style.preview.tobytes() == expected.preview.tobytes()
    for name, tensor in style.text.tensors.items():
        assert torch.equal(tensor, expected.text.tensors[name])
    for name in (*settings(), "solver", "model"):
        assert getattr(style, name) == getattr(expected, name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"share_group_norm": True, "scale": 0.8}, marks=pytest.mark.slow),
        pytest.param({"only_self_level": 0.5, "adain_values": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("solver", [DDIM(30), Euler(30), DPMSolver(30), LCMSolver(30)], ids=type)
def test_all_is_the_same_to_the_last_bit(model: Mini, solver: Solver, options: dict[str, Any]) -> None:
    model.solver = solver
    expected_style = Style.from_prompt(model, **settings(**options)).complete()
    expected = list(generate(model, expected_style, PROMPTS, batch_size=2, chunk_size=2))

    reference = Style.from_prompt(model, **settings(**options))
    samples = list(generate(model, reference, PROMPTS, batch_size=2, chunk_size=2))
    assert_equal(reference.complete(model), expected_style)
    for sample, other in zip(samples, expected, strict=True):
        assert torch.equal(sample.latents, other.latents)
        assert sample.image.tobytes() == other.image.tobytes()
        assert (sample.prompt, sample.seed) == (other.prompt, other.seed)


def test_without_guidance_too(model: Mini) -> None:
    model.classifier_free_guidance = False
    expected = Style.from_prompt(model, **settings()).complete()
    reference = Style.from_prompt(model, **settings())
    list(generate(model, reference, PROMPTS))
    assert_equal(reference.complete(model), expected)


def test_it_goes_through_the_model_once_a_step(model: Mini) -> None:
    reference, rows, steps = Style.from_prompt(model, **settings()), list[int](), list[int]()
    assert reference.steps_done == 0
    hook = model.unet.register_forward_hook(lambda unet, arguments, output: rows.append(len(arguments[0])))
    list(generate(model, reference, PROMPTS, batch_size=2, chunk_size=2, on_step=steps.append))
    reference.complete(on_step=steps.append)
    hook.remove()
    assert reference.steps_done == STEPS
    assert rows == [2, 4] * STEPS + [2, 2] * STEPS  # two halves of the reference, then of the targets of each chunk
    assert steps == [1, 2] * STEPS + [1] * STEPS  # its own are counted where they are done


def test_what_is_left_to_do_is_done_for_the_style(model: Mini) -> None:
    steps: list[int] = []
    style = Style.from_prompt(model, **settings()).complete(on_step=steps.append)
    assert steps == [1] * STEPS
    expected = Style.from_prompt(model, **settings()).complete()
    assert_equal(style, expected)

    def interrupt(_: int) -> None:
        steps.append(0)
        if len(steps) == 6:  # the reference has done two steps, the target one
            raise KeyboardInterrupt

    reference = Style.from_prompt(model, **settings())
    with pytest.raises(KeyboardInterrupt):
        generate(model, reference, PROMPTS[:1], on_step=interrupt)[0]
    assert reference.steps_done == 2
    (sample,) = generate(model, reference, PROMPTS[:1])
    (expected_sample,) = generate(model, expected, PROMPTS[:1])
    assert torch.equal(sample.latents, expected_sample.latents)
    assert_equal(reference.complete(model), expected)


def test_images_to_compare_with_leave_it_as_it_is(model: Mini) -> None:
    reference = Style.from_prompt(model, **settings())
    samples = list(generate(model, reference, PROMPTS, aligned=False))
    assert reference.steps_done == 0
    expected = generate(model, reference.complete(model), PROMPTS, aligned=False)
    for sample, other in zip(samples, expected, strict=True):
        assert torch.equal(sample.latents, other.latents)


def test_an_interruption_in_a_step_changes_nothing(model: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    model.solver = DPMSolver(30)  # one with a memory
    expected = Style.from_prompt(model, **settings()).complete()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    started = Style.from_prompt(model, **settings())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        started.complete(on_step=lambda _: patch.setattr("style_aligned.styles.trajectory.check_latents", interrupt))
    assert started.steps_done == 1
    assert_equal(started.complete(model), expected)


def test_another_model_or_solver_cannot_go_on(model: Mini) -> None:
    reference = Style.from_prompt(model, **settings())
    weight = next(model.unet.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
        try:
            with pytest.raises(StyleError, match=r"expected a model with fingerprint=.*, as the style's, got"):
                generate(model, reference, PROMPTS)
            with pytest.raises(StyleError, match="expected a model with fingerprint="):
                generate(model, reference, PROMPTS, force=True)  # its steps would be of two models
            with pytest.raises(StyleError, match="expected a model with fingerprint="):
                reference.complete(model)
        finally:
            weight.copy_(before)
    model.solver = Euler(num_inference_steps=30)
    with pytest.raises(StyleError, match="expected a solver with name=DDIM, as the style's, got Euler"):
        generate(model, reference, PROMPTS)
    with pytest.raises(StyleError, match="expected a solver with name=DDIM, as the style's, got Euler"):
        reference.complete(model)
    assert reference.steps_done == 0


def test_another_device_cannot_go_on(model: Mini) -> None:
    reference = Style.from_prompt(model, **settings())
    reference.trajectory.latents[0] = reference.trajectory.latents[0].to(device="meta")
    with pytest.raises(StyleError, match="expected a model on meta, where the style was started, got one on cpu"):
        generate(model, reference, PROMPTS)


def test_noise_that_changes_after_the_call(model: Mini) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = Style.from_prompt(model, **settings(), noise=noise).complete()
    reference = Style.from_prompt(model, **settings(), noise=noise)
    with torch.no_grad():
        noise.zero_()
    style = reference.complete(model)
    assert_equal(style, expected)
    assert not style.latents.requires_grad


def test_an_overflow_is_told_of_the_reference(model: Mini) -> None:
    reference = Style.from_prompt(model, **settings(), noise=torch.full((1, 4, 8, 8), 1e38))
    with pytest.raises(ValueError, match="the latents of 'a fox, neon sign' overflowed to NaN or infinity"):
        generate(model, reference, PROMPTS)[0]
    assert reference.steps_done == 0
