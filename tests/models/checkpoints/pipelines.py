"""Pipelines of diffusers with random weights, saved by diffusers and transformers themselves."""

import contextlib
import importlib
import json
import os
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from refiners.foundationals.clip.tokenizer import CLIPTokenizer as RefinersTokenizer
from torch import Tensor

from style_aligned.models.checkpoints.architectures import Architecture
from tests.models.checkpoints.narrow import (
    NARROW,
    NARROW_AUTOENCODER_CONFIG,
    NARROW_TEXT_G_CONFIG,
    NARROW_TEXT_L_CONFIG,
    NARROW_UNET_CONFIGS,
    SCALING_FACTORS,
    SCHEDULER_CONFIG,
)

os.environ.setdefault("DO_NOT_TRACK", "1")


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """What other libraries warn about is none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with quiet():
    # untyped for us: their own annotations contradict their own settings
    diffusers: Any = importlib.import_module("diffusers")
    transformers: Any = importlib.import_module("transformers")
    single_file_utils: Any = importlib.import_module("diffusers.loaders.single_file_utils")

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

__all__ = ["diffusers", "make_pipeline", "quiet", "randomise", "single_file_utils", "to_original", "transformers"]


def randomise(model: torch.nn.Module, seed: int = 0) -> Any:
    """Fill all weights, norms and biases too, so that no two of them can be taken for each other unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(parameter.round().clamp(0, 1) + 0.2 * noise)
    return model.eval()


def make_tokenizer(folder: Path) -> Any:
    ours = RefinersTokenizer()
    merges = sorted(ours.byte_pair_encoding_ranks, key=lambda merge: ours.byte_pair_encoding_ranks[merge])
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {word: token for token, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def make_pipeline(kind: str, folder: Path) -> Any:
    """Build a narrow pipeline, with DDIM."""
    with quiet():
        unet = randomise(diffusers.UNet2DConditionModel(**NARROW_UNET_CONFIGS[kind]), seed=1)
        vae = randomise(
            diffusers.AutoencoderKL(**NARROW_AUTOENCODER_CONFIG, scaling_factor=SCALING_FACTORS[kind]), seed=2
        )
        text_encoder = randomise(
            transformers.CLIPTextModel(transformers.CLIPTextConfig(**NARROW_TEXT_L_CONFIG)), seed=3
        )
        scheduler = diffusers.DDIMScheduler(**SCHEDULER_CONFIG)
        tokenizer = make_tokenizer(folder)
        if kind == "1":
            pipeline: Any = diffusers.StableDiffusionPipeline(
                vae=vae,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        else:
            layers = NARROW[kind].text_encoders[1].layers
            config = transformers.CLIPTextConfig(**{**NARROW_TEXT_G_CONFIG, "num_hidden_layers": layers})
            tokenizer_2 = make_tokenizer(folder)
            tokenizer_2.pad_token = "!"
            pipeline = diffusers.StableDiffusionXLPipeline(
                vae=vae,
                text_encoder=text_encoder,
                text_encoder_2=randomise(transformers.CLIPTextModelWithProjection(config), seed=4),
                tokenizer=tokenizer,
                tokenizer_2=tokenizer_2,
                unet=unet,
                scheduler=scheduler,
                add_watermarker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_original(architecture: Architecture, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a diffusers folder to the original names of a single file, by our rules run backwards."""
    model = architecture.build()
    parts = ("unet", "lda", "clip_text_encoder")
    targets = [f"{part}.{key}" for part in parts for key in getattr(model, part).state_dict()]
    original: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    theirs = architecture.sources(targets, "diffusers")
    for target, source in architecture.sources(targets, "original").items():
        tensor = tensors[theirs[target].key]
        if ".attn_1." in source.key and source.key.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # the original has convolutions by one pixel there
        if source.transposed:
            tensor = tensor.T.contiguous()
        if source.third is not None:
            thirds.setdefault(source.key, {})[source.third] = tensor
        else:
            original[source.key] = tensor
    for key, values in thirds.items():
        original[key] = torch.cat([values[third] for third in range(3)])
    return original
