"""What was given: a folder of diffusers or Refiners, a single file, or a name on the hub. Only headers are read."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from style_aligned.models.checkpoints.architectures import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_XL,
    Architecture,
    Layout,
    canonical_key,
)
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.evidence import (
    Statement,
    conclude,
    read_config,
    read_markers,
    read_metadata,
    read_yaml,
)
from style_aligned.models.checkpoints.files import StoredTensor, read_header, refuse_pickle
from style_aligned.models.checkpoints.hub import download, is_hub_name
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.checkpoints.selection import PARTS, select_weights

REFINERS_FILES = {  # ours, and the names that Refiners' documentation uses
    "unet": ("unet", "sdxl-unet"),
    "lda": ("lda", "sdxl-lda"),
    "clip_text_encoder": ("clip_text_encoder", "DoubleCLIPTextEncoder", "CLIPTextEncoderL"),
}
MAX_SCALE = 1000.0
SUPPORTED = "expected Stable Diffusion XL or Stable Diffusion 1.5"
FOREIGN = (
    (r"lora_(unet|te\d?)_|[._]lora[._]|lora_(up|down|A|B)\b|hada_w|lokr_", "a LoRA, which is a change to a model"),
    (r"^control_model\.|^input_hint_block|controlnet_(cond_embedding|down_blocks|mid_block)", "a ControlNet"),
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


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model on disk.

    Attributes:
        name: What the user gave.
        path: The file or folder.
        layout: How its tensors are named.
        architecture: What kind of model it is.
        tensors: Where each tensor lies. In a folder, keys start with the name of the part.
        schedule: The noise schedule.
        encoder_scale: The factor from the autoencoder's latents to the U-Net's, if the settings say it.
        force_zeros_for_empty_prompt: Whether an empty negative prompt means an embedding of zeros.
    """

    name: str
    path: Path
    layout: Layout
    architecture: Architecture
    tensors: dict[str, StoredTensor]
    schedule: Schedule
    encoder_scale: float | None
    force_zeros_for_empty_prompt: bool = False

    @property
    def files(self) -> list[Path]:
        """The files with the weights."""
        return sorted({tensor.path for tensor in self.tensors.values()})

    def where(self, key: str) -> Path:
        """Say which file holds a tensor, or should."""
        if key in self.tensors:
            return self.tensors[key].path
        part = key.split(".")[0]
        return next((tensor.path for other, tensor in self.tensors.items() if other.split(".")[0] == part), self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be known beside the weights."""
        return {
            "schedule": asdict(self.schedule),
            "encoder_scale": self.encoder_scale,
            "force_zeros_for_empty_prompt": self.force_zeros_for_empty_prompt,
        }


def expand_home(path: str | Path) -> Path:
    """Put the folder of a user in the place of `~`.

    Raises:
        CheckpointError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def open_checkpoint(name_or_path: str | Path, *, prefer_half: bool = False, **schedule: Any) -> Checkpoint:
    """Recognise what was given, and read the headers of its files.

    Args:
        name_or_path: A diffusers folder, a single file with the original names, a folder in Refiners' format, or a name
            on the Hugging Face hub.
        prefer_half: Whether to prefer the fp16 variant of a diffusers folder, where there is one.
        **schedule: Fields of the `Schedule` that hold whatever the checkpoint says; None leaves it to that.

    Returns:
        Where everything is.

    Raises:
        CheckpointError: For anything else, with what it seems to be.
    """
    try:
        found = _open(str(name_or_path), expand_home(name_or_path), prefer_half)
    except OSError as error:
        raise CheckpointError(f"{name_or_path}: cannot be read: {error}") from error
    return found.checkpoint({name: value for name, value in schedule.items() if value is not None})


@dataclass
class _Found:
    """What has been found on disk so far."""

    name: str
    path: Path
    layout: Layout
    tensors: dict[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])
    schedule: Schedule = field(default_factory=Schedule)
    statements: list[Statement] = field(default_factory=list[Statement])
    encoder_scale: float | None = None
    force_zeros: bool | None = None
    is_xl: bool = False

    def add(self, stored: Sequence[StoredTensor], metadata: Mapping[str, str], part: str = "") -> None:
        """Add the tensors of a file, by their canonical keys, and what its metadata says."""
        for tensor in stored:
            key = canonical_key(f"{part}.{tensor.key}") if part else tensor.key
            if key in self.tensors:
                raise CheckpointError(f"{tensor.path}: the tensor {tensor.key!r} is there twice")
            self.tensors[key] = tensor
        if stored:
            self.statements += read_metadata(metadata, stored[0].path)

    def checkpoint(self, schedule: Mapping[str, Any]) -> Checkpoint:
        """Conclude what kind of model it is."""
        architecture = STABLE_DIFFUSION_XL if self.is_xl else STABLE_DIFFUSION_1
        _refuse_other_architecture(self.tensors, architecture)
        statements = [*self.statements, *read_markers(self.tensors)]
        return Checkpoint(
            name=self.name,
            path=self.path,
            layout=self.layout,
            architecture=architecture,
            tensors=self.tensors,
            schedule=conclude(self.schedule, statements, self.tensors, self.path, schedule),
            encoder_scale=self.encoder_scale,
            force_zeros_for_empty_prompt=self.is_xl if self.force_zeros is None else self.force_zeros,
        )


