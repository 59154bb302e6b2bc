"""What is asked of a Refiners model, and what tells it from others."""

import hashlib
from typing import Any

import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from torch import Tensor

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.models.denoising import Model

SAMPLES = 64  # of each parameter, for the fingerprint of a model
NUMBERS = ("scale", "bias", "skip_scales", "backbone_scales")  # of LoRA, of FreeU: they are no parameters


def default_size(model: Model) -> tuple[int, int]:
    """Give the height and width in pixels that a model was trained for."""
    if isinstance(model, StableDiffusion_XL):
        height, width = (int(length) for length in model.default_time_ids[0, :2])
        return height, width
    return 512, 512


def describe_model(model: Model) -> dict[str, Any]:
    """Give the class and precision of a model, and a fingerprint of what latents depend on: text encoders and U-Net."""
    return {
        "class": type(model).__name__,
        "classifier_free_guidance": model.classifier_free_guidance,
        "precision": str(model.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(model.clip_text_encoder, model.unet),
    }


def fingerprint(*modules: fl.Module) -> str:
    """Give a fingerprint of some modules: of samples of each parameter, and of numbers such as the scale of a LoRA."""
    digest = hashlib.sha256()
    for module in modules:
        adapters = module.get_parents() if isinstance(module, fl.Chain) else []
        for layer in (*adapters, *module.modules()):
            for name in NUMBERS:
                value = vars(layer).get(name)
                if isinstance(value, int | float):
                    digest.update(f"{name}={float(value)}".encode())
                elif isinstance(value, list):
                    digest.update(f"{name}={value}".encode())
    samples: list[Tensor] = []
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        digest.update(str(tuple(parameter.shape)).encode())
        flat = parameter.detach().flatten()
        samples.append(flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to(parameters[-1]))
    digest.update(torch.cat(samples).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_model(model: Model, options: dict[str, Any]) -> None:
    """Check that a model can be aligned.

    Args:
        model: The model.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].

    Raises:
        ValueError: If it has self-attention guidance or is adapted already, if its U-Net takes more than latents, as
            for inpainting, or if an option is out of its range.
    """
    if model.has_self_attention_guidance():
        raise ValueError("expected a model without self-attention guidance, got one with it: disable it first")
    if model.unet.in_channels != 4:
        raise ValueError(f"expected a U-Net with 4 input channels, got one with {model.unet.in_channels}")
    StyleAlignedAdapter(model.unet, **options)
