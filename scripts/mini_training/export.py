"""The trained weights as the package carries them: float16 safetensors."""

import json
from pathlib import Path

import torch
from torch import Tensor

from scripts.mini_training.checkpoints import load_tensors, save_tensors
from scripts.mini_training.dataset import Drawings
from style_aligned.mini.autoencoder import MiniAutoencoder

AUTOENCODER = "autoencoder.safetensors"
UNET = "unet.safetensors"
TEXT_ENCODER = "text_encoder.safetensors"


def export_autoencoder(autoencoder: MiniAutoencoder, folder: Path) -> None:
    save_tensors(folder / AUTOENCODER, {k: v.half() for k, v in autoencoder.state_dict().items()}, {"format": "pt"})


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
    save_tensors(run / "export" / UNET, parts["unet"], trained)
    names = {key: json.dumps(value) for key, value in (("concepts", drawings.concepts), ("styles", drawings.styles))}
    vocabulary = {"vocabulary": json.dumps(state["vocabulary"])}
    save_tensors(run / "export" / TEXT_ENCODER, parts["text_encoder"], {**trained, **vocabulary, **names})
