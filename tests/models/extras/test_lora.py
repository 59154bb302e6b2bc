"""LoRAs from files, against diffusers with the same random weights."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.lora import Lora
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from safetensors.torch import save_file
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError, load_model, time_ids
from style_aligned.models.checkpoints.keys import unet_modules
from style_aligned.models.extras import FileLora
from tests.models.checkpoints.narrow import NARROW
from tests.models.checkpoints.pipelines import quiet
from tests.models.checkpoints.test_parts import error, random

State = dict[str, Tensor]
ADAPTED = (
    r"attn[12]\.to_(q|k|v|out\.0)", r"ff\.net\.(0\.proj|2)", r"proj_(in|out)", r"resnets\.0\.(conv1|time_emb_proj)",
    r"conv_shortcut", r"downsamplers\.0\.conv", r"upsamplers\.0\.conv", r"time_embedding\.linear_1",
    r"self_attn\.(q|k|v|out)_proj", r"mlp\.fc[12]",
)  # fmt: skip
RANK = 4


def random_lora(pipeline: Any) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A change of many layers, by diffusers' names, with an alpha for each."""
    generator = torch.Generator().manual_seed(1)
    changes: dict[str, tuple[Tensor, Tensor, float]] = {}
    parts = [part for part in ("unet", "text_encoder", "text_encoder_2") if getattr(pipeline, part, None) is not None]
    for part in parts:
        for name, parameter in getattr(pipeline, part).named_parameters():
            layer = f"{part}.{name.removesuffix('.weight')}"
            is_adapted = name.endswith(".weight") and any(re.search(f"{pattern}$", layer) for pattern in ADAPTED)
            if is_adapted and parameter.ndim in (2, 4):
                outs, ins, *kernel = parameter.shape
                down = torch.randn(RANK, ins, *kernel, generator=generator) / parameter[0].numel() ** 0.5
                up = torch.randn(outs, RANK, *[1] * len(kernel), generator=generator)
                changes[layer] = down, up, float(len(changes) % 7 + 1)
    return changes


def with_text_model(layer: str) -> str:
    return re.sub(r"^(text_encoder(?:_2)?)\.(?!text_model)", r"\1.text_model.", layer)


def kohya(changes: dict[str, tuple[Tensor, Tensor, float]], kind: str, names: dict[str, str] | None = None) -> State:
    state: State = {}
    prefixes = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if kind == "xl" else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    for layer, (down, up, alpha) in changes.items():
        part, _, name = with_text_model(layer).partition(".")
        key = f"{prefixes[part]}_{(names or {}).get(name, name).replace('.', '_')}"
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    return state


def dotted(changes: dict[str, tuple[Tensor, Tensor, float]], down: str, up: str) -> State:
    state: State = {}
    for layer, (down_weight, up_weight, alpha) in changes.items():
        key = with_text_model(layer)
        state |= {f"{key}.{down}.weight": down_weight, f"{key}.{up}.weight": up_weight * alpha / RANK}
    return state


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "1")


@pytest.fixture
def changes(pipeline: Any) -> dict[str, tuple[Tensor, Tensor, float]]:
    return random_lora(pipeline)


@pytest.fixture
def model(folder: Path) -> Any:
    return load_model(folder)


def write(tmp_path: Path, state: State, metadata: Any = None, name: str = "ink") -> Path:
    path = tmp_path / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    return path


@torch.no_grad()
def outputs(model: Any, kind: str) -> list[Tensor]:
    """What the text encoders and the U-Net give."""
    text = model.compute_clip_text_embedding("a fox", "ink")
    x, timestep = random(2, 4, 8, 16), torch.tensor([481])
    context: dict[str, Tensor] = {}
    if kind == "xl":
        text, context["pooled_text_embedding"] = text
        context["time_ids"] = time_ids((64, 128))
    model.set_unet_context(timestep=timestep, clip_text_embedding=text, **context)
    return [text, *context.values(), model.unet(x)]


