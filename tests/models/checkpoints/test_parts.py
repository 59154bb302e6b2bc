"""Each part, and the whole, against diffusers and transformers with the same random weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from torch import Tensor

from style_aligned.models.checkpoints import load_model, time_ids
from tests.models.checkpoints.conftest import Made

PROMPTS = ["a fox, neon sign", "two whales & a lighthouse, in 1890!"]
STEPS = 3


@pytest.fixture(scope="module", params=["diffusers", "original"])
def models(
    request: pytest.FixtureRequest, folders: dict[str, Path], single_files: dict[str, Path], narrow: None
) -> dict[str, Any]:
    paths = folders if request.param == "diffusers" else single_files
    return Made(lambda kind: load_model(paths[kind]))


@pytest.fixture
def model(models: dict[str, Any], kind: str) -> Any:
    return models[kind]


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative error, over all numbers together."""
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_unet(model: Any, pipeline: Any, kind: str) -> None:
    x, timestep = random(2, 4, 16, 24), torch.tensor([481])
    text = random(2, 77, pipeline.unet.config.cross_attention_dim, seed=8)
    added: dict[str, Tensor] = {}
    if kind == "xl":
        pooled, ids = random(2, 64, seed=9), time_ids((128, 192))
        added = {"text_embeds": pooled, "time_ids": ids}
        model.set_unet_context(timestep=timestep, clip_text_embedding=text, pooled_text_embedding=pooled, time_ids=ids)
    else:
        model.set_unet_context(timestep=timestep, clip_text_embedding=text)
    expected = pipeline.unet(x, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
    assert error(model.unet(x), expected) < 1e-5


@torch.no_grad()
def test_autoencoder(model: Any, pipeline: Any, kind: str) -> None:
    image = random(1, 3, 64, 96).clamp(-1, 1)
    latents = pipeline.vae.encode(image).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert error(model.lda.encode(image), latents) < 1e-5
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert error(model.lda.decode(latents), decoded) < 1e-5


@torch.no_grad()
def test_text_encoders(model: Any, pipeline: Any, kind: str) -> None:
    if kind == "1":
        expected, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["", "blurry"])
        embedding = model.compute_clip_text_embedding(PROMPTS, ["", "blurry"])
    else:
        expected, negative, pooled, negative_pooled = pipeline.encode_prompt(
            PROMPTS, device="cpu", do_classifier_free_guidance=True, negative_prompt=["", "blurry"]
        )
        embedding, pooled_embedding = model.compute_clip_text_embedding(PROMPTS, ["", "blurry"])
        assert error(pooled_embedding, torch.cat([negative_pooled, pooled])) < 1e-5
    assert error(embedding, torch.cat([negative, expected])) < 1e-5


@torch.no_grad()
def test_the_whole(model: Any, pipeline: Any, kind: str) -> None:
    height, width = 128, 192
    noise = random(1, 4, height // 8, width // 8)
    expected = copy.copy(pipeline)(
        prompt=PROMPTS[0],
        negative_prompt="blurry",
        latents=noise.clone(),
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
    ).images

    model.set_inference_steps(STEPS)
    context: dict[str, Tensor] = {}
    if isinstance(model, StableDiffusion_XL):
        text, context["pooled_text_embedding"] = model.compute_clip_text_embedding(PROMPTS[0], "blurry")
        context["time_ids"] = time_ids((height, width))
    else:
        text = model.compute_clip_text_embedding(PROMPTS[0], "blurry")
    x = noise
    for step in model.steps:
        x = model(x, step=step, clip_text_embedding=text, condition_scale=5.0, **context)
    assert (x - expected).abs().max() < 1e-3
    assert error(x, expected) < 1e-4
