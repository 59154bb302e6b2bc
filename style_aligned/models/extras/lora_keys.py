"""LoRA files in the names of kohya's scripts, of diffusers and of PEFT: which tensor belongs to which layer."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import FLOATS, StoredTensor, read_header
from style_aligned.models.checkpoints.keys import UNET, unet_modules
from style_aligned.models.checkpoints.settings import read_json

Role = Literal["down", "mid", "up", "alpha"]
NOT_DONE = (
    (r"hada_w", "a LoHa"),
    (r"lokr_w", "a LoKr"),
    (r"\.dora_scale$|lora_magnitude_vector", "a DoRA"),
    (r"\.oft_|oft_blocks", "an OFT"),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA"),
    (r"\.on_input$", "an (IA)³"),
    (r"\.(diff|diff_b|w_norm|b_norm|lora_B\.bias)$", "a LoRA with full differences of weights or biases"),
    (r"^bundle_emb\.", "a LoRA with embeddings (textual inversion)"),
)
ROLES: dict[str, Role] = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}
SUFFIX = re.compile(
    r"(?:(?:\.|_)lora|\.lora_linear_layer)(?:[._])(?P<role>down|up|mid|A|B)(?:\.[\w-]+)?\.weight$|\.(?P<alpha>alpha)$"
)
BLOCKS = (  # of a U-Net, where a file has no other part
    "down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|time_embed(ding)?|add_embedding|label_emb|"
    "conv_in|conv_out|out"
)
PREFIXES = (
    (r"^(base_model\.model\.)?(lora_unet[._]|unet\.)", "unet"),
    (r"^(base_model\.model\.)?(lora_te[._]|lora_te1[._]|text_encoder\.)", "text_encoder"),
    (r"^(base_model\.model\.)?(lora_te2[._]|text_encoder_2\.)", "text_encoder_2"),
    (rf"^(base_model\.model\.)?(?=({BLOCKS})[._])", "unet"),
)
OLD_NAMES = (  # of diffusers' first attention processors, whose layers have no names of their own
    (r"_processor(?=_)", ""),
    (r"_lora$", ""),
    (r"_to_out$", "_to_out_0"),
    (r"(self_attn)_to_([qkv])$", r"\1_\2_proj"),
    (r"(self_attn)_to_out(_0)?$", r"\1_out_proj"),
    (r"^text_model_", ""),
)


@dataclass
class LoraWeights:
    """The change of one layer.

    Attributes:
        tensors: Where its tensors lie: down, up, and mid where there is one.
        alpha: The number that, divided by the rank, scales it. None means the rank.
        is_rank_stabilised: Whether it is divided by the root of the rank.
    """

    tensors: dict[Role, StoredTensor] = field(default_factory=dict[Role, StoredTensor])
    alpha: float | None = None
    is_rank_stabilised: bool = False

    @property
    def rank(self) -> int:
        return self.tensors["down"].shape[0]

    def read(self) -> tuple[Tensor, Tensor]:
        """Read the two matrices or convolutions in float32, with the scale in the second."""
        down, up = self.tensors["down"].read().float(), self.tensors["up"].read().float()
        if "mid" in self.tensors:  # a convolution between two by one pixel: the first two are one
            down = torch.einsum("sr...,ri->si...", self.tensors["mid"].read().float(), down.flatten(start_dim=1))
        if self.alpha is not None:
            up = up * (self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilised else self.rank))
        return down, up


def layer_names(architecture: Architecture) -> dict[tuple[str, str], str]:
    """Return the paths of all layers of a model in Refiners, by the part and the name that LoRA files can give them.

    Names are those of diffusers and of single files, with underscores for dots, as kohya's scripts write them.
    """
    paths: dict[tuple[str, str], str] = {}
    for names in unet_modules(architecture.unet):
        for name, part in ((names.diffusers, UNET.diffusers), (names.original, UNET.original)):
            paths["unet", name.removeprefix(f"{part}.").replace(".", "_")] = names.refiners
    for encoder in architecture.text_encoders:
        for refiners, name in encoder.modules():
            paths[encoder.diffusers, name.replace(".", "_")] = refiners
    return paths


def read_lora(path: Path, architecture: Architecture) -> dict[str, LoraWeights]:
    """Find the weights of a LoRA for the layers of a model.

    Args:
        path: The file, or a folder with one.
        architecture: What the model is made of.

    Returns:
        The weights, by the path of the layer in Refiners.

    Raises:
        CheckpointError: If it is no LoRA, of a kind that is not done here, for another model, or damaged.
    """
    file = _find_file(path)
    stored, metadata = read_header(file)
    for pattern, what in NOT_DONE:
        if key := next((tensor.key for tensor in stored if re.search(pattern, tensor.key)), None):
            raise CheckpointError(f"{file}: {what} (it holds {key!r}), which is not supported; expected a plain LoRA")
    paths, found = layer_names(architecture), defaultdict[str, LoraWeights](LoraWeights)
    unknown: list[str] = []
    count = 0
    for tensor in stored:
        part, name, role = _parse(tensor.key)
        if role is None:
            unknown.append(tensor.key)
            continue
        count += 1
        layer = paths.get((part, name))
        if layer is None:
            if not architecture.is_unused(f"{part}.{_dotted_layer(name)}.weight"):
                unknown.append(tensor.key)
        elif role == "alpha":
            found[layer].alpha = float(tensor.read())
        else:
            found[layer].tensors[role] = tensor
    if not count:
        raise CheckpointError(f"{file}: no LoRA (its first tensor is {stored[0].key if stored else None!r})")
    if unknown:
        made_for = _describe_base(metadata)
        raise CheckpointError(
            f"{file}: {len(unknown)} of {len(stored)} tensors fit no layer of {architecture.name}, the first"
            f" {unknown[0]!r}{made_for}"
        )
    _apply_settings(found, file, metadata)
    for layer, weights in found.items():
        _check(file, layer, weights)
    return dict(found)


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or folder; expected a LoRA")
        return path
    names = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    file = next((path / name for name in names if (path / name).is_file()), None)
    files = [file] if file is not None else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{path}: a folder with {len(files)} .safetensors files; give the path of a LoRA")
    return files[0]


def _parse(key: str) -> tuple[str, str, Role | None]:
    """Split a key into the part of the model, the name of the layer and what the tensor is to it."""
    match = SUFFIX.search(key)
    if match is None:
        return "", key, None
    role: Role = "alpha" if match["alpha"] else ROLES[match["role"]]
    name = key[: match.start()]
    for pattern, part in PREFIXES:
        if re.match(pattern, name):
            name = re.sub(pattern, "", name).replace(".", "_")
            for old, new in OLD_NAMES:
                name = re.sub(old, new, name)
            return part, name, role
    return "", name, None


def _dotted_layer(name: str) -> str:
    """Put back the dots around the number of a layer of a text encoder."""
    return re.sub(r"^encoder_layers_(\d+)_", r"encoder.layers.\1.", name)


def _describe_base(metadata: Mapping[str, str]) -> str:
    for key in ("ss_base_model_version", "modelspec.architecture"):
        if metadata.get(key):
            return f"; by its metadata it is for {metadata[key]!r}"
    return ""


def _apply_settings(found: Mapping[str, LoraWeights], file: Path, metadata: Mapping[str, str]) -> None:
    """Read alpha from the settings that PEFT and diffusers write, where the file has no tensors of it."""
    settings: dict[str, Any] = read_json(file.with_name("adapter_config.json"))
    try:
        described = cast(dict[str, Any], json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except ValueError as error:
        raise CheckpointError(f"{file}: lora_adapter_metadata: not JSON: {error}") from error
    for layer, weights in found.items():
        part = "unet" if layer.startswith("unet.") else "text_encoder"
        if "CLIPTextEncoderG" in layer:
            part = "text_encoder_2"
        own = {key.removeprefix(f"{part}."): value for key, value in described.items() if key.startswith(f"{part}.")}
        own = own or settings
        if weights.alpha is None and isinstance(own.get("lora_alpha"), int | float):
            if own.get("use_dora") or own.get("alpha_pattern"):
                what = "DoRA" if own.get("use_dora") else "an alpha for each layer (alpha_pattern)"
                raise CheckpointError(f"{file}: its settings say {what}, which is not supported")
            weights.alpha = float(own["lora_alpha"])
            weights.is_rank_stabilised = bool(own.get("use_rslora"))


def _check(file: Path, layer: str, weights: LoraWeights) -> None:
    missing = [role for role in ("down", "up") if role not in weights.tensors]
    if missing:
        raise CheckpointError(f"{file}: the layer {layer!r} has no {missing[0]!r} weights")
    down, up = weights.tensors["down"], weights.tensors["up"]
    if len(down.shape) not in (2, 4) or len(up.shape) != len(down.shape) or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{file}: {down.key!r} of shape {down.shape} and {up.key!r} of shape {up.shape} have no rank in common"
        )
    for tensor in weights.tensors.values():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{file}: {tensor.key!r} holds {str(tensor.dtype).removeprefix('torch.')} numbers")
