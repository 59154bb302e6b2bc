"""What was given: a folder of diffusers or Refiners, a single file, or a name on the hub. Only headers are read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from style_aligned.models.checkpoints.architectures import STABLE_DIFFUSION_1, STABLE_DIFFUSION_XL, Architecture
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.evidence import (
    Statement,
    conclude,
    read_config,
    read_markers,
    read_metadata,
    read_yaml,
)
from style_aligned.models.checkpoints.files import StoredTensor, read_header
from style_aligned.models.checkpoints.foreign import (
    SUPPORTED,
    refuse_folder,
    refuse_foreign,
    refuse_other_architecture,
)
from style_aligned.models.checkpoints.hub import download, is_hub_name, wanted_files
from style_aligned.models.checkpoints.keys import Layout
from style_aligned.models.checkpoints.schedule import Schedule
from style_aligned.models.checkpoints.selection import PARTS, select_weights
from style_aligned.models.checkpoints.settings import (
    check_encoder_scale,
    parse_object,
    read_autoencoder_config,
    read_force_zeros,
    read_json,
)
from style_aligned.models.checkpoints.spelling import by_canonical_key

REFINERS_FILES = {  # ours, and the names that Refiners' documentation uses
    "unet": ("unet", "sdxl-unet"),
    "lda": ("lda", "sdxl-lda"),
    "clip_text_encoder": ("clip_text_encoder", "DoubleCLIPTextEncoder", "CLIPTextEncoderL"),
}


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
        for key, tensor in by_canonical_key(stored, part).items():
            if key in self.tensors:
                raise CheckpointError(f"{tensor.path}: the tensor {tensor.key!r} is there twice")
            self.tensors[key] = tensor
        if stored:
            self.statements += read_metadata(metadata, stored[0].path)

    def checkpoint(self, schedule: Mapping[str, Any]) -> Checkpoint:
        """Conclude what kind of model it is."""
        architecture = STABLE_DIFFUSION_XL if self.is_xl else STABLE_DIFFUSION_1
        refuse_other_architecture(self.tensors, architecture)
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
        return _open_diffusers(
            name, download(name, partial(wanted_files, prefer_half=prefer_half, where=name)), prefer_half
        )
    if path.is_file():
        return _open_single_file(path.name, path)
    if (path / "model_index.json").is_file() or (path / "unet").is_dir():
        return _open_diffusers(path.name, path, prefer_half)
    if any(refiners_file(path, part) for part in REFINERS_FILES):
        return _open_refiners(path.name, path)
    return refuse_folder(path)


def _open_single_file(name: str, path: Path) -> _Found:
    found = _Found(name, path, "original")
    stored, metadata = read_header(path)
    refuse_foreign(path, (tensor.key for tensor in stored), metadata)
    found.add(stored, metadata)
    if not any(key.startswith("model.diffusion_model.") for key in found.tensors):
        raise CheckpointError(
            f"{path}: no model with the original names (it has no 'model.diffusion_model.…'; its first tensor is "
            f"{next(iter(found.tensors), None)!r}); {SUPPORTED}"
        )
    only_xl = ("conditioner.", "model.diffusion_model.label_emb.", "model.diffusion_model.add_embedding.")
    found.is_xl = any(key.startswith(only_xl) for key in found.tensors)
    statements, scale = read_yaml(path)
    found.statements += statements
    found.encoder_scale = check_encoder_scale(scale, path.with_suffix(".yaml"))
    return found


def _open_diffusers(name: str, path: Path, prefer_half: bool) -> _Found:
    index = read_json(path / "model_index.json")
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
            refuse_foreign(folder / file, (tensor.key for tensor in stored), metadata, in_part=True)
            found.add(stored, metadata, part)
    found.is_xl = (path / "text_encoder_2").is_dir() or any(
        key.startswith("unet.add_embedding.") for key in found.tensors
    )
    if (path / "text_encoder_2").is_dir() and not (path / "text_encoder").is_dir():
        raise CheckpointError(f"{path}: the refiner of Stable Diffusion XL (it has no text_encoder); {SUPPORTED}")
    scheduler = path / "scheduler" / "scheduler_config.json"
    found.schedule, statements = read_config(read_json(scheduler), where=scheduler)
    found.statements += statements
    found.encoder_scale = read_autoencoder_config(path / "vae" / "config.json")
    found.force_zeros = read_force_zeros(index, path / "model_index.json")
    return found


def _open_refiners(name: str, path: Path) -> _Found:
    found = _Found(name, path, "refiners")
    settings: dict[str, Any] = {}
    where = path
    for part, names in REFINERS_FILES.items():
        file = refiners_file(path, part)
        if file is None:
            raise CheckpointError(f"{path}: the file {names[0]}.safetensors is missing")
        stored, metadata = read_header(file)
        found.add(stored, metadata, part)
        if "converter" in metadata:  # ours: it says what has to be known beside the weights
            settings, where = parse_object(metadata.get("settings", ""), where=file), file
    found.is_xl = any("TextTimeEmbedding" in key for key in found.tensors)
    config: object = settings.get("schedule", {})
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: expected a schedule of several numbers, got {config!r}")
    found.schedule, statements = read_config(cast(dict[str, Any], config), where=where)
    found.statements += statements
    found.encoder_scale = check_encoder_scale(settings.get("encoder_scale"), where)
    found.force_zeros = read_force_zeros(settings, where)
    return found


def refiners_file(path: Path, part: str) -> Path | None:
    """Return the file with a part of a model in a folder in Refiners' format, if it is there."""
    files = (path / f"{name}.safetensors" for name in REFINERS_FILES[part])
    return next((file for file in files if file.is_file()), None)
