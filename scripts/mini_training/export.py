"""The trained weights as the package carries them: float16 safetensors, whose metadata hold the weights' digest.

    python -m scripts.mini_training.export FILE ...

gives such files that were written without a digest theirs.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scripts.mini_training.checkpoints import load_tensors, save_tensors
from scripts.mini_training.dataset import Drawings
from scripts.mini_training.objective import TEXT_ENCODER, UNET
from style_aligned.models.mini.autoencoder import MiniAutoencoder
from style_aligned.models.mini.model import DIGEST, check_digest, digest

AUTOENCODER = "autoencoder.safetensors"


def save_signed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with the digest of its tensors among its metadata, whole or not at all."""
    save_tensors(path, tensors, {**metadata, DIGEST: digest(tensors)})
    path.chmod(0o644)  # safetensors keeps it for its owner, but who installs the package is to read it


def sign(path: Path) -> bool:
    """Give a file of weights the digest that it was written without. Its tensors and other metadata stay.

    Args:
        path: The safetensors file.

    Returns:
        Whether it had none. Otherwise it is left alone.

    Raises:
        ValueError: If it has a digest, but of other weights.
    """
    tensors, metadata = load_tensors(path)
    if DIGEST in metadata:
        check_digest(tensors, metadata, path)
        return False
    save_signed(path, tensors, metadata)
    return True


def export_autoencoder(autoencoder: MiniAutoencoder, folder: Path) -> None:
    save_signed(folder / AUTOENCODER, {k: v.half() for k, v in autoencoder.state_dict().items()}, {"format": "pt"})


def load_autoencoder(folder: Path, device: str) -> MiniAutoencoder:
    autoencoder = MiniAutoencoder(device=device)
    tensors, _ = load_tensors(folder / AUTOENCODER)
    autoencoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return autoencoder


def export_unet(run: Path, drawings: Drawings) -> None:
    """Write the averaged weights of the last checkpoint to RUN/export.

    Args:
        run: The folder of the training run.
        drawings: What the model was trained on; the names of concepts and styles go into the metadata.
    """
    tensors, metadata = load_tensors(run / "unet.ckpt.safetensors")
    state = json.loads(metadata["state"])
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "text_encoder": {}}
    for name, tensor in tensors.items():
        if name.startswith("average."):
            part, key = name.removeprefix("average.").split(".", maxsplit=1)
            parts[part][key] = tensor.to(torch.float16)
    trained = {"format": "pt", "steps": str(state["step"])}
    save_signed(run / "export" / UNET, parts["unet"], trained)
    names = {key: json.dumps(value) for key, value in (("concepts", drawings.concepts), ("styles", drawings.styles))}
    vocabulary = {"vocabulary": json.dumps(state["vocabulary"])}
    save_signed(run / "export" / TEXT_ENCODER, parts["text_encoder"], {**trained, **vocabulary, **names})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.mini_training.export", description="Give files of weights their digest."
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="safetensors files without a digest")
    for path in parser.parse_args(arguments).files:
        print(f"{path}: {'signed' if sign(path) else 'had its digest'}")


if __name__ == "__main__":
    main()
