"""Every encoder against the same network computed by hand, on pixels prepared by hand."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from style_aligned.evaluation.encoders import ImageEncoder, load_clip, load_csd, load_dino
from tests.evaluation.tiny import CLIP_MEAN, CLIP_STD, PATCH, SIZE, csd_weights

LOADERS = {"clip": load_clip, "dino": load_dino, "csd": load_csd}


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


IMAGES = [picture(0), picture(1, (32, 32)), picture(2, (33, 70))]


def to_pixels(image: Image.Image, mean: list[float], std: list[float]) -> Tensor:
    pixels = torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def clip_pixels(images: list[Image.Image]) -> Tensor:
    """The shorter side to the size, and the middle of it: as OpenAI's CLIP takes images."""
    prepared: list[Tensor] = []
    for image in images:
        short = min(image.size)
        width, height = (int(SIZE * side / short) for side in image.size)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        prepared.append(to_pixels(scaled.crop((left, top, left + SIZE, top + SIZE)), CLIP_MEAN, CLIP_STD))
    return torch.cat(prepared)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(-2, -3)


def attend(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    return scaled_dot_product_attention(heads(q, count), heads(k, count), heads(v, count)).transpose(1, 2).flatten(2)


def affine(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def openai_vision(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The visual part of OpenAI's CLIP without its head, by its own names."""
    x = conv2d(pixels, weights["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat((weights["class_embedding"].expand(len(x), 1, -1), x), dim=1) + weights["positional_embedding"]
    x = norm(weights, "ln_pre", x)
    for block in ("transformer.resblocks.0", "transformer.resblocks.1"):
        y = norm(weights, f"{block}.ln_1", x)
        qkv = linear(y, weights[f"{block}.attn.in_proj_weight"], weights[f"{block}.attn.in_proj_bias"])
        x = x + affine(weights, f"{block}.attn.out_proj", attend(*qkv.chunk(3, dim=-1), count=2))
        y = affine(weights, f"{block}.mlp.c_fc", norm(weights, f"{block}.ln_2", x))
        x = x + affine(weights, f"{block}.mlp.c_proj", y * torch.sigmoid(1.702 * y))
    return norm(weights, "ln_post", x[:, 0])


def huggingface_clip(weights: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
    for block in (f"{prefix}.encoder.layers.0", f"{prefix}.encoder.layers.1"):
        y = norm(weights, f"{block}.layer_norm1", x)
        q, k, v = (heads(affine(weights, f"{block}.self_attn.{name}_proj", y), 2) for name in "qkv")
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + affine(weights, f"{block}.self_attn.out_proj", attended)
        y = affine(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.layer_norm2", x))
        x = x + affine(weights, f"{block}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    return x


def expect_directions(encoded: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(encoded, normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)
    similarities = encoded @ encoded.T
    torch.testing.assert_close(similarities.diagonal(), torch.ones(len(encoded)))
    assert similarities.fill_diagonal_(0).abs().max() < 0.999  # images differ to it


def test_csd_is_openais_vision_transformer_with_a_head_for_styles(encoder_files: dict[str, str]) -> None:
    weights = csd_weights()
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    features = openai_vision(backbone, clip_pixels(IMAGES))
    encoder = load_csd(encoder_files["csd"])
    expect_directions(encoder.images(IMAGES), features @ weights["last_layer_style"])


def test_csd_in_a_folder_and_from_a_parallel_training(encoder_files: dict[str, str], tmp_path: Path) -> None:
    expected = load_csd(encoder_files["csd"]).images(IMAGES)
    save_file({f"module.{name}": tensor for name, tensor in csd_weights().items()}, tmp_path / "model.safetensors")
    torch.testing.assert_close(load_csd(str(tmp_path)).images(IMAGES), expected)


def test_dino_is_the_class_token_of_the_last_layer(encoder_files: dict[str, str]) -> None:
    weights = load_file(Path(encoder_files["dino"]) / "model.safetensors")
    names = {name.replace("encoder.layer.", "layers."): tensor for name, tensor in weights.items()}
    del weights
    resized = [image.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in IMAGES]
    pixels = torch.cat([to_pixels(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for image in resized])
    patches = "embeddings.patch_embeddings.projection"
    x = conv2d(pixels, names[f"{patches}.weight"], names[f"{patches}.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat((names["embeddings.cls_token"].expand(3, 1, -1), x), dim=1) + names["embeddings.position_embeddings"]
    for block in ("layers.0", "layers.1"):
        y = norm(names, f"{block}.layernorm_before", x, 1e-12)
        q, k, v = (affine(names, f"{block}.attention.attention.{name}", y) for name in ("query", "key", "value"))
        x = x + affine(names, f"{block}.attention.output.dense", attend(q, k, v, count=2))
        y = affine(names, f"{block}.intermediate.dense", norm(names, f"{block}.layernorm_after", x, 1e-12))
        x = x + affine(names, f"{block}.output.dense", gelu(y))
    expect_directions(load_dino(encoder_files["dino"]).images(IMAGES), norm(names, "layernorm", x[:, 0], 1e-12))


def test_clip_of_images(encoder_files: dict[str, str]) -> None:
    weights = load_file(Path(encoder_files["clip"]) / "model.safetensors")
    tower = "vision_model"
    x = conv2d(clip_pixels(IMAGES), weights[f"{tower}.embeddings.patch_embedding.weight"], stride=PATCH)
    x = torch.cat(
        (weights[f"{tower}.embeddings.class_embedding"].expand(3, 1, -1), x.flatten(2).transpose(1, 2)), dim=1
    )
    x = norm(weights, f"{tower}.pre_layrnorm", x + weights[f"{tower}.embeddings.position_embedding.weight"])
    x = norm(weights, f"{tower}.post_layernorm", huggingface_clip(weights, tower, x)[:, 0])
    expect_directions(load_clip(encoder_files["clip"]).images(IMAGES), x @ weights["visual_projection.weight"].T)


def test_clip_of_texts(encoder_files: dict[str, str]) -> None:
    """Each alone by hand, and together by the encoder, which pads them."""
    import json

    weights = load_file(Path(encoder_files["clip"]) / "model.safetensors")
    vocabulary = json.loads((Path(encoder_files["clip"]) / "vocab.json").read_text())
    texts = [["a</w>", "fox</w>"], ["a</w>", "red</w>", "car</w>"], ["umbrella</w>"]]
    expected: list[Tensor] = []
    for tokens in texts:
        ids = torch.tensor([vocabulary[token] for token in ("<|startoftext|>", *tokens, "<|endoftext|>")])
        x = weights["text_model.embeddings.token_embedding.weight"][ids][None]
        x = x + weights["text_model.embeddings.position_embedding.weight"][: len(ids)]
        mask = torch.ones(len(ids), len(ids)).tril().bool()
        x = norm(weights, "text_model.final_layer_norm", huggingface_clip(weights, "text_model", x, mask))
        expected.append(x[:, -1] @ weights["text_projection.weight"].T)
    encoded = load_clip(encoder_files["clip"]).texts(["a fox", "a red car", "umbrella"])
    expect_directions(encoded, torch.cat(expected))


def test_long_texts_are_cut_off(encoder_files: dict[str, str]) -> None:
    assert load_clip(encoder_files["clip"]).texts(["a fox " * 100]).isfinite().all()


@pytest.mark.parametrize("name", LOADERS)
def test_loading_writes_nothing_to_the_screen(
    name: str, encoder_files: dict[str, str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        encoder: ImageEncoder = LOADERS[name](encoder_files[name])
    assert encoder.name == encoder_files[name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", LOADERS)
def test_models_that_cannot_be_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    folder.mkdir()
    for content in (None, b"no safetensors at all"):
        if content is not None:
            (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(
            ValueError, match=f"expected .* in safetensors at {folder}, which could not be loaded: "
        ) as e:
            LOADERS[name](str(folder))
        assert "\n" not in str(e.value)


def test_weights_of_another_network_are_no_csd(tmp_path: Path) -> None:
    weights = csd_weights()
    weights["backbone.mystery.weight"] = torch.ones(1)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"which could not be loaded: unknown weights mystery\.weight"):
        load_csd(str(tmp_path))


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"expected transformers to be installed.*'style-aligned\[metrics\]'"):
        load_dino()
