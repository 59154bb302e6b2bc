"""The weights of CSD, under the names of OpenAI's CLIP, as a model of transformers."""

import math
import re
from pathlib import Path
from typing import Any, cast

import torch
from refiners.fluxion.utils import load_from_safetensors
from safetensors import safe_open
from torch import Tensor

HEAD = "last_layer_style"
HEAD_SIZE = 64  # the channels of an attention head in all of OpenAI's models
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BLOCKS = "vision_model.encoder.layers"
NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre": "vision_model.pre_layrnorm",  # the misspelling is transformers'
    "ln_post": "vision_model.post_layernorm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def is_csd(path: Path) -> bool:
    """Tell whether a safetensors file holds CSD under the names of its authors."""
    with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
        handle = cast(Any, file)
        return HEAD in {name.removeprefix("module.") for name in handle.keys()}  # noqa: SIM118


def load_csd_model(path: Path) -> tuple[Any, Any]:
    """Load CSD. Its sizes follow from the weights.

    Args:
        path: The safetensors file.

    Returns:
        A `CLIPVisionModelWithProjection` whose projection is the head for styles, and its image processor.

    Raises:
        ValueError: If the weights are not those of such a model.
    """
    import transformers as library

    transformers: Any = library  # whose types are unknown
    weights = {name.removeprefix("module."): tensor.float() for name, tensor in load_from_safetensors(path).items()}
    head = weights[HEAD]
    backbone = {
        name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")
    }
    backbone.pop("proj", None)  # CLIP's own head, which CSD does not use
    patches, width = backbone["conv1.weight"], len(backbone["class_embedding"])
    size = patches.shape[-1] * math.isqrt(len(backbone["positional_embedding"]) - 1)
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=len(backbone["transformer.resblocks.0.mlp.c_fc.weight"]),
            num_hidden_layers=1
            + max(int(match[1]) for name in backbone if (match := re.search(r"blocks\.(\d+)", name))),
            num_attention_heads=width // HEAD_SIZE,
            patch_size=patches.shape[-1],
            image_size=size,
            projection_dim=head.shape[1],
            hidden_act="quick_gelu",
        )
    )
    model.load_state_dict({**_rename(backbone), "visual_projection.weight": head.T.contiguous()}, strict=True)
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = processor_class(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=MEAN, image_std=STD
    )
    return model, processor


def _rename(backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in backbone.items():
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        prefix, inner = (f"{BLOCKS}.{block[1]}.", block[2]) if block else ("", name)
        if match := re.fullmatch(r"attn\.in_proj_(weight|bias)", inner):
            for part, rows in zip("qkv", torch.chunk(tensor, 3), strict=True):
                renamed[f"{prefix}self_attn.{part}_proj.{match[1]}"] = rows.contiguous()
            continue
        known = next((key for key in NAMES if inner == key or inner.startswith(f"{key}.")), None)
        if known is None:
            raise ValueError(f"unknown weights {name}")
        renamed[f"{prefix}{NAMES[known]}{inner.removeprefix(known)}"] = tensor
    return renamed
