"""An autoencoder of its own, for a checkpoint that has none or in the place of the one that it has."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor, read_header
from style_aligned.models.checkpoints.hub import download, is_hub_name, wanted_autoencoder_files
from style_aligned.models.checkpoints.keys import AUTOENCODER, Layout, autoencoder_modules
from style_aligned.models.checkpoints.selection import select_weights
from style_aligned.models.checkpoints.settings import read_autoencoder_config
from style_aligned.models.checkpoints.sources import Checkpoint, expand_home, refiners_file
from style_aligned.models.checkpoints.spelling import by_canonical_key

EXPECTED = "expected an autoencoder: a .safetensors file, a folder of diffusers or Refiners, or a name on the hub"
STARTS: dict[Layout, str] = {  # of a tensor, without the name of the part, that tells the layout
    "original": "encoder.down.",
    "diffusers": "encoder.down_blocks.",
    "refiners": "Encoder.Chain_1.",
}


def with_autoencoder(checkpoint: Checkpoint, name_or_path: str | Path, *, prefer_half: bool = False) -> Checkpoint:
    """Put another autoencoder into the place of a checkpoint's own.

    Args:
        checkpoint: The checkpoint.
        name_or_path: A file with an autoencoder, alone or within a whole model, a folder of diffusers or Refiners, or a
            name on the Hugging Face hub.
        prefer_half: Whether to prefer the fp16 variant of the weights.

    Returns:
        The checkpoint with the other autoencoder.

    Raises:
        CheckpointError: If there is no autoencoder, or if its settings are those of another kind of model.
    """
    path = expand_home(name_or_path)
    try:
        if not path.exists() and is_hub_name(str(name_or_path)):
            name = str(name_or_path)
            path = download(name, partial(wanted_autoencoder_files, prefer_half=prefer_half, where=name))
        files, config = _find_files(path, prefer_half)
        found: dict[str, StoredTensor] = {}
        for file in files:
            found |= _read(file)
        scale = read_autoencoder_config(config)
    except OSError as error:
        raise CheckpointError(f"{name_or_path}: cannot be read: {error}") from error

    expected = checkpoint.architecture.encoder_scale
    if scale is not None and abs(scale - expected) > 0.01:
        raise CheckpointError(
            f"{config}: an autoencoder whose latents are scaled by {scale}; expected one for"
            f" {checkpoint.architecture.name}, with {expected}"
        )
    own = f"{getattr(AUTOENCODER, checkpoint.layout)}."
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.startswith(own)}
    renamed = dict(_rename(found, checkpoint.layout))
    if not renamed:
        raise CheckpointError(f"{name_or_path}: it holds no autoencoder; {EXPECTED}")
    return replace(checkpoint, tensors=tensors | renamed, encoder_scale=scale)


def _find_files(path: Path, prefer_half: bool) -> tuple[list[Path], Path]:
    """Find the files with the weights, and where their settings would be."""
    if path.is_file():
        return [path], path.with_name("config.json")
    folder = next((folder for folder in (path / "vae", path) if folder.is_dir()), None)
    if folder is None:
        raise CheckpointError(f"{path}: no such file or folder; {EXPECTED}")
    if (file := refiners_file(path, "lda")) is not None:
        return [file], path / "config.json"
    names = (file.name for file in sorted(folder.iterdir()))
    selected = select_weights(names, "vae", prefer_half=prefer_half, where=folder)
    return [folder / name for name in selected], folder / "config.json"


def _read(file: Path) -> dict[str, StoredTensor]:
    """Read where the tensors lie, by keys with the name of the part in front."""
    stored, _ = read_header(file)
    for layout, start in STARTS.items():
        if any(tensor.key.startswith(start) for tensor in stored):
            return by_canonical_key(stored, part=getattr(AUTOENCODER, layout))
    return by_canonical_key(stored)


def _rename(found: Mapping[str, StoredTensor], layout: Layout) -> list[tuple[str, StoredTensor]]:
    """Give the tensors of an autoencoder the names that they have in a layout."""
    renamed: list[tuple[str, StoredTensor]] = []
    for names in autoencoder_modules():
        for parameter in ("weight", "bias"):
            keys = (f"{name}.{parameter}" for name in (names.original, names.diffusers, names.refiners))
            if key := next((key for key in keys if key in found), None):
                renamed.append((f"{getattr(names, layout)}.{parameter}", found[key]))
    return renamed
