"""What drawing takes, about: memory, disk and time. Said before it starts, and refused where it cannot work."""

import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from refiners.fluxion import layers as fl

from style_aligned.models.model import Model

FEATURES_OF_UNET = 40  # as many numbers for each latent and channel of its first layer are in memory at a time
FEATURES_OF_DECODER = 6  # the same for each pixel and channel of its last layer
CORE_SECONDS = 2.5e-14  # for a step: for each parameter of the U-Net and pixel, in float32 on a CPU
PNG_BYTES = 1.6  # for each pixel, of pictures with much detail
LONG = 600  # seconds
GB = 1e9


def estimate_memory(model: Model, size: tuple[int, int], batch_size: int) -> int:
    """Return the bytes that drawing takes beside the weights, about.

    Args:
        model: The model.
        size: The height and width of the images, in pixels.
        batch_size: The number of images that go through the model at a time.
    """
    pixels = size[0] * size[1]
    rows = batch_size * (2 if model.classifier_free_guidance else 1)
    sizes = [torch.empty(0, dtype=part.dtype).element_size() for part in (model.unet, model.lda)]
    first = next(iter(model.unet.layers(fl.Conv2d))).out_channels
    last = list(model.lda.layers(fl.Conv2d))[-1].in_channels
    unet = rows * pixels / 64 * first * FEATURES_OF_UNET * sizes[0]
    return int(max(unet, pixels * last * FEATURES_OF_DECODER * sizes[1]))


def estimate_seconds(model: Model, size: tuple[int, int], image_steps: int) -> float | None:
    """Return the time that drawing takes on the CPU in float32, about. None for other devices and precisions.

    Args:
        model: The model.
        size: The height and width of the images, in pixels.
        image_steps: The number of images times steps.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return None
    parameters = sum(parameter.numel() for parameter in model.unet.parameters())
    return image_steps * parameters * size[0] * size[1] * CORE_SECONDS / (os.cpu_count() or 1)


def check_needs(
    model: Model,
    folder: Path,
    *,
    size: tuple[int, int],
    batch_size: int,
    images: int,
    steps: int,
    force: bool = False,
) -> list[str]:
    """Compare what drawing takes with what there is.

    Args:
        model: The model.
        folder: Where the images go.
        size: The height and width of the images, in pixels.
        batch_size: The number of images that go through the model at a time.
        images: The number of images.
        steps: The number of steps.
        force: Whether to warn only.

    Returns:
        Warnings.

    Raises:
        ValueError: If there is not enough memory or disk.
    """
    shown = f"{size[1]}x{size[0]}"
    warnings: list[str] = []
    refusals: list[str] = []
    memory, there = estimate_memory(model, size, batch_size), _available_memory(model)
    if there is not None and memory > there:
        refusals.append(
            f"images of {shown}, {batch_size} at a time, take about {_gigabytes(memory)} of memory, and there are"
            f" {_gigabytes(there)}: choose a smaller --size or --batch-size"
        )
    disk, free = int(images * size[0] * size[1] * PNG_BYTES), shutil.disk_usage(_existing(folder)).free
    if disk > free:
        refusals.append(
            f"{images:,} images of {shown} take about {_gigabytes(disk)} of disk, and {_gigabytes(free)} are free:"
            " make room, or draw fewer"
        )
    if refusals and not force:
        raise ValueError(f"{refusals[0]} (--force tries it)")
    seconds = estimate_seconds(model, size, images * steps)
    if seconds is not None and seconds > LONG:
        warnings.append(
            f"on this CPU in float32, {images:,} image{'' if images == 1 else 's'} of {shown} take about"
            f" {_duration(seconds)}: --device cuda, fewer --steps or a smaller --size take less"
        )
    return refusals + warnings


def _available_memory(model: Model) -> int | None:
    device: Any = model.device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return None if device.type not in ("cpu", "mps") else psutil.virtual_memory().available


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gigabytes(count: int) -> str:
    return f"{count / GB:.1f} GB" if count < 10 * GB else f"{count / GB:,.0f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.0f} hours"
