"""ControlLoras from files, against a ControlNet of diffusers whose weights are added up by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import control_lora as refiners_control_lora
from safetensors.torch import save_file
from torch import Tensor

from style_aligned import Style, generate
from style_aligned.models.checkpoints import CheckpointError, load_model
from style_aligned.models.denoising import time_ids
from style_aligned.models.extras import Extras, load_control_model
from style_aligned.models.extras.control_keys import control_modules
from tests.chains import snapshot
from tests.models.checkpoints.narrow import NARROW, UNET_XL_WIDTHS
from tests.models.checkpoints.pipelines import quiet, randomise
from tests.models.checkpoints.test_parts import error, random
from tests.models.extras.test_control_models import t2i_adapter

with quiet():
    from diffusers.models.controlnets.controlnet import ControlNetModel

pytestmark = pytest.mark.parametrize("kind", ["xl"], indirect=True)
RANK = 4


def tree_of(model: Any) -> list[Any]:
    """Every module: its path, its identity and that of its parent. Contexts keep what the last pass has left."""
    return [(path, module, parent) for path, module, _, parent in snapshot(model.unet)]


OWN = ("controlnet_", "norm", "bias")


@pytest.fixture(autouse=True)
def narrow_control_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refiners' own layers of a ControlLora, as narrow as the U-Nets of the tests, and of the same names."""

    class ZeroConvolution(refiners_control_lora.ZeroConvolution):
        def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
            super().__init__(UNET_XL_WIDTHS[in_channels], UNET_XL_WIDTHS[out_channels], **options)

    class ConditionEncoder(refiners_control_lora.ConditionEncoder):
        def __init__(self, out_channels: int, **options: Any) -> None:
            super().__init__(out_channels=UNET_XL_WIDTHS[out_channels], **options)

    monkeypatch.setattr(refiners_control_lora, "ZeroConvolution", ZeroConvolution)
    monkeypatch.setattr(refiners_control_lora, "ConditionEncoder", ConditionEncoder)


