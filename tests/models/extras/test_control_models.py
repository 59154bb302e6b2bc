"""ControlNets and T2I-Adapters from files, against diffusers with the same random weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from refiners.fluxion import layers as fl
from refiners.fluxion.utils import image_to_tensor
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import controlnet as refiners_controlnet
from safetensors.torch import save_file
from torch import Tensor

from style_aligned import Style, StyleAlignedAdapter, StyleError, generate
from style_aligned.models.checkpoints import CheckpointError, load_model
from style_aligned.models.contexts import complete_rows
from style_aligned.models.denoising import predict_noise, time_ids
from style_aligned.models.extras import Extras, load_control_model
from style_aligned.models.mini import Mini
from style_aligned.models.solvers import make_solver, sample_noise
from style_aligned.models.text import embed, stack
from style_aligned.sampling.control import read_control
from tests.models.checkpoints.narrow import UNET_1_WIDTHS, narrow as make_narrow
from tests.models.checkpoints.pipelines import quiet, randomise
from tests.models.checkpoints.test_parts import error, random

with quiet():
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from diffusers.models.adapter import T2IAdapter
    from diffusers.models.controlnets.controlnet import ControlNetModel

CHANNELS = {"xl": [32, 64, 128, 128], "1": [32, 64, 128, 128]}


@pytest.fixture
def narrow_controlnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refiners' ControlNet, as narrow as the U-Nets of the tests."""

    class NarrowControlnet(refiners_controlnet.Controlnet):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "device": "meta"})
            make_narrow(self, UNET_1_WIDTHS)
            self.to_empty(device="cpu")

    monkeypatch.setattr(refiners_controlnet, "Controlnet", NarrowControlnet)


@pytest.fixture
def controlnet(pipelines: dict[str, Any]) -> Any:
    with quiet():
        return randomise(ControlNetModel.from_unet(pipelines["1"].unet), seed=3).eval()


