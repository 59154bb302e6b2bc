"""What is no model that can be loaded: said for what it is, with what to do."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from style_aligned.models.checkpoints.architectures import Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor, refuse_pickle
from style_aligned.models.checkpoints.settings import read_json

SUPPORTED = "expected Stable Diffusion XL or Stable Diffusion 1.5"
EVERYWHERE = (
    (
        r"lora_(unet|te\d?)_|[._]lora[._]|lora_(up|down|A|B)\b|hada_w|lokr_|\.dora_scale$",
        "a LoRA, which is a change to a model",
    ),
    (r"^control_model\.|^input_hint_block|controlnet_(cond_embedding|down_blocks|mid_block)", "a ControlNet"),
    (
        r"(^|\.)(time_embedding|time_embed)\.cond_proj\.",
        "a latent consistency model, whose U-Net takes the guidance as an input; its LCM-LoRA goes with the base model",
    ),
)
IN_SINGLE_FILES = (
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"motion_modules\.", "a motion module"),
    (r"^(emb_params|string_to_param.*|clip_[lg])$", "an embedding (textual inversion)"),
    (r"^cond_stage_model\.model\.", "Stable Diffusion 2.x"),
    (r"^conditioner\.embedders\.0\.model\.", "the refiner of Stable Diffusion XL"),
    (r"(^|\.)joint_blocks\.|^transformer_blocks\.", "Stable Diffusion 3"),
    (r"(^|\.)(double_blocks|single_transformer_blocks)\.", "FLUX"),
    (r"^edm_vpred\.|^edm_(mean|std)$", "a model with noise levels in the way of EDM"),
    (r"^(encoder|decoder)\.(down|up|mid|down_blocks|up_blocks|mid_block)\b", "an autoencoder alone"),
    (r"^(input_blocks|down_blocks|time_embed|time_embedding)\.", "a U-Net alone"),
    (r"^text_model\.", "a text encoder alone"),
)
OTHER_WIDTHS = {1024: "Stable Diffusion 2.x", 1280: "the refiner of Stable Diffusion XL"}
OTHER_CHANNELS = {9: "an inpainting model", 8: "an image-editing model (InstructPix2Pix)", 5: "a depth-to-image model"}


def refuse_foreign(path: Path, keys: Iterable[str], metadata: Mapping[str, str], *, in_part: bool = False) -> None:
    """Refuse a file that its tensors or its metadata tell to be something else.

    Args:
        path: The file.
        keys: The names of its tensors.
        metadata: Its metadata.
        in_part: Whether it holds a part of a folder.

    Raises:
        CheckpointError: If it is.
    """
    if "style_aligned" in metadata:
        raise CheckpointError(f"{path}: a style, not a model; a style is drawn with by the model it was made with")
    keys = list(keys)
    for pattern, what in EVERYWHERE if in_part else (*EVERYWHERE, *IN_SINGLE_FILES):
        if key := next((key for key in keys if re.search(pattern, key)), None):
            raise CheckpointError(f"{path}: {what} (it holds {key!r}); {SUPPORTED}")


def refuse_other_architecture(tensors: Mapping[str, StoredTensor], architecture: Architecture) -> None:
    """Say what a U-Net is for, where its shapes tell: the first mismatch alone would not.

    Raises:
        CheckpointError: If it is for something else.
    """
    for key, tensor in tensors.items():
        if not key.startswith(("unet.", "model.diffusion_model.")) or len(tensor.shape) < 2:
            continue
        what = None
        if re.search(r"(conv_in|input_blocks\.0\.0|DownBlocks\.Chain_1\.Conv2d)\.weight$", key):
            what = OTHER_CHANNELS.get(tensor.shape[1])
        elif re.search(r"(attn2\.to_k|Residual_2\.Attention\.Distribute\.Linear_2)\.weight$", key):
            width = tensor.shape[1]
            what = OTHER_WIDTHS.get(width) if width != architecture.text_width else None
        if what:
            raise CheckpointError(f"{tensor.path}: {what} ({tensor.key!r} has shape {tensor.shape}); {SUPPORTED}")


def refuse_folder(path: Path) -> NoReturn:
    """Say what a folder is that holds no model.

    Raises:
        CheckpointError: Always.
    """
    kind = read_json(path / "config.json").get("_class_name")
    if (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file():
        raise CheckpointError(f"{path}: a LoRA, which is a change to a model; {SUPPORTED}")
    if kind is not None:
        raise CheckpointError(f"{path}: a part of the kind {kind!r} alone; {SUPPORTED}")
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    for file in files:
        refuse_pickle(file)
    if single := [file.name for file in files if file.suffix == ".safetensors"]:
        raise CheckpointError(f"{path}: a folder of files; give the path of one, such as {path / single[0]}")
    raise CheckpointError(
        f"{path}: no model; expected a diffusers folder (with model_index.json), or one in Refiners' format (with "
        "unet.safetensors, lda.safetensors, clip_text_encoder.safetensors)"
    )
