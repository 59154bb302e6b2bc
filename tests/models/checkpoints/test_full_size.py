"""The published widths: every weight of SDXL and SD 1.5, random, saved by diffusers in float32 and loaded by us."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from torch import Tensor

from style_aligned.models.checkpoints import load_model, time_ids
from tests.models.checkpoints.narrow import (
    AUTOENCODER_CONFIG,
    SCALING_FACTORS,
    SCHEDULER_CONFIG,
    TEXT_G_CONFIG,
    TEXT_L_CONFIG,
    UNET_CONFIGS,
)
from tests.models.checkpoints.pipelines import diffusers, make_tokenizer, quiet, randomise, transformers
from tests.models.checkpoints.test_parts import PROMPTS, STEPS, error, random

pytestmark = [pytest.mark.slow, pytest.mark.full_size]
FULL_SIZE = True
NEGATIVE = "blurry"


@dataclass
class Saved:
    """A folder, and what diffusers made of the weights in it."""

    kind: str
    folder: Path
    outputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def build(make: Callable[[], Any], seed: int) -> Any:
    """Build a model without initialising it, then fill it."""
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu")
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "position_ids":
                setattr(module, name, torch.arange(buffer.shape[-1])[None])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(name.endswith("weight"))
    return randomise(model, seed=seed)


def encode(saved: Saved, part: str, config: dict[str, Any], tokenizer: Any, prompts: list[str]) -> None:
    classes = {"text_encoder": transformers.CLIPTextModel, "text_encoder_2": transformers.CLIPTextModelWithProjection}
    encoder = build(lambda: classes[part](transformers.CLIPTextConfig(**config)), seed=len(part))
    encoder.save_pretrained(saved.folder / part)
    tokens = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    output = encoder(tokens, output_hidden_states=True)
    saved.outputs[part] = output.last_hidden_state if saved.kind == "1" else output.hidden_states[-2]
    if part == "text_encoder_2":
        saved.outputs["pooled"] = output.text_embeds


def make_folder(kind: str, folder: Path) -> Saved:
    saved = Saved(kind, folder)
    (folder / "scheduler").mkdir(parents=True)
    scheduler = diffusers.DDIMScheduler(**SCHEDULER_CONFIG)
    scheduler.save_pretrained(folder / "scheduler")

    tokenizer = make_tokenizer(folder / "tokenizer")
    encode(saved, "text_encoder", TEXT_L_CONFIG, tokenizer, [NEGATIVE, PROMPTS[0]])
    text = saved.outputs["text_encoder"]
    if kind == "xl":
        tokenizer.pad_token = "!"
        encode(saved, "text_encoder_2", TEXT_G_CONFIG, tokenizer, [NEGATIVE, PROMPTS[0]])
        text = torch.cat([text, saved.outputs["text_encoder_2"]], dim=-1)
    saved.outputs["text"] = text

    vae = build(lambda: diffusers.AutoencoderKL(**AUTOENCODER_CONFIG, scaling_factor=SCALING_FACTORS[kind]), seed=1)
    vae.save_pretrained(folder / "vae")
    saved.outputs["latents"] = vae.encode(random(1, 3, 64, 96)).latent_dist.mean * vae.config.scaling_factor
    saved.outputs["image"] = vae.decode(random(1, 4, 8, 12)).sample

    unet = build(lambda: diffusers.UNet2DConditionModel(**UNET_CONFIGS[kind]), seed=2)
    unet.save_pretrained(folder / "unet", max_shard_size="2GB")
    parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}
    embeds = {"prompt_embeds": text[1:], "negative_prompt_embeds": text[:1]}
    if kind == "xl":
        pipeline: Any = diffusers.StableDiffusionXLPipeline(
            **parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False
        )
        pooled = saved.outputs["pooled"]
        embeds |= {"pooled_prompt_embeds": pooled[1:], "negative_pooled_prompt_embeds": pooled[:1]}
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 128, "width": 192, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    saved.outputs["denoised"] = pipeline(**embeds, **size, latents=random(1, 4, 16, 24), output_type="latent").images

    added: dict[str, Tensor] = {}
    if kind == "xl":
        added = {"text_embeds": saved.outputs["pooled"], "time_ids": time_ids((128, 192))}
    x, timestep = random(2, 4, 16, 24, seed=11), torch.tensor([481])
    saved.outputs["noise"] = unet(x, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
    return saved


@pytest.fixture(scope="module", params=["xl", "1"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("full_size") / request.param
    with quiet(), torch.no_grad():
        saved = make_folder(request.param, folder)
    gc.collect()
    yield saved
    for file in folder.glob("*/*.safetensors"):  # gigabytes
        file.unlink()


@pytest.fixture
def model(saved: Saved) -> Any:
    return load_model(saved.folder)


@torch.no_grad()
def test_the_full_size_equals_diffusers(model: Any, saved: Saved) -> None:
    expected, context = saved.outputs, dict[str, Tensor]()
    text: Tensor
    if isinstance(model, StableDiffusion_XL):
        text, context["pooled_text_embedding"] = model.compute_clip_text_embedding(PROMPTS[0], NEGATIVE)
        context["time_ids"] = time_ids((128, 192))
        assert error(context["pooled_text_embedding"], expected["pooled"]) < 1e-4
    else:
        text = model.compute_clip_text_embedding(PROMPTS[0], NEGATIVE)
    errors = {"text": error(text, expected["text"])}
    errors["latents"] = error(model.lda.encode(random(1, 3, 64, 96)), expected["latents"])
    errors["image"] = error(model.lda.decode(random(1, 4, 8, 12) * model.lda.encoder_scale), expected["image"])

    model.set_unet_context(timestep=torch.tensor([481]), clip_text_embedding=text, **context)
    errors["noise"] = error(model.unet(random(2, 4, 16, 24, seed=11)), expected["noise"])

    model.set_inference_steps(STEPS)
    x = random(1, 4, 16, 24)
    for step in model.steps:
        x = model(x, step=step, clip_text_embedding=text, condition_scale=5.0, **context)
    errors["denoised"] = error(x, expected["denoised"])
    assert max(errors.values()) < 1e-4, errors
    assert (x - expected["denoised"]).abs().max() < 1e-3
    print(errors, (x - expected["denoised"]).abs().max())  # noqa: T201
