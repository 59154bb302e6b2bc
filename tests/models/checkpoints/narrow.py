"""Models with a fraction of the width: what diffusers and we build alike.

SDXL is shallow too, but for `build_narrow_xl`: the structure is the real one, with fewer transformers and layers of the
second text encoder.
"""

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import unet as sdxl_unet
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.unet import TextTimeEmbedding
from torch.nn import Parameter

from style_aligned.models.checkpoints.architectures import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_XL,
    Architecture,
    build_stable_diffusion_1,
    build_stable_diffusion_xl,
)

DEPTH, ENCODER_LAYERS = 3, 4
"""In place of the 10 transformers of SDXL's inner levels, and of the 32 layers of its second text encoder."""
CHANNELS = {width: width // 10 for width in (320, 640, 960, 1280, 1920, 2560, 5120, 10240)}
UNET_XL_WIDTHS = {**CHANNELS, 2048: 96, 2816: 64 + 6 * 8}
UNET_1_WIDTHS = {**CHANNELS, 768: 32}
AUTOENCODER_WIDTHS = {128: 32, 256: 64, 512: 128}
TEXT_L_WIDTHS = {768: 32, 3072: 64}
TEXT_G_WIDTHS = {1280: 64, 5120: 128}


def narrow(chain: fl.Chain, widths: dict[int, int], heads: dict[int, int] | None = None) -> None:
    """Give every layer a narrower weight, on the meta device; nothing else about the chain changes."""
    for module in chain.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = [widths.get(size, size) for size in parameter.shape]
            setattr(module, name, Parameter(torch.empty(shape, device="meta")))
        if isinstance(module, fl.LayerNorm):
            module.normalized_shape = tuple(widths.get(size, size) for size in module.normalized_shape)
        elif isinstance(module, fl.GroupNorm):
            module.channels = widths.get(module.channels, module.channels)
        elif isinstance(module, fl.Embedding):
            module.embedding_dim = module.weight.shape[1]
        elif isinstance(module, fl.Reshape):
            module.shape = tuple(widths.get(size, size) for size in module.shape)
        elif isinstance(module, fl.ScaledDotProductAttention | fl.Attention):
            module.num_heads = (heads or {}).get(module.num_heads, module.num_heads)
        elif isinstance(module, TextTimeEmbedding):
            module.time_ids_embedding_dim = 8
        elif hasattr(module, "sinusoidal_embedding_dim"):
            object.__setattr__(module, "sinusoidal_embedding_dim", 32)


def build_narrow_xl() -> StableDiffusion_XL:
    model = build_stable_diffusion_xl()
    narrow(model.unet, UNET_XL_WIDTHS, heads={10: 2, 20: 4})
    narrow(model.lda, AUTOENCODER_WIDTHS)
    narrow(model.clip_text_encoder.layer(("Parallel", "CLIPTextEncoderL"), fl.Chain), TEXT_L_WIDTHS, heads={12: 2})
    pooled = model.clip_text_encoder.layer(("Parallel", "TextEncoderWithPooling"), fl.Chain)
    narrow(pooled, TEXT_G_WIDTHS, heads={20: 2})
    return model


@contextmanager
def shallow() -> Generator[None, None, None]:
    """Have Refiners build fewer layers."""

    def build_attention(*, num_attention_layers: int, **arguments: Any) -> fl.Chain:
        return cross_attention(num_attention_layers=min(num_attention_layers, DEPTH), **arguments)

    def build_encoder(encoder: CLIPTextEncoder, *, num_layers: int, **arguments: Any) -> None:
        initialize(encoder, num_layers=ENCODER_LAYERS if num_layers == 32 else num_layers, **arguments)

    cross_attention, initialize = sdxl_unet.SDXLCrossAttention, CLIPTextEncoder.__init__
    with (
        mock.patch.object(sdxl_unet, "SDXLCrossAttention", build_attention),
        mock.patch.object(CLIPTextEncoder, "__init__", build_encoder),
    ):
        yield


def build_shallow_xl() -> StableDiffusion_XL:
    with shallow():
        return build_narrow_xl()


def build_narrow_1() -> StableDiffusion_1:
    model = build_stable_diffusion_1()
    narrow(model.unet, UNET_1_WIDTHS)
    narrow(model.lda, AUTOENCODER_WIDTHS)
    narrow(model.clip_text_encoder, TEXT_L_WIDTHS, heads={12: 2})
    return model


NARROW_XL = dataclasses.replace(STABLE_DIFFUSION_XL, build=build_narrow_xl, text_width=96)
SHALLOW_XL = dataclasses.replace(
    STABLE_DIFFUSION_XL,
    build=build_shallow_xl,
    text_width=96,
    unet=dataclasses.replace(STABLE_DIFFUSION_XL.unet, depths=(0, 2, DEPTH), middle_depth=DEPTH),
    text_encoders=(
        STABLE_DIFFUSION_XL.text_encoders[0],
        dataclasses.replace(STABLE_DIFFUSION_XL.text_encoders[1], layers=ENCODER_LAYERS),
    ),
)
NARROW_1 = dataclasses.replace(STABLE_DIFFUSION_1, build=build_narrow_1, text_width=32)
NARROW: dict[str, Architecture] = {"xl": SHALLOW_XL, "1": NARROW_1, "deep xl": NARROW_XL}

# The settings of the published models, as diffusers and transformers spell them.
UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "xl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    "1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "sample_size": 64,
    },
}
NARROW_UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "deep xl": {
        **UNET_CONFIGS["xl"],
        "block_out_channels": (32, 64, 128),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 96,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 112,
        "sample_size": 8,
    },
    "1": {
        **UNET_CONFIGS["1"],
        "block_out_channels": (32, 64, 128, 128),
        "cross_attention_dim": 32,
        "sample_size": 8,
    },
}
NARROW_UNET_CONFIGS["xl"] = {**NARROW_UNET_CONFIGS["deep xl"], "transformer_layers_per_block": (1, 2, DEPTH)}
AUTOENCODER_CONFIG: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
NARROW_AUTOENCODER_CONFIG = {**AUTOENCODER_CONFIG, "block_out_channels": (32, 64, 128, 128), "sample_size": 64}
SCALING_FACTORS = {"xl": 0.13025, "deep xl": 0.13025, "1": 0.18215}
TEXT_L_CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
}
TEXT_G_CONFIG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "vocab_size": 49408,
}
NARROW_TEXT_L_CONFIG = {**TEXT_L_CONFIG, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
NARROW_TEXT_G_CONFIG = {
    **TEXT_G_CONFIG,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "projection_dim": 64,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
