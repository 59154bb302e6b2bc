"""The embedded model as a whole, and how it is loaded."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.model import StableDiffusion_XL
from safetensors import SafetensorError, safe_open
from torch import Tensor, device as Device, dtype as DType

from style_aligned.models.mini.autoencoder import MiniAutoencoder
from style_aligned.models.mini.text_encoder import MiniDoubleTextEncoder
from style_aligned.models.mini.unet import MiniUNet

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("unet.safetensors", "autoencoder.safetensors", "text_encoder.safetensors")
DIGEST = "sha256"
"""The entry of the files' metadata that holds their weights' digest."""
SIZE = 256
"""Height and width of the pictures that the model was trained on."""


class Mini(StableDiffusion_XL):
    """A `StableDiffusion_XL` of a few million parameters, trained on 256x256 drawings.

    Attributes:
        unet: The U-Net model.
        clip_text_encoder: The text encoder.
        lda: The image autoencoder.
    """

    # narrower than the base class declares: nothing else is ever assigned
    unet: MiniUNet  # pyright: ignore[reportIncompatibleVariableOverride]
    clip_text_encoder: MiniDoubleTextEncoder  # pyright: ignore[reportIncompatibleVariableOverride]
    lda: MiniAutoencoder  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def default_time_ids(self) -> Tensor:
        """The default time IDs to use: those of the pictures that it was trained on, of shape (2, 6) or (1, 6)."""
        time_ids = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE], device=self.device)
        return time_ids.repeat(2 if self.classifier_free_guidance else 1, 1)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of tensors: of their names, data types, shapes and bytes.

    Args:
        tensors: The tensors by name, in any order and on any device.

    Returns:
        The digest, in 64 hexadecimal digits.
    """
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        result.update(json.dumps(kind).encode())
        result.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def check_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Check that a file's weights are those that it was written with.

    Args:
        tensors: The file's tensors by name.
        metadata: The file's metadata, which holds the digest.
        path: The file, for the error's message.

    Raises:
        ValueError: If they are not, or if there is no digest to tell.
    """
    if DIGEST not in metadata:
        raise ValueError(f"{path} is corrupted, or not of this package: expected the digest of its weights, got none")
    if (actual := digest(tensors)) != metadata[DIGEST]:
        raise ValueError(
            f"{path} is corrupted: expected weights with the SHA-256 {metadata[DIGEST][:64]!r}, got {actual!r}"
        )


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of weights of this package.

    Args:
        path: The safetensors file.

    Returns:
        The weights by name, and the file's metadata.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            handle = cast(Any, file)
            names: list[str] = list(handle.keys())
            tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in names}
            metadata: dict[str, str] = handle.metadata() or {}
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    check_digest(tensors, metadata, path)
    return tensors, metadata


def _read_words(metadata: Mapping[str, str], key: str, path: Path) -> list[str]:
    if key not in metadata:
        raise ValueError(f"{path} does not hold this model's weights: it names no {key}")
    return json.loads(metadata[key])


def _assign(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold this model's weights: {error}") from error


def load_mini(device: Device | str = "cpu", dtype: DType = torch.float32, folder: Path | str = WEIGHTS) -> Mini:
    """Load the embedded model.

    Args:
        device: The PyTorch device to use.
        dtype: The PyTorch data type to use.
        folder: Where its three weight files are.

    Returns:
        The model, with a DDIM solver of 30 steps, which is in float32 whatever the data type.

    Raises:
        ValueError: If a file is missing, corrupted, or of another model.
    """
    folder = Path(folder)
    unet_path, lda_path, text_path = (folder / name for name in FILES)
    tensors, metadata = read_weights(text_path)
    vocabulary = _read_words(metadata, "vocabulary", text_path)
    # built without memory, then given the files' tensors: nothing is initialized only to be overwritten
    # (save the text encoders: they are tiny, and an embedding without memory makes PyTorch import for a second)
    text_encoder = MiniDoubleTextEncoder(vocabulary)
    _assign(text_encoder, tensors, text_path)
    unet = MiniUNet(device="meta")
    _assign(unet, read_weights(unet_path)[0], unet_path)
    lda = MiniAutoencoder(device="meta")
    _assign(lda, read_weights(lda_path)[0], lda_path)
    model = Mini(unet=unet, lda=lda, clip_text_encoder=text_encoder, device=device, dtype=dtype)
    model.solver = DDIM(num_inference_steps=30, device=device)  # in float32: numbers near 1 are too coarse in half
    return model


def known_concepts(folder: Path | str = WEIGHTS) -> list[str]:
    """The names of the concepts that the embedded model was taught to draw."""
    return list(_names(Path(folder), "concepts"))


def known_styles(folder: Path | str = WEIGHTS) -> list[str]:
    """The names of the styles that the embedded model was taught to draw in."""
    return list(_names(Path(folder), "styles"))


@cache
def _names(folder: Path, key: str) -> tuple[str, ...]:
    path = folder / FILES[2]
    return tuple(_read_words(read_weights(path)[1], key, path))
