"""Images that start from a picture: how far they go, what is kept, and what they are when nothing is shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refiners.foundationals.latent_diffusion.solvers import DDIM, DPMSolver, Euler, Solver
from torch import Tensor

from style_aligned import Style, generate
from style_aligned.models.mini import Mini
from style_aligned.models.solvers import sample_noise
from style_aligned.styles.inversion import encode_picture
from tests.oracle import relative_error

PROMPTS = ["a cat, ink", "a dog, ink"]
SIZE = (64, 64)


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((64, 64))


def make_style(model: Mini, steps: int = 4) -> Style:
    return Style.from_prompt(model, "a fox, ink", num_inference_steps=steps, size=SIZE)


def draw(model: Mini, style: Style, **arguments: Any) -> Tensor:
    return torch.cat([sample.latents for sample in generate(model, style, PROMPTS, **arguments)])


@torch.no_grad()
@pytest.mark.parametrize("solver", [DDIM, DPMSolver, Euler])
def test_an_unaligned_image_is_that_of_refiners_own_loop(
    model: Mini, solver: type[Solver], picture: Image.Image
) -> None:
    model.solver = solver(num_inference_steps=4)
    style = make_style(model)
    ours = draw(model, style, init=picture, init_strength=0.5, aligned=False)[:1]
    own = solver(num_inference_steps=4, first_inference_step=2)
    latents, noise = encode_picture(model, picture), sample_noise(model, 1, SIZE)
    # Euler's own add_noise fails in Refiners
    x = latents + noise * own.sigmas[2] if isinstance(own, Euler) else own.add_noise(latents, noise, step=2)
    text, pooled = model.compute_clip_text_embedding([PROMPTS[0]], [""])
    time_ids = torch.tensor([[64, 64, 0, 0, 64, 64]]).repeat(2, 1)
    model.solver = own
    for step in own.inference_steps:
        x = model(
            x, step=step, clip_text_embedding=text, pooled_text_embedding=pooled, time_ids=time_ids,
            condition_scale=style.condition_scale,
        )  # fmt: skip
    assert relative_error(ours, x) < 1e-5


def test_steps_before_the_first_are_left_out(model: Mini, picture: Image.Image) -> None:
    style = make_style(model).complete()
    rows: list[int] = []

    def count(_: Any, arguments: Any, output: Any) -> None:
        rows.append(len(arguments[0]))

    handle = model.unet.register_forward_hook(count)
    steps: list[int] = []
    draw(model, style, init=[picture, None], init_strength=0.25, on_step=steps.append)
    handle.remove()
    # the reference and one image three times, then the reference and both
    assert rows == [2, 2] * 3 + [2, 4]
    assert sum(steps) == 4 + 1


def test_images_do_not_depend_on_one_another(model: Mini, picture: Image.Image) -> None:
    style = make_style(model)
    plain = draw(model, style)
    mixed = draw(model, style, init=[picture, None], init_strength=0.5)
    both = draw(model, style, init=picture, init_strength=0.5, batch_size=1)
    assert relative_error(mixed[1:], plain[1:]) < 1e-5
    assert relative_error(mixed[:1], both[:1]) < 1e-5
    for one, other in ((mixed[:1], plain[:1]), (both[1:], plain[1:])):
        assert relative_error(one, other) > 0.01
    unaligned = draw(model, style, init=picture, init_strength=0.5, aligned=False)
    assert relative_error(unaligned, both) > 1e-3


def test_less_strength_stays_closer(model: Mini, picture: Image.Image) -> None:
    style = make_style(model)
    latents = encode_picture(model, picture)
    errors = [
        relative_error(draw(model, style, init=picture, init_strength=strength)[:1], latents)
        for strength in (0.25, 0.5, 1)
    ]
    assert errors == sorted(errors)


def test_what_a_mask_leaves_out_is_kept(model: Mini, picture: Image.Image) -> None:
    style = make_style(model)
    mask = Image.new("L", SIZE)
    mask.paste(255, (0, 0, 32, 64))
    latents = encode_picture(model, picture)
    drawn = draw(model, style, init=picture, init_strength=0.5, init_mask=[mask, None])
    torch.testing.assert_close(drawn[:1, ..., 4:], latents[..., 4:])
    assert relative_error(drawn[:1, ..., :4], latents[..., :4]) > 0.05
    everywhere = draw(model, style, init=picture, init_strength=0.5)
    assert relative_error(drawn[1:], everywhere[1:]) < 1e-5
    white = draw(model, style, init=picture, init_strength=0.5, init_mask=Image.new("L", SIZE, 255))
    torch.testing.assert_close(white, everywhere)


def test_a_sample_says_what_it_started_from(model: Mini, picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "sketch.png")
    mask = Image.new("L", SIZE, 255)
    first, second = generate(
        model, make_style(model), PROMPTS, init=[tmp_path / "sketch.png", None], init_mask=[mask, None]
    )
    assert set(first.settings["init"]) == {"picture", "strength", "mask"}
    assert first.settings["init"]["strength"] == 0.6
    assert "init" not in second.settings


def test_what_cannot_be_started_from(model: Mini, picture: Image.Image) -> None:
    style = make_style(model)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"init": [picture]}, "expected one init, or one for each of 2 prompts, got 1"),
        ({"init": picture, "init_strength": 0}, "expected init_strength above 0 and up to 1, got 0"),
        (
            {"init": picture, "init_strength": [0.5, float("nan")]},
            "expected init_strength above 0 and up to 1, got nan",
        ),
        ({"init_mask": picture}, "expected an init beside init_mask"),
        ({"init": picture, "init_mask": Image.new("L", SIZE)}, "expected init_mask to leave something of the image"),
    ]
    for arguments, error in cases:
        with pytest.raises(ValueError, match=error):
            generate(model, style, PROMPTS, **arguments)
    with pytest.raises(FileNotFoundError):
        generate(model, style, PROMPTS, init="no.png")
    with pytest.warns(UserWarning, match=r"cropped to its middle \(50% of it\)"):
        generate(model, style, PROMPTS, init=Image.new("RGB", (128, 64)))
