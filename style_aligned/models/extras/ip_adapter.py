"""IP-Adapters as they are published, as Refiners' own adapters."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refiners.fluxion import layers as fl
from refiners.fluxion.adapters.adapter import Adapter
from refiners.fluxion.layers.attentions import ScaledDotProductAttention
from refiners.foundationals.clip.image_encoder import CLIPImageEncoder
from refiners.foundationals.latent_diffusion import (
    SD1IPAdapter,
    SDXLIPAdapter,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.image_prompt import (
    CrossAttentionAdapter,
    ImageCrossAttention,
    ImageProjection,
    PerceiverResampler,
)
from torch import Tensor

from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor, read_header
from style_aligned.models.checkpoints.keys import unet_modules
from style_aligned.models.checkpoints.sources import expand_home
from style_aligned.models.extras.image_encoder import load_image_encoder
from style_aligned.models.extras.lora import architecture_of

HEAD_DIM = 64  # of the resamplers of all published ones
EXPECTED = "expected ip-adapter_….safetensors or ip-adapter-plus_….safetensors"
LATENTS = "LatentsToken.Parameter.weight"
PROJECTION = {
    "proj": "Linear",
    "norm": "LayerNorm",
    "proj_in": "Linear_1",
    "proj_out": "Linear_2",
    "norm_out": "LayerNorm",
}
RESAMPLER_LAYER = {
    "0.norm1": "Residual_1.PerceiverAttention.Distribute.LayerNorm_1",
    "0.norm2": "Residual_1.PerceiverAttention.Distribute.LayerNorm_2",
    "0.to_q": "Residual_1.PerceiverAttention.Parallel.Chain_2.Linear",
    "0.to_kv": "Residual_1.PerceiverAttention.Parallel.Chain_1.Linear",
    "0.to_out": "Residual_1.PerceiverAttention.Linear",
    "1.0": "Residual_2.LayerNorm",
    "1.1": "Residual_2.FeedForward.Linear_1",
    "1.3": "Residual_2.FeedForward.Linear_2",
}


class ImagePromptAttention(fl.Sum, Adapter[ScaledDotProductAttention]):
    """The attention to the text, and that to the image prompt.

    It stands where the attention to the text stood, between projections that stay where they are, and so do their
    LoRAs. Refiners' `CrossAttentionAdapter` has a copy of the projections instead, as they were when it was made: LoRAs
    that are injected later are not in it.

    Receives:
        (Float[Tensor, "batch targets dim"]): The queries.
        (Float[Tensor, "batch tokens dim"]): The keys of the text.
        (Float[Tensor, "batch tokens dim"]): The values of the text.

    Returns:
        (Float[Tensor, "batch targets dim"]): The sum of both attentions.
    """

    def __init__(self, adapter: CrossAttentionAdapter) -> None:
        """Take the attention to the image prompt out of Refiners' adapter.

        Args:
            adapter: The adapter of a cross-attention, not injected. It is of no use afterwards.
        """
        self._attention = [adapter.target]
        target, image = adapter.target.ensure_find(ScaledDotProductAttention), adapter.image_cross_attention
        adapter.ensure_find_parent(image).remove(image)
        with self.setup_adapter(target):
            super().__init__(target, image)

    def inject(self, parent: fl.Chain | None = None) -> "ImagePromptAttention":
        """Put it in place of the attention to the text."""
        return super().inject(self._attention[0] if parent is None else parent)

    @property
    def scale(self) -> float:
        """How strong the image prompt is."""
        return self.ensure_find(ImageCrossAttention).scale

    @scale.setter
    def scale(self, value: float) -> None:
        self.ensure_find(ImageCrossAttention).scale = value


def load_ip_adapter(
    model: StableDiffusion_XL | StableDiffusion_1,
    path: str | Path,
    *,
    image_encoder: CLIPImageEncoder | str | Path,
    scale: float = 1.0,
) -> SDXLIPAdapter | SD1IPAdapter:
    """Load an IP-Adapter for a model. It is not injected.

    Args:
        model: The model.
        path: The file: of IP-Adapter or of IP-Adapter Plus.
        image_encoder: The image encoder that it was trained with, or where that lies.
        scale: How strong the image prompt is.

    Returns:
        Refiners' adapter: `inject()` it, and give it the image with `set_clip_image_embedding`.

    Raises:
        CheckpointError: If it is of another kind, for another model or another image encoder.
    """
    file, architecture = expand_home(path), architecture_of(model)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; {EXPECTED}")
    tensors = {tensor.key: tensor for tensor in read_header(file)[0]}
    if "image_proj.latents" not in tensors and "image_proj.proj.weight" not in tensors:
        raise CheckpointError(f"{file}: no IP-Adapter of a known kind (such as FaceID's); {EXPECTED}")
    if not isinstance(image_encoder, CLIPImageEncoder):
        image_encoder = load_image_encoder(image_encoder, device=model.device, dtype=model.dtype)

    is_fine_grained = "image_proj.latents" in tensors
    key = "image_proj.proj_in.weight" if is_fine_grained else "image_proj.proj.weight"
    given, width = image_encoder.embedding_dim if is_fine_grained else image_encoder.output_dim, tensors[key].shape[1]
    if given != width:
        raise CheckpointError(f"{file}: it takes images of {width} features; expected an encoder of that, got {given}")
    weights = dict(_attention_weights(file, tensors, architecture))
    text_width = model.unet.state_dict()[_first_cross_attention(architecture)].shape[1]
    if (width := next(iter(weights.values())).shape[1]) != text_width:
        raise CheckpointError(
            f"{file}: an IP-Adapter for text embeddings of width {width}; expected {text_width}, as of"
            f" {architecture.name}"
        )
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    projection = _build_resampler(tensors, options) if is_fine_grained else _build_projection(tensors, options)
    weights |= {
        f"image_proj.{_projection_key(key.removeprefix('image_proj.'))}": _with_shape(key, tensor.read())
        for key, tensor in tensors.items()
        if key.startswith("image_proj.")
    }
    weights = {key: values.to(**options) for key, values in weights.items()}
    kind: Any = SDXLIPAdapter if isinstance(model, StableDiffusion_XL) else SD1IPAdapter
    adapter = kind(
        target=model.unet,
        clip_image_encoder=image_encoder,
        image_proj=projection,
        scale=scale,
        fine_grained=is_fine_grained,
        weights=weights,
    )
    adapter.sub_adapters = [ImagePromptAttention(cross_attention) for cross_attention in adapter.sub_adapters]
    return adapter


def _cross_attentions(architecture: Architecture) -> tuple[int, int, int]:
    """Count the cross-attentions on the way down, in the middle and on the way up."""
    structure = architecture.unet
    return 2 * sum(structure.depths), structure.middle_depth, 3 * sum(structure.depths)


def _first_cross_attention(architecture: Architecture) -> str:
    """Return the key of the first layer that makes keys of text embeddings."""
    targets = (names.refiners for names in unet_modules(architecture.unet) if names.diffusers.endswith("attn2.to_k"))
    return f"{next(targets).removeprefix('unet.')}.weight"


def _attention_weights(
    file: Path, tensors: Mapping[str, StoredTensor], architecture: Architecture
) -> Iterator[tuple[str, Tensor]]:
    """Read the keys' and values' layers by Refiners' numbers.

    The files count all attentions, the self-attentions among them, down, up and then in the middle.
    """
    down, middle, up = _cross_attentions(architecture)
    order = [*range(down), *range(down + up, down + up + middle), *range(down, down + up)]
    expected = {f"ip_adapter.{2 * number + 1}.to_{letter}_ip.weight" for number in order for letter in "kv"}
    found = {key for key in tensors if key.startswith("ip_adapter.")}
    if found != expected:
        different = sorted(found ^ expected)
        raise CheckpointError(
            f"{file}: {len(found)} tensors for attentions, {len(expected)} are expected for {architecture.name};"
            f" the first that differs is {different[0]!r}"
        )
    for index, number in enumerate(order):
        for letter in "kv":
            values = tensors[f"ip_adapter.{2 * number + 1}.to_{letter}_ip.weight"].read()
            yield f"ip_adapter.{index:03d}.to_{letter}_ip.weight", values


def _build_projection(tensors: Mapping[str, StoredTensor], options: dict[str, Any]) -> ImageProjection:
    out, width = tensors["image_proj.proj.weight"].shape
    text_width = tensors["image_proj.norm.weight"].shape[0]
    return ImageProjection(width, text_width, num_tokens=out // text_width, **options)


def _build_resampler(tensors: Mapping[str, StoredTensor], options: dict[str, Any]) -> PerceiverResampler:
    layers = {match[1] for key in tensors if (match := re.match(r"image_proj\.layers\.(\d+)\.", key))}
    latents = tensors["image_proj.latents"].shape
    return PerceiverResampler(
        latents_dim=latents[-1],
        num_attention_layers=len(layers),
        num_attention_heads=tensors["image_proj.layers.0.0.to_q.weight"].shape[0] // HEAD_DIM,
        head_dim=HEAD_DIM,
        num_tokens=latents[-2],
        input_dim=tensors["image_proj.proj_in.weight"].shape[1],
        output_dim=tensors["image_proj.proj_out.weight"].shape[0],
        **options,
    )


def _projection_key(key: str) -> str:
    """Name a tensor of the projection as Refiners does."""
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key):
        layer = f"Transformer.TransformerLayer_{int(match[1]) + 1}"
        return f"{layer}.{RESAMPLER_LAYER[match[2]]}.{match[3]}"
    if key == "latents":
        return LATENTS
    name, _, parameter = key.rpartition(".")
    return f"{PROJECTION[name]}.{parameter}"


def _with_shape(key: str, values: Tensor) -> Tensor:
    return values[0] if key == "image_proj.latents" and values.ndim == 3 else values