def _open(name: str, path: Path, prefer_half: bool) -> _Found:
    if not path.exists():
        if not is_hub_name(name):
            raise CheckpointError(
                f"{name}: no such file or folder, and no name on the Hugging Face hub (such as "
                "'stabilityai/stable-diffusion-xl-base-1.0')"
            )
        return _open_diffusers(name, download(name, prefer_half=prefer_half), prefer_half)
    if path.is_file():
        return _open_single_file(path.name, path)
    if (path / "model_index.json").is_file() or (path / "unet").is_dir():
        return _open_diffusers(path.name, path, prefer_half)
    if any(_refiners_file(path, part) for part in REFINERS_FILES):
        return _open_refiners(path.name, path)
    raise CheckpointError(_describe_folder(path))


def _open_single_file(name: str, path: Path) -> _Found:
    found = _Found(name, path, "original")
    found.add(*read_header(path))
    _refuse_foreign(path, found.tensors)
    if not any(key.startswith("model.diffusion_model.") for key in found.tensors):
        raise CheckpointError(
            f"{path}: no model with the original names (it has no 'model.diffusion_model.…'; its first tensor is "
            f"{next(iter(found.tensors), None)!r}); {SUPPORTED}"
        )
    found.is_xl = any(key.startswith(("conditioner.", "model.diffusion_model.label_emb.")) for key in found.tensors)
    statements, scale = read_yaml(path)
    found.statements += statements
    found.encoder_scale = _encoder_scale(scale, path.with_suffix(".yaml"))
    return found


def _open_diffusers(name: str, path: Path, prefer_half: bool) -> _Found:
    index = _read_json(path / "model_index.json")
    if not (path / "unet").is_dir():
        pipeline = index.get("_class_name", "diffusers")
        raise CheckpointError(f"{path}: a model of the kind {pipeline!r}, which has no U-Net; {SUPPORTED}")
    found = _Found(name, path, "diffusers")
    for part in PARTS:
        folder = path / part
        if not folder.is_dir():
            continue
        names = (file.name for file in sorted(folder.iterdir()))
        for file in select_weights(names, part, prefer_half=prefer_half, where=folder):
            stored, metadata = read_header(folder / file)
            _refuse_foreign(folder / file, (tensor.key for tensor in stored), in_part=True)
            found.add(stored, metadata, part)
    found.is_xl = (path / "text_encoder_2").is_dir() or any(
        key.startswith("unet.add_embedding.") for key in found.tensors
    )
    if found.is_xl and not (path / "text_encoder").is_dir():
        raise CheckpointError(f"{path}: the refiner of Stable Diffusion XL (it has no text_encoder); {SUPPORTED}")
    scheduler = path / "scheduler" / "scheduler_config.json"
    found.schedule, statements = read_config(_read_json(scheduler), where=scheduler)
    found.statements += statements
    autoencoder = path / "vae" / "config.json"
    config = _read_json(autoencoder)
    if special := [key for key in ("latents_mean", "latents_std") if config.get(key) is not None]:
        raise CheckpointError(f"{autoencoder}: an autoencoder with {special[0]}, which Refiners' has not")
    found.encoder_scale = _encoder_scale(config.get("scaling_factor"), autoencoder)
    found.force_zeros = _force_zeros(index, path / "model_index.json")
    return found


