"""Controls of what is shared, through styles, their files, and `generate`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from style_aligned import Style, StyleError, generate
from style_aligned.models.mini import Mini

PROMPTS = ["a dog", "a cat, ink"]


def make(model: Mini, prompt: str = "a fox, neon sign", **settings: Any) -> Style:
    settings = {"num_inference_steps": 4, "condition_scale": 3.0, "size": (64, 64), **settings}
    return Style.from_prompt(model, prompt, **settings)


def draw(model: Mini, style: Style, **arguments: Any) -> Tensor:
    return torch.cat([sample.latents for sample in generate(model, style, PROMPTS, **arguments)])


@pytest.mark.parametrize(
    "options", [{"strength": 0}, {"steps": (0.8, 1.0)}, {"layers": {"up": 0.0}}, {"layers": ["down"], "strength": 0.0}]
)
def test_what_shares_nothing_is_unaligned(model: Mini, options: dict[str, Any]) -> None:
    style = make(model, **options).complete()
    passes: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    aligned = draw(model, style)
    handle.remove()
    assert torch.equal(aligned, draw(model, style, aligned=False))
    assert passes == [4] * 4, "without a pass for the reference"


def test_windows_of_steps(model: Mini) -> None:
    whole = make(model).complete()
    assert torch.equal(draw(model, whole.with_(steps=[0.0, 1.0])), draw(model, whole))
    passes: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    part = draw(model, whole.with_(steps=(0.5, 1)))
    handle.remove()
    assert passes == [4, 4, 2, 4, 2, 4]
    assert not torch.allclose(part, draw(model, whole), atol=1e-3)
    unfinished = make(model, steps=(0.5, 1))  # its reference does its own steps all the same
    assert torch.equal(draw(model, unfinished), part)
    assert unfinished.is_complete


CONTROLS: list[dict[str, Any]] = [
    {"layers": ["style"]},
    {"layers": {"up.0": 0.5, "middle": 1.5}, "share_group_norm": True},
    {"halves": "positive"},
    {"layers": ["up"], "query_guidance": 0.5},
    {"strength": 1.7, "steps": (0.25, 0.75)},
    {"reference_mask": torch.eye(8)},
]


@pytest.mark.parametrize("options", CONTROLS, ids=lambda options: ",".join(options))
def test_controls_change_images_and_survive_a_file(model: Mini, options: dict[str, Any], tmp_path: Path) -> None:
    style = make(model, **options)
    latents = draw(model, style)
    assert not torch.allclose(latents, draw(model, make(model)), atol=1e-3)
    style.save(tmp_path / "style.safetensors")
    loaded = Style.load(tmp_path / "style.safetensors")
    assert torch.equal(draw(model, loaded), latents)
    # images do not depend on the size of batches
    torch.testing.assert_close(draw(model, loaded, batch_size=1), latents, rtol=1e-3, atol=1e-3)


def test_a_mask_from_a_picture(model: Mini, tmp_path: Path) -> None:
    picture = Image.new("L", (64, 64), 0)
    picture.paste(255, (0, 0, 32, 64))
    picture.save(tmp_path / "mask.png")
    cutout = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    cutout.paste((9, 9, 9, 255), (0, 0, 32, 64))
    expected = torch.zeros(8, 8)
    expected[:, :4] = 1
    for mask in (picture, tmp_path / "mask.png", cutout, expected):
        found = make(model, reference_mask=mask).reference_mask
        assert found is not None
        torch.testing.assert_close(found, expected)
    with pytest.warns(UserWarning, match="the reference_mask of 32x32 was resized to the reference's 64x64"):
        resized = make(model, reference_mask=picture.resize((32, 32), Image.Resampling.NEAREST)).reference_mask
    assert resized is not None
    torch.testing.assert_close(resized, expected)
    style = make(model).complete()
    assert torch.equal(draw(model, style.with_(reference_mask=Image.new("L", (64, 64), 255))), draw(model, style))
    masked = style.with_(reference_mask=expected)
    assert masked.describe()["reference_mask"] != style.with_(reference_mask=torch.eye(8)).describe()["reference_mask"]
    assert torch.equal(draw(model, masked.with_(reference_mask=None)), draw(model, style))
    with pytest.raises(ValueError, match="got zeros alone"):
        make(model, reference_mask=Image.new("L", (64, 64), 0))


class TestBlend:
    def test_the_neutral_blends(self, model: Mini) -> None:
        one, two = make(model).complete(), make(model, "a fox, ink", seed=3)
        alone = draw(model, one)
        assert torch.equal(draw(model, Style.blend([(one, 1), (two, 0)])), alone)
        assert torch.equal(draw(model, Style.blend([(one, 0.4)])), alone)
        equal = Style.blend([(one, 0.5), (make(model), 0.5)])
        torch.testing.assert_close(draw(model, equal), alone, rtol=1e-3, atol=1e-3)

    def test_styles_of_other_sizes(self, model: Mini) -> None:
        one, two = make(model), make(model, "a fox, ink", seed=3, size=(64, 128))
        blend = Style.blend([(one, 0.7), (two, 0.3)])
        assert not blend.is_complete
        latents = draw(model, blend)
        assert one.is_complete
        assert two.is_complete
        for style in (one, two):
            other = torch.cat(
                [sample.latents for sample in generate(model, style, PROMPTS, size=(64, 64), seeds=(1, 2))]
            )
            assert not torch.allclose(latents, other, atol=1e-3)
        nested = Style.blend([(Style.blend([(one, 7), (two, 3)]), 1.0)])
        assert torch.equal(draw(model, nested), latents)
        described = blend.describe()["blend"]
        assert [part["weight"] for part in described] == [0.7, 0.3]
        assert blend.digest != Style.blend([(one, 0.6), (two, 0.4)]).digest

    def test_a_blend_in_a_file(self, model: Mini, tmp_path: Path) -> None:
        one, two = make(model), make(model, "a fox, ink", seed=3, size=(64, 128), reference_mask=torch.eye(8, 16))
        blend = Style.blend([(one, 0.7), (two, 0.3)]).with_(strength=0.5)
        latents, path = draw(model, blend), tmp_path / "blend.safetensors"
        blend.save(path)
        loaded = Style.load(path)
        assert loaded.digest == blend.digest
        assert loaded.describe() == blend.describe()
        assert torch.equal(draw(model, loaded), latents)
        with safe_open(path, framework="pt") as file:
            tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        tensors["1.latents"][0, 0, 0, 0] += 1
        save_file(tensors, path, metadata=said)
        with pytest.raises(StyleError, match="one that was altered"):
            Style.load(path)
        header = json.loads(said["style_aligned"])
        header["blend"][0]["weight"] = -1
        save_file(tensors, path, metadata={"style_aligned": json.dumps(header)})
        with pytest.raises(StyleError, match="styles with weights of more than 0"):
            Style.load(path)

    def test_what_cannot_be_blended(self, model: Mini) -> None:
        one = make(model)
        with pytest.raises(StyleError, match="the same num_inference_steps to blend, got 4 and 3"):
            Style.blend([(one, 1), (make(model, num_inference_steps=3), 1)])
        with pytest.raises(StyleError, match=r"the same condition_scale to blend, got 3\.0 and 2\.0"):
            Style.blend([(one, 1), (make(model, condition_scale=2.0), 1)])
        for weights in ((0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0)):
            with pytest.raises(ValueError, match="expected weights of at least 0 that do not sum up to nothing"):
                Style.blend([(one, weights[0]), (make(model, seed=2), weights[1])])
        guided = make(model, layers=["up"], query_guidance=1.0)
        with pytest.raises(ValueError, match="expected one style beside query_guidance, got several"):
            Style.blend([(guided, 1), (one, 1)])


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"halves": "positive", "condition_scale": 0}, {}, "expected guidance beside halves=positive"),
        (
            {"layers": ["up"], "query_guidance": 1, "condition_scale": 1},
            {},
            "expected guidance beside query_guidance=1",
        ),
        ({"query_guidance": 1}, {}, "expected layers beside query_guidance"),
        ({"layers": ["up"], "query_guidance": 1}, {"size": (64, 128)}, "the reference's size beside query_guidance"),
        ({"layers": ["up.9"]}, {}, r"expected layers of this model, such as up.*'up\.9'"),
        ({"steps": 4}, {}, "expected steps to be two numbers"),
    ],
    ids=str,
)
def test_what_makes_no_sense(model: Mini, settings: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        draw(model, make(model, **settings), **arguments)
    assert re.search(message, str(caught.value))
