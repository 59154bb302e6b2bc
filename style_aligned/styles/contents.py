"""What a style file holds of a style: its fields as tensors and settings, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from style_aligned.models.text import TextEmbedding
from style_aligned.styles.file import read_style_file
from style_aligned.styles.settings import GUIDANCE_OFF
from style_aligned.styles.trajectory import ReferenceTrajectory


def as_tensors(
    latents: Tensor,
    text: TextEmbedding,
    weights: Tensor | None,
    reference_mask: Tensor | None,
    control_pictures: Sequence[Image.Image],
) -> dict[str, Tensor]:
    """Return the tensors of a style, by the names that they have in its file.

    Args:
        latents: The latents before each step, and after the last one.
        text: The text embedding.
        weights: Samples of the model's weights.
        reference_mask: Which part of the reference gives the style.
        control_pictures: The pictures that the reference follows, all of one size.
    """
    more = {"weights": weights, "reference_mask": reference_mask}
    if control_pictures:
        pixels = [np.array(picture.convert("RGB")) for picture in control_pictures]
        more["control"] = torch.from_numpy(np.stack(pixels))  # pyright: ignore[reportUnknownMemberType]
    present = {name: tensor for name, tensor in more.items() if tensor is not None}
    return {"latents": latents, **text.tensors, **present}


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return {**settings, "size": list(settings["size"])}


def read_fields(path: Path) -> list[tuple[dict[str, Any], float]]:
    """Read a style file.

    Args:
        path: The path of the file.

    Returns:
        For each style in it, which is one unless it is a blend: the arguments of `Style`, and its weight.

    Raises:
        StyleError: If the file is not a style, or was altered or cut off.
        FileNotFoundError: If there is no such file.
    """
    return [
        (_as_fields(settings, tensors, preview), weight) for settings, tensors, preview, weight in read_style_file(path)
    ]


def _as_fields(settings: dict[str, Any], tensors: dict[str, Tensor], preview: Image.Image) -> dict[str, Any]:
    latents = tensors.pop("latents")
    weights, mask = tensors.pop("weights", None), tensors.pop("reference_mask", None)
    pictures = tuple(Image.fromarray(pixels.numpy()) for pixels in tensors.pop("control", ()))
    text = TextEmbedding(**tensors)
    if settings["condition_scale"] in GUIDANCE_OFF:  # earlier versions have kept the negative row all the same
        text = text.conditional
    rows = list(torch.tensor_split(latents, len(latents)))
    return {
        **settings,
        "text": text,
        "trajectory": ReferenceTrajectory(settings["num_inference_steps"], rows, preview=preview),
        "weights": weights,
        "reference_mask": mask,
        "control_pictures": pictures,
    }