def _open_refiners(name: str, path: Path) -> _Found:
    found = _Found(name, path, "refiners")
    settings: dict[str, Any] = {}
    where = path
    for part, names in REFINERS_FILES.items():
        file = _refiners_file(path, part)
        if file is None:
            raise CheckpointError(f"{path}: the file {names[0]}.safetensors is missing")
        stored, metadata = read_header(file)
        found.add(stored, metadata, part)
        if "converter" in metadata:  # ours: it says what has to be known beside the weights
            settings, where = _parse_object(metadata.get("settings", ""), where=file), file
    found.is_xl = any("TextTimeEmbedding" in key for key in found.tensors)
    config: object = settings.get("schedule", {})
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: expected a schedule of several numbers, got {config!r}")
    found.schedule, statements = read_config(cast(dict[str, Any], config), where=where)
    found.statements += statements
    found.encoder_scale = _encoder_scale(settings.get("encoder_scale"), where)
    found.force_zeros = _force_zeros(settings, where)
    return found


def _force_zeros(settings: Mapping[str, Any], where: Path) -> bool | None:
    """Read whether an empty negative prompt means zeros."""
    value = settings.get("force_zeros_for_empty_prompt")
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: expected force_zeros_for_empty_prompt to be true or false, got {value!r}")
    return value


def _encoder_scale(value: object, where: Path) -> float | None:
    """Check the factor from the autoencoder's latents to the U-Net's."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < MAX_SCALE:
        raise CheckpointError(f"{where}: expected a positive number as the scale of latents, got {value!r}")
    return float(value)


def _refuse_foreign(path: Path, keys: Iterable[str], *, in_part: bool = False) -> None:
    patterns = FOREIGN[:2] if in_part else FOREIGN
    keys = list(keys)
    for pattern, what in patterns:
        for key in keys:
            if re.search(pattern, key):
                raise CheckpointError(f"{path}: {what} (it holds {key!r}); {SUPPORTED}")


def _refuse_other_architecture(tensors: dict[str, StoredTensor], architecture: Architecture) -> None:
    """Say what a U-Net is for, where its shapes tell: the first mismatch alone would not."""
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


def _describe_folder(path: Path) -> str:
    config = _read_json(path / "config.json")
    if (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file():
        return f"{path}: a LoRA, which is a change to a model; {SUPPORTED}"
    if "_class_name" in config:
        return f"{path}: a part of the kind {config['_class_name']!r} alone; {SUPPORTED}"
    for file in sorted(path.iterdir()):
        if file.is_file():
            refuse_pickle(file)
    return (
        f"{path}: no model; expected a diffusers folder (with model_index.json), or one in Refiners' format (with "
        f"{', '.join(f'{part}.safetensors' for part in REFINERS_FILES)})"
    )


def _refiners_file(path: Path, part: str) -> Path | None:
    files = (path / f"{name}.safetensors" for name in REFINERS_FILES[part])
    return next((file for file in files if file.is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from error
    return _parse_object(text, where=path)


def _parse_object(text: str, where: Path) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object")
    return cast(dict[str, Any], value)
