"""CLIP's image encoder from the files of transformers, for image prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refiners.foundationals.clip.image_encoder import CLIPImageEncoder
from torch import device as Device, dtype as DType

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor, read_header
from style_aligned.models.checkpoints.hub import download_image_encoder, is_hub_name
from style_aligned.models.checkpoints.initialization import NoInitialization
from style_aligned.models.checkpoints.settings import read_json
from style_aligned.models.checkpoints.sources import expand_home
from style_aligned.models.checkpoints.text_keys import transformer_layer

HEADS = 16  # of the published encoders: ViT-H and ViT-bigG


def load_image_encoder(
    path: str | Path, *, device: Device | str = "cpu", dtype: DType | None = None
) -> CLIPImageEncoder:
    """Load an image encoder.

    Args:
        path: The folder, the file `model.safetensors` in it, or a name on the hub: of a repository, or of a folder in
            one, such as `"h94/IP-Adapter/models/image_encoder"`.
        device: The PyTorch device to use.
        dtype: The type of its weights; None leaves them in that of the file.

    Raises:
        CheckpointError: If it is none, with what is missing.
    """
    file = expand_home(path)
    if not file.exists() and is_hub_name("/".join(str(path).split("/")[:2])):
        file = download_image_encoder(str(path))
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected an image encoder of transformers")
    tensors = {tensor.key: tensor for tensor in read_header(file)[0]}
    config: dict[str, Any] = read_json(file.with_name("config.json"))
    config = config.get("vision_config", config)
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise CheckpointError(f"{file}: an image encoder with the activation {activation!r}; expected 'gelu'")
    try:
        patches = tensors["vision_model.embeddings.patch_embedding.weight"].shape
        positions = tensors["vision_model.embeddings.position_embedding.weight"].shape[0]
        feedforward_dim = tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
        output_dim = tensors["visual_projection.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{file}: no image encoder: it has no {error}") from None
    prefix = "vision_model.encoder.layers."
    layers = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix))
    with NoInitialization():
        encoder = CLIPImageEncoder(
            image_size=patches[2] * round((positions - 1) ** 0.5),
            embedding_dim=patches[0],
            output_dim=output_dim,
            patch_size=patches[2],
            num_layers=layers,
            num_attention_heads=config.get("num_attention_heads", HEADS),
            feedforward_dim=feedforward_dim,
            layer_norm_eps=config.get("layer_norm_eps", 1e-5),
            device="meta",
        )
    encoder.load_state_dict(dict(_state(file, tensors, layers, list(encoder.state_dict()))), assign=True)
    return encoder.to(device=device, dtype=dtype)


def _state(file: Path, tensors: dict[str, StoredTensor], layers: int, targets: list[str]) -> Iterator[tuple[str, Any]]:
    modules = {
        "ViTEmbeddings.Concatenate.ClassToken.Parameter": "vision_model.embeddings.class_embedding",
        "ViTEmbeddings.Concatenate.Chain.PatchEncoder.Conv2d": "vision_model.embeddings.patch_embedding",
        "ViTEmbeddings.Residual.PositionalEncoder.Embedding": "vision_model.embeddings.position_embedding",
        "LayerNorm_1": "vision_model.pre_layrnorm",  # so it is spelled
        "LayerNorm_2": "vision_model.post_layernorm",
        "Linear": "visual_projection",
    }
    for i in range(layers):
        layer = "Chain.TransformerLayer" + (f"_{i + 1}" if layers > 1 else "")
        modules |= {refiners: f"vision_model.{name}" for refiners, name in transformer_layer(layer, i)}
    for target in targets:
        module, _, parameter = target.rpartition(".")
        key = modules[module] if module.endswith("ClassToken.Parameter") else f"{modules[module]}.{parameter}"
        if key not in tensors:
            raise CheckpointError(f"{file}: the tensor {key!r} is missing; this is no complete image encoder")
        values = tensors[key].read()
        yield target, values[None] if module.endswith("ClassToken.Parameter") else values