def random_control_lora(pipeline: Any, seed: int = 3) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file in Stability's names, and the ControlNet that they make of a U-Net, in float64.

    As in the published files, there is a LoRA for each weight, and norms and biases are there as a whole.
    """
    with quiet():
        net = randomise(ControlNetModel.from_unet(pipeline.unet), seed=seed).eval()
    base = pipeline.unet.state_dict()
    names = {theirs: original for _, theirs, original in control_modules(NARROW["xl"], "ZeroConvolution")}
    state: dict[str, Tensor] = {"lora_controlnet": torch.zeros(0)}
    weights: dict[str, Tensor] = {}
    for number, (key, values) in enumerate(net.state_dict().items()):
        layer, _, parameter = key.rpartition(".")
        name = names[layer].removeprefix("control_model.")
        if any(part in key for part in OWN):
            state[f"{name}.{parameter}"] = weights[key] = values
            continue
        rows, columns, *kernel = values.shape
        down = random(RANK, columns, *kernel, seed=1000 + number) / values[0].numel() ** 0.5
        up = random(rows, RANK, *[1] * len(kernel), seed=5000 + number)
        state |= {f"{name}.down": down, f"{name}.up": up}
        change = up.double().flatten(start_dim=1) @ down.double().flatten(start_dim=1)
        weights[key] = base[key].double() + change.reshape(values.shape)
    net.double().load_state_dict(weights)
    return state, net


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


@torch.no_grad()
def test_a_control_lora_is_the_controlnet_that_it_makes(kind: str, folder: Path, pipeline: Any, tmp_path: Path) -> None:
    """In float64, as rounding in float32 depends on the number of threads."""
    state, net = random_control_lora(pipeline)
    path = save(state, tmp_path / "control-lora-canny.safetensors")
    model: Any = load_model(folder).to(dtype=torch.float64)
    x, text = random(2, 4, 8, 16).double(), random(2, 77, 96, seed=8).double()
    picture = random(2, 3, 64, 128, seed=9).sigmoid().double()
    pooled, ids, timestep = random(2, 64, seed=10).double(), time_ids((64, 128)), torch.tensor([481])

    def predict() -> Tensor:
        model.set_unet_context(timestep=timestep, clip_text_embedding=text, pooled_text_embedding=pooled, time_ids=ids)
        return model.unet(x)

    plain, tree = predict(), tree_of(model)
    added = {"text_embeds": pooled, "time_ids": ids.double()}
    pipeline.unet.double()
    try:
        down, middle = net(
            x, timestep, encoder_hidden_states=text, controlnet_cond=picture, conditioning_scale=0.7,
            added_cond_kwargs=added, return_dict=False,
        )  # fmt: skip
        expected = pipeline.unet(
            x, timestep, encoder_hidden_states=text, down_block_additional_residuals=down,
            mid_block_additional_residual=middle, added_cond_kwargs=added,
        ).sample  # fmt: skip
    finally:
        pipeline.unet.float()
    adapter: Any = load_control_model(model, path, scale=0.7)
    assert torch.equal(predict(), plain)
    adapter.inject()
    adapter.set_condition(picture)
    assert error(plain, expected) > 0.01
    assert error(predict(), expected) < 1e-9
    adapter.eject()
    assert tree_of(model) == tree
    assert torch.equal(predict(), plain)


def test_each_image_follows_a_picture_of_its_own(kind: str, folder: Path, pipeline: Any, tmp_path: Path) -> None:
    """Beside a T2I-Adapter."""
    state, _ = random_control_lora(pipeline)
    path = save(state, tmp_path / "canny.safetensors")
    t2i = save(t2i_adapter(kind).state_dict(), tmp_path / "sketch.safetensors")
    model = load_model(folder)
    prompts = ["a cat, ink", "a dog, ink"]
    pictures = [[Image.new("L", (64, 64), shade) for shade in shades] for shades in ((0, 200), (255, 50))]

    def draw(prompts: list[str], **arguments: Any) -> Tensor:
        style = Style.from_prompt(model, "a fox, ink", num_inference_steps=2, size=(64, 64))
        return torch.cat([sample.latents for sample in generate(model, style, prompts, **arguments)])

    plain, tree = draw(prompts), tree_of(model)
    with Extras(model, control=[path, t2i], control_scale=0.3):
        together = draw(prompts, control=pictures)
        for index in range(2):
            alone = draw(prompts[index:][:1], control=pictures[index:][:1], seeds=[index + 1])
            assert error(alone, together[index:][:1]) < 1e-5
        assert error(draw(prompts, control=pictures[::-1]), together) > 1e-2
        assert error(plain, together) > 1e-2
    assert tree_of(model) == tree
    assert torch.equal(draw(prompts), plain)


def test_what_does_not_fit(kind: str, folder: Path, pipeline: Any, tmp_path: Path) -> None:
    model = load_model(folder)
    state, _ = random_control_lora(pipeline)

    def refused(changes: dict[str, Tensor | None], message: str) -> None:
        changed = {key: tensor for key, tensor in {**state, **changes}.items() if tensor is not None}
        with pytest.raises(CheckpointError, match=message):
            load_control_model(model, save(changed, tmp_path / "x.safetensors"))

    tree = tree_of(model)
    refused(
        {"output_blocks.0.0.in_layers.0.bias": torch.zeros(1)}, r"'output_blocks\.0.*' is no tensor of a ControlLora"
    )
    refused({"time_embed.0.up": None}, r"'time_embed\.0\.down' is one of two, the other is missing")
    refused({"zero_convs.3.0.bias": None}, r"a weight or bias of 'zero_convs\.3\.0' is missing; expected a ControlLora")
    refused({"time_embed.0.bias": torch.zeros(7)}, r"'time_embed\.0\.bias' of shape \(7,\) .*, \(128,\) is expected")
    refused({"time_embed.0.up": torch.zeros(7, RANK)}, r"do not fit a weight of shape \(128, 32\) of a ControlLora for")
    assert tree_of(model) == tree