@torch.no_grad()
def expected_outputs(pipeline: Any, kind: str, state: State, scale: float = 1.0) -> list[Tensor]:
    """The same of diffusers."""
    with quiet():
        pipeline.load_lora_weights({key: tensor.clone() for key, tensor in state.items()}, adapter_name="ink")
        try:
            pipeline.set_adapters("ink", scale)
            x, timestep = random(2, 4, 8, 16), torch.tensor([481])
            more = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True} if kind == "1" else {}
            embedded = pipeline.encode_prompt("a fox", device="cpu", negative_prompt="ink", **more)
            text = torch.cat([embedded[1], embedded[0]])
            added: dict[str, Tensor] = {}
            if kind == "xl":
                added = {"text_embeds": torch.cat([embedded[3], embedded[2]]), "time_ids": time_ids((64, 128)).float()}
            noise = pipeline.unet(x, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
        finally:
            pipeline.unload_lora_weights()
    return [text, *added.values(), noise]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert error(ours.float(), theirs.float()) < 3e-4  # 1.1e-4 by the order of sums on some processors


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_all_spellings_are_what_diffusers_makes_of_them(
    kind: str, model: Any, pipeline: Any, changes: dict[str, tuple[Tensor, Tensor, float]], tmp_path: Path
) -> None:
    plain = outputs(model, kind)
    expected = expected_outputs(pipeline, kind, dotted(changes, "lora_A", "lora_B"), scale=0.7)
    assert error(expected[0], plain[0]) > 0.01
    assert error(expected[-1], plain[-1]) > 0.05
    original = {
        names.diffusers.removeprefix("unet."): names.original.removeprefix("model.diffusion_model.")
        for names in unet_modules(NARROW[kind].unet)
    }
    spellings = {
        "kohya": kohya(changes, kind),
        "kohya, original blocks": kohya(changes, kind, original),
        "diffusers": dotted(changes, "lora.down", "lora.up"),
        "peft": dotted(changes, "lora_A", "lora_B"),
        "peft with a name": dotted(changes, "lora_A.default", "lora_B.default"),
    }
    for spelling, state in spellings.items():
        lora = FileLora(model, write(tmp_path, state), scale=0.7)
        assert_close(outputs(model, kind), plain)
        with lora:
            assert_close(outputs(model, kind), expected)
        assert all(torch.equal(a, b) for a, b in zip(outputs(model, kind), plain, strict=True)), spelling
    # diffusers itself confuses the layers of a text encoder whose alphas differ
    same_alpha = kohya({layer: (down, up, 2.0) for layer, (down, up, _) in changes.items()}, kind)
    with FileLora(model, write(tmp_path, same_alpha)):
        assert_close(outputs(model, kind), expected_outputs(pipeline, kind, same_alpha))


def unet_only(changes: dict[str, tuple[Tensor, Tensor, float]]) -> dict[str, tuple[Tensor, Tensor, float]]:
    return {layer: change for layer, change in changes.items() if layer.startswith("unet.")}


def test_old_attention_processors(model: Any, changes: Any, tmp_path: Path, kind: str) -> None:
    new = {k: c for k, c in unet_only(changes).items() if ".attn" in k}
    with FileLora(model, write(tmp_path, dotted(new, "lora_A", "lora_B"))):
        expected = outputs(model, kind)
    old = {
        re.sub(r"\.(to_\w+)(\.0)?\.lora", r".processor.\1_lora", k): t
        for k, t in dotted(new, "lora.down", "lora.up").items()
    }
    assert all(re.search(r"attn\d\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$", key) for key in old)
    with FileLora(model, write(tmp_path, old)):
        assert_close(outputs(model, kind), expected)


def test_settings_of_peft(model: Any, changes: Any, tmp_path: Path, kind: str) -> None:
    changes = {layer: (down, up, 8.0) for layer, (down, up, _) in unet_only(changes).items()}
    with FileLora(model, write(tmp_path, kohya(changes, kind))):
        expected = outputs(model, kind)
    bare = {
        f"base_model.model.{key.removeprefix('unet.')}": t for key, t in dotted(changes, "lora_A", "lora_B").items()
    }
    bare = {key: t * RANK / 8 if "lora_B" in key else t for key, t in bare.items()}
    folder = tmp_path / "peft"
    folder.mkdir()
    write(folder, bare, name="adapter_model")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8, "peft_type": "LORA"}))
    with FileLora(model, folder):
        assert_close(outputs(model, kind), expected)
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 4, "use_rslora": True}))
    with FileLora(model, folder, scale=8 / (4 * RANK**0.5)):
        assert_close(outputs(model, kind), expected)
    (folder / "adapter_config.json").unlink()
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": RANK})}
    with FileLora(model, write(tmp_path, bare, metadata)):
        assert_close(outputs(model, kind), expected)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "use_dora": True}))
    with pytest.raises(CheckpointError, match="its settings say DoRA, which is not supported"):
        FileLora(model, folder)