def t2i_adapter(kind: str, colors: int = 3) -> Any:
    with quiet():
        return randomise(
            T2IAdapter(
                in_channels=colors, channels=CHANNELS[kind], num_res_blocks=2,
                downscale_factor=16 if kind == "xl" else 8,
                adapter_type="full_adapter_xl" if kind == "xl" else "full_adapter",
            ),
            seed=4,
        ).eval()  # fmt: skip


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def in_the_names_of_its_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ControlNet of diffusers, by what diffusers' own conversion makes of each name."""
    numbers = {f"controlnet_down_blocks.{n}": f"zero_convs.{n}.0" for n in range(12)}
    numbers |= {f"controlnet_cond_embedding.blocks.{n}": f"input_hint_block.{2 * n + 2}" for n in range(6)}
    numbers |= {
        "controlnet_cond_embedding.conv_in": "input_hint_block.0", "controlnet_mid_block": "middle_block_out.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14", "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    }  # fmt: skip
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, _, parameter = key.rpartition(".")
        if match := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", layer):
            block = 3 * int(match[1]) + int(match[3]) + 1
            rest = inner[match[4]] if match[2] == "resnets" else match[4]
            layer = f"input_blocks.{block}.{int(match[2] == 'attentions')}.{rest}"
        elif match := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv", layer):
            layer = f"input_blocks.{3 * int(match[1]) + 3}.0.op"
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", layer):
            place = 1 if match[1] == "attentions" else 2 * int(match[2])
            layer = f"middle_block.{place}.{inner[match[3]] if match[1] == 'resnets' else match[3]}"
        else:
            layer = numbers[layer]
        renamed[f"control_model.{layer}.{parameter}"] = tensor
    return renamed


@pytest.mark.usefixtures("narrow_controlnet")
@pytest.mark.parametrize("spelling", ["diffusers", "original"])
@pytest.mark.parametrize("kind", ["1"], indirect=True)
@torch.no_grad()
def test_a_controlnet_is_that_of_diffusers(
    kind: str, spelling: str, folder: Path, pipeline: Any, controlnet: Any, tmp_path: Path
) -> None:
    state = controlnet.state_dict()
    if spelling == "original":
        renamed = in_the_names_of_its_authors(state)
        converted = convert_controlnet_checkpoint(dict(renamed), controlnet.config)
        assert all(torch.equal(converted[key], tensor) for key, tensor in state.items())
        state = renamed
    model: Any = load_model(folder)
    x, text, picture = random(2, 4, 8, 16), random(2, 77, 32, seed=8), random(2, 3, 64, 128, seed=9).sigmoid()
    timestep = torch.tensor([481])

    def predict() -> Tensor:
        model.set_unet_context(timestep=timestep, clip_text_embedding=text)
        return model.unet(x)

    plain, tree = predict(), repr(model.unet)
    adapter: Any = load_control_model(model, save(state, tmp_path / "canny.v1.safetensors"), scale=0.7)
    assert torch.equal(predict(), plain)
    adapter.inject()
    adapter.set_controlnet_condition(picture)
    down, middle = controlnet(
        x, timestep, encoder_hidden_states=text, controlnet_cond=picture, conditioning_scale=0.7, return_dict=False
    )
    expected = pipeline.unet(
        x, timestep, encoder_hidden_states=text, down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample  # fmt: skip
    assert error(plain, expected) > 0.01
    assert error(predict(), expected) < 1e-4
    adapter.eject()
    assert repr(model.unet) == tree
    assert torch.equal(predict(), plain)


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
@torch.no_grad()
def test_a_t2i_adapter_is_that_of_diffusers(
    kind: str, colors: int, folder: Path, pipeline: Any, tmp_path: Path
) -> None:
    theirs = t2i_adapter(kind, colors)
    model = load_model(folder)
    x, picture = random(2, 4, 8, 16), random(2, colors, 64, 128, seed=9).sigmoid()
    text = random(2, 77, pipeline.unet.config.cross_attention_dim, seed=8)
    context: dict[str, Tensor] = {}
    added: dict[str, Any] = {}
    if kind == "xl":
        context = {"pooled_text_embedding": random(2, 64, seed=10), "time_ids": time_ids((64, 128))}
        added = {"text_embeds": context["pooled_text_embedding"], "time_ids": context["time_ids"].float()}
    timestep = torch.tensor([481])

    def predict() -> Tensor:
        model.set_unet_context(timestep=timestep, clip_text_embedding=text, **context)
        return model.unet(x)

    plain, tree = predict(), repr(model.unet)
    adapter: Any = load_control_model(model, save(theirs.state_dict(), tmp_path / "sketch.safetensors"), scale=0.7)
    adapter.inject()
    adapter.set_condition_features(adapter.compute_condition_features(picture))
    features = [0.7 * feature for feature in theirs(picture)]
    expected = pipeline.unet(
        x, timestep, encoder_hidden_states=text, added_cond_kwargs=added, down_intrablock_additional_residuals=features
    ).sample
    assert error(plain, expected) > 0.01
    assert error(predict(), expected) < 1e-4
    adapter.eject()
    assert repr(model.unet) == tree
    assert torch.equal(predict(), plain)


@pytest.mark.usefixtures("narrow_controlnet")
@pytest.mark.parametrize("kind", ["1"], indirect=True)
def test_a_set_is_drawn_with_a_control_model(kind: str, folder: Path, controlnet: Any, tmp_path: Path) -> None:
    """In micro-batches and in one, and the control model's own attentions are left alone."""
    model = load_model(folder)
    path = save(controlnet.state_dict(), tmp_path / "canny.safetensors")
    prompts = ["a cat, ink", "a dog, ink"]

    def draw(batch_size: int, aligned: bool = True) -> Tensor:
        fresh = Style.from_prompt(model, "a fox, ink", num_inference_steps=2, size=(64, 64))
        samples = generate(model, fresh, prompts, batch_size=batch_size, aligned=aligned)
        return torch.cat([sample.latents for sample in samples])

    plain = draw(2)
    adapter: Any = load_control_model(model, path).inject()
    attentions = list(adapter.controlnet.layers(fl.ScaledDotProductAttention))
    adapter.set_controlnet_condition(random(1, 3, 64, 64, seed=9).sigmoid())
    together = draw(2)
    assert error(draw(1), together) < 1e-5
    assert error(together, plain) > 1e-3
    assert error(draw(2, aligned=False), together) > 1e-3
    assert list(adapter.controlnet.layers(fl.ScaledDotProductAttention)) == attentions
    adapter.eject()
    assert torch.equal(draw(2), plain)


@pytest.mark.usefixtures("narrow_controlnet")
@pytest.mark.parametrize(("what", "guidance"), [("controlnet", 2.0), ("t2i", 0.0)])
@pytest.mark.parametrize("kind", ["1"], indirect=True)
def test_each_image_follows_a_picture_of_its_own(
    kind: str, what: str, guidance: float, folder: Path, controlnet: Any, tmp_path: Path
) -> None:
    """Each image equals one that is drawn alone, and the reference is as without a control model."""
    model = load_model(folder)
    state = (controlnet if what == "controlnet" else t2i_adapter(kind)).state_dict()
    path = save(state, tmp_path / "canny.safetensors")
    prompts = ["a cat, ink", "a dog, ink"]
    pictures = [Image.effect_noise((64, 64), sigma) for sigma in (20, 200)]

    def draw(prompts: list[str], **arguments: Any) -> tuple[Tensor, Style, list[Any]]:
        style = Style.from_prompt(
            model, "a fox, ink", num_inference_steps=2, size=(64, 64), condition_scale=guidance,
            options={"share_group_norm": True},
        )  # fmt: skip
        samples = list(generate(model, style, prompts, **arguments))
        return torch.cat([sample.latents for sample in samples]), style, samples

    plain, reference, _ = draw(prompts)
    tree = repr(model.unet)
    with Extras(model, control=path, control_scale=0.7):
        together, style, samples = draw(prompts, control=pictures)
        assert torch.equal(style.latents, reference.latents)
        assert error(draw(prompts, control=pictures, batch_size=1)[0], together) < 1e-5
        for index in range(2):
            alone = draw(prompts[index:][:1], control=pictures[index], seeds=[index + 1])[0]
            assert error(alone, together[index:][:1]) < 1e-5
        assert error(draw(prompts, control=pictures[::-1])[0], together) > 1e-3
        assert error(plain, together) > 1e-3
        described = [own for sample in samples for own in sample.settings["control"]]
        assert [(own["file"], own["scale"]) for own in described] == [("canny.safetensors", 0.7)] * 2
        assert described[0]["picture"] != described[1]["picture"]
        with pytest.raises(ValueError, match="expected a picture for each image by control, as there is a control"):
            draw(prompts)
        with pytest.raises(ValueError, match="expected one control, or one for each of 2 prompts, got 3"):
            draw(prompts, control=[*pictures, pictures[0]])
        with pytest.warns(UserWarning, match=r"the control picture: cropped to its middle \(50% of it\)"):
            draw(prompts, control=Image.effect_noise((128, 64), 20))
    assert repr(model.unet) == tree
    assert torch.equal(draw(prompts)[0], plain)
    with pytest.raises(ValueError, match=r"expected a control model for control: Extras\(model, control=FILE\)"):
        draw(prompts, control=pictures)


@pytest.mark.usefixtures("narrow_controlnet")
def test_what_does_not_fit(folders: dict[str, Path], controlnet: Any, random_mini: Mini, tmp_path: Path) -> None:
    xl, one = load_model(folders["xl"]), load_model(folders["1"])
    state = {key: tensor.contiguous() for key, tensor in controlnet.state_dict().items()}

    def refused(model: Any, state: dict[str, Tensor], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_control_model(model, save(state, tmp_path / "x.safetensors"))

    refused(one, {"x": torch.zeros(1)}, "no control model of a known kind; expected a ControlNet of Stable Diffusion")
    refused(
        xl, state, r"Refiners has for Stable Diffusion 1\.5 alone; expected a ControlLora or a T2I-Adapter for SDXL"
    )
    refused(
        one, {"lora_controlnet": torch.zeros(0)}, "a ControlLora, which Refiners has for SDXL alone; expected a Con"
    )
    key = "controlnet_mid_block.weight"
    refused(one, {name: tensor for name, tensor in state.items() if name != key}, f"{key!r} is missing")
    wide = {**state, key: torch.zeros(64, 64, 1, 1)}
    refused(one, wide, rf"{key!r} of shape \(64, 64, 1, 1\) is no tensor of .*, \(128, 128, 1, 1\) is expected")
    refused(one, {**state, "down_blocks.9.x": torch.zeros(1)}, r"'down_blocks\.9\.x' of shape \(1,\) is no tensor of")
    refused(one, t2i_adapter("xl").state_dict(), r"a T2I-Adapter with .* channels; expected .* Stable Diffusion 1\.5")
    with pytest.raises(CheckpointError, match="no such file; expected a ControlNet"):
        load_control_model(one, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="the embedded model takes no LoRA, embedding, image prompt or control model"):
        load_control_model(random_mini, tmp_path / "x.safetensors")


@pytest.mark.usefixtures("narrow_controlnet")
@pytest.mark.parametrize("kind", ["1"], indirect=True)
@torch.no_grad()
def test_several_control_models_are_those_of_diffusers(
    kind: str, folder: Path, pipeline: Any, controlnet: Any, tmp_path: Path
) -> None:
    """Two ControlNets and a T2I-Adapter at once, each with its own scale and pictures."""
    with quiet():
        other = randomise(ControlNetModel.from_unet(pipeline.unet), seed=5).eval()
    nets, t2i = [controlnet, other], t2i_adapter(kind)
    files = [
        save(part.state_dict(), tmp_path / f"{name}.safetensors")
        for name, part in zip("abc", [*nets, t2i], strict=True)
    ]
    model: Any = load_model(folder)
    x, text = random(2, 4, 8, 8), random(2, 77, 32, seed=8)
    timestep, scales = torch.tensor([481]), [0.7, 0.4, 0.9]
    pictures = [[Image.effect_noise((64, 64), 30 + 70 * n + 20 * image).convert("RGB") for n in range(3)]
                for image in range(2)]  # fmt: skip

    def predict() -> Tensor:
        model.set_unet_context(timestep=timestep, clip_text_embedding=text)
        return model.unet(x)

    plain, tree = predict(), repr(model.unet)
    extras = Extras(model, control=[*zip(files, scales, strict=True)])
    conditions = [
        torch.cat([image_to_tensor(own[n]) for own in pictures]) for n in range(3)
    ]  # fmt: skip
    down, middle = [0.0] * 12, 0.0
    for net, condition, scale in zip(nets, conditions, scales, strict=False):
        own, last = net(
            x, timestep, encoder_hidden_states=text, controlnet_cond=condition, conditioning_scale=scale,
            return_dict=False,
        )  # fmt: skip
        down, middle = [a + b for a, b in zip(down, own, strict=True)], middle + last
    expected = pipeline.unet(
        x, timestep, encoder_hidden_states=text, down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        down_intrablock_additional_residuals=[scales[2] * feature for feature in t2i(conditions[2])],
    ).sample  # fmt: skip
    with extras:
        control = read_control(model, pictures, count=2, size=(64, 64))
        assert control is not None
        with control.on([0, 1], halves=1):
            together = predict()
        assert error(together, expected) < 1e-4
        with control.on([1, 0], halves=1):
            assert error(predict(), expected) > 1e-3
        swapped = read_control(model, [own[::-1] for own in pictures], count=2, size=(64, 64))
        assert swapped is not None
        with swapped.on([0, 1], halves=1):
            assert error(predict(), expected) > 1e-3
    assert repr(model.unet) == tree
    assert torch.equal(predict(), plain)


@pytest.mark.usefixtures("narrow_controlnet")
@pytest.mark.parametrize("kind", ["1"], indirect=True)
def test_each_image_has_a_picture_for_each_control_model(
    kind: str, folder: Path, controlnet: Any, tmp_path: Path
) -> None:
    model = load_model(folder)
    net = save(controlnet.state_dict(), tmp_path / "canny.safetensors")
    t2i = save(t2i_adapter(kind).state_dict(), tmp_path / "sketch.safetensors")
    pictures = [[Image.effect_noise((64, 64), sigma + more) for more in (0, 60)] for sigma in (20, 200)]
    prompts = ["a cat, ink", "a dog, ink"]

    def draw(prompts: list[str], **arguments: Any) -> tuple[Tensor, list[Any]]:
        style = Style.from_prompt(model, "a fox, ink", num_inference_steps=2, size=(64, 64))
        samples = list(generate(model, style, prompts, **arguments))
        return torch.cat([sample.latents for sample in samples]), samples

    plain = draw(prompts)[0]
    with Extras(model, control=[net, (t2i, 0.5), net], control_scale=0.7):
        together, samples = draw(prompts, control=[[*own, own[0]] for own in pictures])
        for index in range(2):
            own = [*pictures[index], pictures[index][0]]
            assert error(draw(prompts[index:][:1], control=[own], seeds=[index + 1])[0], together[index:][:1]) < 1e-5
        described = samples[0].settings["control"]
        assert [(own["file"], own["scale"]) for own in described] == [
            ("canny.safetensors", 0.7), ("sketch.safetensors", 0.5), ("canny.safetensors", 0.7)
        ]  # fmt: skip
        assert described[0]["picture"] == described[2]["picture"] != described[1]["picture"]
        for wrong, found in ((pictures[0][0], "1 at index 0"), ([[*pictures[0], *pictures[0]]] * 2, "4 at index 0")):
            with pytest.raises(
                ValueError, match=f"expected a control picture for each of 3 control models, got {found}"
            ):
                draw(prompts, control=wrong)
    assert torch.equal(draw(prompts)[0], plain)


@pytest.mark.usefixtures("narrow_controlnet")
@pytest.mark.parametrize("guidance", [2.0, 0.0])
@pytest.mark.parametrize("kind", ["1"], indirect=True)
@torch.no_grad()
def test_the_reference_follows_a_picture_of_its_own(
    kind: str, guidance: float, folder: Path, controlnet: Any, tmp_path: Path
) -> None:
    """Equal to a loop by hand with reference and target in one batch, and so is the style of a file."""
    model: Any = load_model(folder)
    net = save(controlnet.state_dict(), tmp_path / "canny.safetensors")
    t2i = save(t2i_adapter(kind).state_dict(), tmp_path / "sketch.safetensors")
    pictures = [[Image.effect_noise((64, 64), sigma + more).convert("RGB") for more in (0, 60)] for sigma in (20, 200)]
    settings: dict[str, Any] = {"num_inference_steps": 2, "size": (64, 64), "condition_scale": guidance}
    halves = 2 if guidance else 1
    file = tmp_path / "fox.safetensors"

    with Extras(model, control=[(net, 0.7), (t2i, 0.5)]):
        style = Style.from_prompt(model, "a fox, ink", control=pictures[0], **settings)
        (image,) = generate(model, style, ["a cat, ink"], control=[pictures[1]])
        style.save(file)
        loaded = Style.load(file)
        loaded.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
        (again,) = generate(model, loaded, ["a cat, ink"], control=[pictures[1]])
        assert error(again.latents, image.latents) < 1e-5
        other = Style.from_prompt(model, "a fox, ink", control=pictures[1], **settings)
        plain = Style.from_prompt(model, "a fox, ink", **settings)
        assert error(other.latents, style.latents) > 1e-3
        assert error(plain.latents, style.latents) > 1e-3
        described = style.describe()["reference_control"]
        assert described == loaded.control == image.settings["reference_control"]
        assert [(own["file"], own["scale"]) for own in described] == [
            ("canny.safetensors", 0.7), ("sketch.safetensors", 0.5)
        ]  # fmt: skip
        assert "reference_control" not in plain.describe()
        with pytest.raises(ValueError, match="expected a control picture for each of 2 control models, got 1"):
            Style.from_prompt(model, "a fox, ink", control=pictures[0][0], **settings)
        with pytest.raises(ValueError, match=r"expected control to stay .* the reference was drawn with it"):
            style.with_(control=[])

    adapters: list[Any] = [load_control_model(model, net, scale=0.7), load_control_model(model, t2i, scale=0.5)]
    rows = [torch.cat([image_to_tensor(own[n]) for own in pictures] * halves) for n in range(2)]
    solver = make_solver(model, 2)
    x = torch.cat([sample_noise(model, seed, (64, 64)) for seed in (0, 1)])
    texts = [embed(model, prompt, "" if guidance else None) for prompt in ("a fox, ink", "a cat, ink")]
    with StyleAlignedAdapter(model.unet, **style.options, set_size=2):
        adapters[0].inject()
        adapters[1].inject()
        features = adapters[1].compute_condition_features(rows[1])
        adapters[0].set_controlnet_condition(complete_rows(rows[0]))
        adapters[1].set_condition_features(tuple(complete_rows(values) for values in features))
        for step in range(2):
            noise = predict_noise(model, solver, x, step, text=stack(texts), condition_scale=guidance)
            x = solver(x, predicted_noise=noise, step=step)
        for adapter in adapters[::-1]:
            adapter.eject()
    assert error(style.latents[-1:], x[:1]) < 1e-4
    assert error(image.latents, x[1:]) < 1e-4

    fresh = Style.load(file)
    pattern = (
        "the control models canny.safetensors:0.7 and sketch.safetensors:0.5, as the style's reference, got one with"
    )
    for force in (False, True):
        with pytest.raises(StyleError, match=f"{pattern} none"):
            generate(model, fresh, ["a cat, ink"], force=force)
    with Extras(model, control=[net, net]):
        with pytest.raises(StyleError, match=f"{pattern} canny.safetensors:1 and canny.safetensors:1"):
            generate(model, fresh, ["a cat, ink"], control=[pictures[1]])
        list(generate(model, fresh, ["a cat, ink"], control=[pictures[1]], force=True))
    with pytest.raises(ValueError, match=r"expected a control model for control: Extras\(model, control=FILE\)"):
        Style.from_prompt(model, "a fox, ink", control=pictures[0], **settings)
