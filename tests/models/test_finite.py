"""Numbers that are not finite are an error that names the part, and never a black picture."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl

from style_aligned import Style, generate
from style_aligned.models.checkpoints import load_model
from style_aligned.models.finite import NonFiniteError, find_non_finite
from style_aligned.models.mini import Mini
from style_aligned.models.solvers import make_solver, warn_about_first_timestep
from style_aligned.models.text import embed

WEIGHTS = {
    "clip_text_encoder": ("text encoder", r"the text embeddings of 'a fox'"),
    "unet": ("U-Net", r"the latents of 'a fox'"),
    "lda": ("autoencoder", r"the image of \W?a cat"),
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_weight_at_fault_is_named(part: str, fresh_mini: Mini) -> None:
    name, what = WEIGHTS[part]
    chain: fl.Chain = getattr(fresh_mini, part)
    key, weight = [(key, weight) for key, weight in chain.named_parameters() if weight.ndim > 1][-1]
    weight.data.view(-1)[-1] = torch.nan
    assert find_non_finite(chain) == key
    message = rf"{what}.* hold NaN or infinity: the {name} has a weight that does, '{key}'; expected a checkpoint"

    def draw() -> None:
        style = Style.from_prompt(fresh_mini, "a fox", num_inference_steps=1, size=(64, 64))
        list(generate(fresh_mini, style, ["a cat"]))

    with pytest.raises(NonFiniteError, match=message):
        draw()


def test_what_overflows_is_named(fresh_mini: Mini) -> None:
    fresh_mini.lda.layer("Decoder", fl.Chain).append(fl.Multiply(float("inf")))
    style = Style.from_prompt(fresh_mini, "a fox", num_inference_steps=1, size=(64, 64))
    with pytest.raises(
        NonFiniteError, match=r"the image of 'a fox' overflowed to NaN or infinity in the autoencoder \(fl"
    ):
        style.image(fresh_mini)


def test_where_the_first_step_starts(model: Mini) -> None:
    messages: dict[int, str] = {}
    for steps in (1, 2, 3, 4, 5, 8, 15, 30):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_about_first_timestep(make_solver(model, steps))
        messages |= dict.fromkeys([steps] * len(caught), " ".join(str(warning.message) for warning in caught))
    assert list(messages) == [1, 2, 3, 4, 5, 8]
    assert messages[2].startswith(
        "2 steps of DDIM start at timestep 501 of 999, where 27% of a picture is there already"
    )
    with pytest.warns(UserWarning, match="1 step of DDIM start at timestep 1 of 999, where 100% of a picture"):
        Style.from_prompt(model, "a fox", num_inference_steps=1, size=(64, 64))


@torch.no_grad()
def test_an_empty_negative_prompt_is_what_the_checkpoint_says(
    folders: dict[str, Path], single_files: dict[str, Path], pipelines: dict[str, Any]
) -> None:
    for path in (folders["xl"], single_files["xl"]):
        model = load_model(path)
        assert not any(tensor[0].any() for tensor in embed(model, "a fox", "").tensors.values())
        expected = pipelines["xl"].encode_prompt("a fox", device="cpu")
        for tensor, conditional, negative in zip(
            embed(model, "a fox", "").tensors.values(), expected[::2], expected[1::2], strict=True
        ):
            assert torch.allclose(tensor, torch.cat([negative, conditional]), atol=1e-5)
        space = embed(model, "a fox", " ")
        plain = model.compute_clip_text_embedding("a fox", "")
        for tensor, refiners in zip(space.tensors.values(), plain, strict=True):
            assert tensor[0].any()
            assert torch.allclose(tensor, refiners, atol=1e-5)
    one = load_model(folders["1"])
    plain = one.compute_clip_text_embedding("a fox", "")
    assert isinstance(plain, torch.Tensor)
    assert torch.allclose(embed(one, "a fox", "").clip_text_embedding, plain, atol=1e-5)