def test_a_convolution_between_two(model: Any, changes: Any, tmp_path: Path, kind: str) -> None:
    layer = "unet.down_blocks.0.resnets.0.conv1"
    _, up, alpha = changes[layer]
    middle, first = random(RANK, RANK, 3, 3), random(RANK, 32, 1, 1, seed=8)
    state = kohya({layer: (first, up, alpha)}, kind)
    state["lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight"] = middle
    whole = torch.nn.functional.conv2d(random(1, 32, 5, 5), first)
    whole = torch.nn.functional.conv2d(torch.nn.functional.conv2d(whole, middle, padding=1), up * alpha / RANK)
    lora = FileLora(model, write(tmp_path, state)).inject()
    (made,) = model.unet.layers(Lora)
    assert torch.allclose(made(random(1, 32, 5, 5)), whole, atol=1e-4)
    lora.eject()


def test_several_and_their_scales(model: Any, changes: Any, tmp_path: Path, kind: str) -> None:
    plain = outputs(model, kind)
    names = [name for name, _ in model.unet.named_parameters()]
    path = write(tmp_path, kohya(changes, kind))
    with FileLora(model, path, scale=0.5):
        expected = outputs(model, kind)
    first, second = FileLora(model, path, scale=0.1, name="a"), FileLora(model, path, scale=0.4, name="b")
    first.inject()
    second.inject()
    assert_close(outputs(model, kind), expected)
    manager = SDLoraManager(model)
    assert manager.scales == {"a": 0.1, "b": 0.4}
    manager.set_scale("a", 0.2)
    second.scale = 0.3
    assert_close(outputs(model, kind), expected)
    with pytest.raises(ValueError, match="expected the LoRA 'a' not to be injected, but it is"):
        first.inject()
    with pytest.raises(ValueError, match="expected a LoRA of another name than 'a', which the model has already"):
        FileLora(model, path, name="a").inject()
    assert second.describe() == {"kind": "lora", "file": "ink.safetensors", "scale": 0.3}
    first.eject()
    second.scale = 0.5
    assert_close(outputs(model, kind), expected)
    second.eject()
    assert [name for name, _ in model.unet.named_parameters()] == names
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, kind), plain, strict=True))


BAD: dict[str, tuple[str, Any]] = {
    "a LoHa": (r"a LoHa \(it holds 'lora_unet_x\.hada_w1_a'\), which is not supported", {"lora_unet_x.hada_w1_a": 0}),
    "a LoKr": (r"a LoKr ", {"lora_unet_x.lokr_w1": 0}),
    "a DoRA": (r"a DoRA ", {"unet.x.lora_A.weight": 0, "unet.x.dora_scale": 0}),
    "no LoRA": (r"no LoRA \(its first tensor is 'x'\)", {"x": 0}),
}


@pytest.mark.parametrize("what", BAD)
def test_other_kinds(what: str, model: Any, tmp_path: Path) -> None:
    message, keys = BAD[what]
    with pytest.raises(CheckpointError, match=message):
        FileLora(model, write(tmp_path, {key: torch.zeros(2, 2) for key in keys}))


def test_what_does_not_fit(model: Any, changes: Any, tmp_path: Path, kind: str) -> None:
    state = kohya(changes, kind)
    wrong = {re.sub("down_blocks_0_att", "down_blocks_7_att", key): t for key, t in state.items()}
    count = sum(key not in state for key in wrong)
    with pytest.raises(
        CheckpointError, match=rf"{count} of {len(state)} tensors fit no layer of Stable Diffusion 1\.5, the fi"
    ):
        FileLora(model, write(tmp_path, wrong))
    with pytest.raises(CheckpointError, match=r"; by its metadata it is for 'sdxl_base_v1-0'"):
        FileLora(model, write(tmp_path, wrong, {"ss_base_model_version": "sdxl_base_v1-0"}))
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    for changed, message in [
        (
            {f"{layer}.lora_down.weight": torch.zeros(RANK, 2048)},
            r"of shape \(4, 2048\) does not fit the layer 'unet\.Sum\.",
        ),
        ({f"{layer}.lora_up.weight": torch.zeros(128, 5)}, r"of shape \(128, 5\) have no rank in common"),
        ({f"{layer}.lora_up.weight": None}, r"the layer 'unet\.Sum\..+' has no 'up' weights"),
    ]:
        other = {key: t for key, t in {**state, **changed}.items() if t is not None}
        with pytest.raises(CheckpointError, match=message):
            FileLora(model, write(tmp_path, other))
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file or folder; expected a LoRA"):
        FileLora(model, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="the embedded model takes no LoRA"):
        FileLora(load_model("mini"), write(tmp_path, state))
    assert not list(model.unet.layers(Lora))


@pytest.fixture(autouse=True)
def nothing_left(model: Any) -> Iterator[None]:
    yield
    assert not any(
        isinstance(layer, Lora) for part in (model.unet, model.clip_text_encoder) for layer in part.layers(fl.Chain)
    )
