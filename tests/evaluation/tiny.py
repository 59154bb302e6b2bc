"""Tiny DINO, CLIP and CSD models with random weights, as they lie on a disk."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZE, PATCH, WIDTH = 32, 8, 128
WORDS = ("a", "cat", "dog", "fox", "rocket", "ink", "neon", "sign", "umbrella", "red", "blue", "car")
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TOWER: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION: dict[str, Any] = {**TOWER, "hidden_size": 32, "image_size": SIZE, "patch_size": PATCH, "projection_dim": 16}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def make_dino(folder: Path) -> Path:
    """Write a vision transformer as `facebook/dino-vitb8` is: it says less than newer models do."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    config = ViTConfig(**TOWER, hidden_size=32, image_size=SIZE, patch_size=PATCH)
    save(ViTModel(config, add_pooling_layer=False), folder)
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    settings = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor"}
    write_json(folder / "preprocessor_config.json", {**settings, **statistics, "resample": 2, "size": SIZE})
    return folder


def make_clip(folder: Path) -> Path:
    """Write a CLIP model whose tokenizer knows letters and a few words."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(2)
    letters = sorted({letter for word in WORDS for letter in word} | set("aeiouwithstyle,."))
    merges: dict[str, None] = {}
    pieces: dict[str, None] = {}
    for word in WORDS:
        left = word[0]
        for index, letter in enumerate(word[1:], start=1):
            right = letter + ("</w>" if index == len(word) - 1 else "")
            merges[f"{left} {right}"] = None
            left += right
            pieces[left] = None
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *pieces])
    vocabulary = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    last = len(vocabulary) - 1
    text = {
        **TOWER, "hidden_size": 24, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "projection_dim": 16,
        "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last,
    }  # fmt: skip
    save(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)), folder)
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        },
    )  # fmt: skip
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": SIZE, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
            "size": SIZE,
        },
    )  # fmt: skip
    return folder


def csd_weights() -> dict[str, Tensor]:
    """Return weights of CSD under the names of its authors, which are those of OpenAI's CLIP."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    weights = {
        "class_embedding": random(WIDTH),
        "positional_embedding": random(1 + (SIZE // PATCH) ** 2, WIDTH),
        "conv1.weight": random(WIDTH, 3, PATCH, PATCH) / PATCH,
    }
    for name in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{j}" for i in (0, 1) for j in (1, 2))):
        weights |= {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}
    for block in ("transformer.resblocks.0", "transformer.resblocks.1"):
        for name, shape in (
            ("attn.out_proj", (WIDTH, WIDTH)), ("mlp.c_fc", (2 * WIDTH, WIDTH)), ("mlp.c_proj", (WIDTH, 2 * WIDTH)),
        ):  # fmt: skip
            weights |= {f"{block}.{name}.weight": random(*shape), f"{block}.{name}.bias": random(shape[0])}
        weights |= {f"{block}.attn.in_proj_weight": random(3 * WIDTH, WIDTH)}
        weights |= {f"{block}.attn.in_proj_bias": random(3 * WIDTH)}
    heads = {f"last_layer_{name}": random(WIDTH, 24) for name in ("style", "content")}
    return {**{f"backbone.{name}": tensor for name, tensor in weights.items()}, **heads}


def make_csd(path: Path) -> Path:
    save_file(csd_weights(), path)
    return path


def save(model: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    for name, parameter in model.named_parameters():  # else all images are nearly one to so small a model
        with torch.no_grad():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(5)
    model.save_pretrained(folder)
