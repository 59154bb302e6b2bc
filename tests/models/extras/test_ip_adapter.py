"""IP-Adapters from files, against diffusers and transformers with the same random weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError, load_model
from style_aligned.models.denoising import time_ids
from style_aligned.models.extras import load_image_encoder, load_ip_adapter
from tests.models.checkpoints.pipelines import quiet, randomise, transformers
from tests.models.checkpoints.test_parts import error, random

FEATURES = 48


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=32, num_attention_heads=4, image_size=56, patch_size=14,
        projection_dim=FEATURES, hidden_act="gelu",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("image_encoder")
    with quiet():
        randomise(transformers.CLIPVisionModelWithProjection(config)).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_image_encoder(encoder_folder: Path) -> None:
    with quiet():
        theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(encoder_folder).eval()
    ours = load_image_encoder(encoder_folder)
    image = random(2, 3, 56, 56)
    assert error(ours(image), theirs(image).image_embeds) < 1e-5
    state = load_file(encoder_folder / "model.safetensors")
    del state["vision_model.post_layernorm.bias"]
    save_file(state, encoder_folder.with_name("damaged.safetensors"))
    with pytest.raises(CheckpointError, match=r"'vision_model\.post_layernorm\.bias' is missing"):
        load_image_encoder(encoder_folder.with_name("damaged.safetensors"))
    with pytest.raises(CheckpointError, match="no such file; expected an image encoder of transformers"):
        load_image_encoder(encoder_folder / "none")


def random_ip_adapter(unet: Any, plus: bool) -> dict[str, Tensor]:
    """The tensors of a file, for a U-Net of diffusers."""
    width = unet.config.cross_attention_dim
    shapes = {
        "proj.weight": (4 * width, FEATURES),
        "proj.bias": (4 * width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if plus:
        shapes = {
            "latents": (1, 5, 64), "proj_in.weight": (64, 32), "proj_in.bias": (64,), "proj_out.weight": (width, 64),
            "proj_out.bias": (width,), "norm_out.weight": (width,), "norm_out.bias": (width,),
        }  # fmt: skip
        for layer in (f"layers.{i}" for i in range(4)):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                shapes |= {f"{layer}.{norm}.weight": (64,), f"{layer}.{norm}.bias": (64,)}
            shapes |= {f"{layer}.0.to_q.weight": (64, 64), f"{layer}.0.to_kv.weight": (128, 64)}
            shapes |= {
                f"{layer}.0.to_out.weight": (64, 64),
                f"{layer}.1.1.weight": (256, 64),
                f"{layer}.1.3.weight": (64, 256),
            }
    state = {
        f"image_proj.{key}": random(*shape, seed=n) / shape[-1] ** 0.5 for n, (key, shape) in enumerate(shapes.items())
    }
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            rows = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for letter in "kv":
                values = random(rows, width, seed=1000 + 2 * number + (letter == "v"))
                state[f"ip_adapter.{number}.to_{letter}_ip.weight"] = values / width**0.5
            number += 2
    return state


@pytest.mark.parametrize("plus", [False, True], ids=["plain", "plus"])
@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
@torch.no_grad()
def test_the_unet_is_that_of_diffusers(
    kind: str, plus: bool, folder: Path, pipeline: Any, encoder_folder: Path, tmp_path: Path
) -> None:
    state = random_ip_adapter(pipeline.unet, plus)
    path = tmp_path / "ip-adapter.safetensors"
    save_file(state, path)
    model = load_model(folder)
    encoder = load_image_encoder(encoder_folder)
    x, text, features = random(2, 4, 8, 16), random(2, 77, pipeline.unet.config.cross_attention_dim, seed=8), random(
        2, *((17, 32) if plus else (FEATURES,)), seed=9
    )  # fmt: skip
    context: dict[str, Tensor] = {}
    added: dict[str, Any] = {"image_embeds": [features[:, None]]}
    if kind == "xl":
        context = {"pooled_text_embedding": random(2, 64, seed=10), "time_ids": time_ids((64, 128))}
        added |= {"text_embeds": context["pooled_text_embedding"], "time_ids": context["time_ids"].float()}
    timestep = torch.tensor([481])

    processors = pipeline.unet.attn_processors
    parts = {
        part: {key.removeprefix(f"{part}."): t for key, t in state.items() if key.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    with quiet():
        pipeline.unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
        try:
            for processor in pipeline.unet.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [0.7]
            expected = pipeline.unet(x, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
        finally:
            pipeline.unet.encoder_hid_proj, pipeline.unet.config.encoder_hid_dim_type = None, None
            pipeline.unet.set_attn_processor(processors)

    def predict() -> Tensor:
        model.set_unet_context(timestep=timestep, clip_text_embedding=text, **context)
        return model.unet(x)

    plain = predict()
    adapter = load_ip_adapter(model, path, image_encoder=encoder, scale=0.7)
    assert torch.equal(predict(), plain)
    adapter.inject()
    adapter.set_clip_image_embedding(adapter.image_proj(features))
    assert error(plain, expected) > 0.01
    assert error(predict(), expected) < 1e-4
    adapter.eject()
    assert torch.equal(predict(), plain)


@pytest.mark.parametrize("kind", ["1"], indirect=True)
def test_what_does_not_fit(folder: Path, pipelines: dict[str, Any], encoder_folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    path = tmp_path / "ip-adapter.safetensors"

    def refused(state: dict[str, Tensor], message: str, encoder: Any = encoder_folder) -> None:
        save_file(state, path)
        with pytest.raises(CheckpointError, match=message):
            load_ip_adapter(model, path, image_encoder=encoder)

    state = random_ip_adapter(pipelines["1"].unet, plus=False)
    refused({"x": torch.zeros(1)}, r"no IP-Adapter of a known kind \(such as FaceID's\); expected ip-adapter_")
    refused(
        random_ip_adapter(pipelines["xl"].unet, plus=False), r"56 tensors for attentions, 32 are expected for Stable"
    )
    wide = {key: torch.zeros(t.shape[0], 96) if key.startswith("ip_") else t for key, t in state.items()}
    refused(wide, r"an IP-Adapter for text embeddings of width 96; expected 32, as of Stable Diffusion 1\.5")
    other = {**state, "image_proj.proj.weight": torch.zeros(128, 1280)}
    refused(other, re.escape(f"it takes images of 1280 features; expected an encoder of that, got {FEATURES}"))
    with pytest.raises(CheckpointError, match="no such file; expected ip-adapter_"):
        load_ip_adapter(model, tmp_path / "none", image_encoder=encoder_folder)
