"""What is asked of a Refiners model, and what tells it from others."""

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.reference_only_control import ReferenceOnlyControlAdapter
from torch import Tensor, dtype as DType

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.models.family import LATENT_CHANNELS
from style_aligned.words import show

Model = StableDiffusion_XL | StableDiffusion_1

SAMPLES = 64  # of each parameter, for the fingerprint of a model
WEIGHTS = 2048  # of a model, to compare models of different precisions
_BESIDE: WeakKeyDictionary[Model, list[Callable[[], dict[str, Any]]]] = WeakKeyDictionary()
NUMBERS = ("scale", "bias", "skip_scales", "backbone_scales")  # of LoRA, of FreeU: they are no parameters


def check_is_model(model: Any) -> None:
    """Check that a first argument is a model.

    Args:
        model: The argument.

    Raises:
        TypeError: If it is not, with what to do.
    """
    if isinstance(model, StableDiffusion_XL | StableDiffusion_1):
        return
    expected = "expected a model (StableDiffusion_XL or StableDiffusion_1) as the first argument"
    if isinstance(model, str | Path):
        raise TypeError(f"{expected}, got {show(str(model))}: load_model({show(str(model))}) loads it")
    if isinstance(model, fl.Chain):
        raise TypeError(f"{expected}, got a {type(model).__name__}, which is a part of one")
    raise TypeError(f"{expected}, got {show(model)}")


def check_model(model: Model, options: dict[str, Any]) -> None:
    """Check that a model can be aligned.

    Args:
        model: The model.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].

    Raises:
        TypeError: If it is no model.
        ValueError: If it has self-attention guidance or reference-only control, or is adapted already, if its U-Net
            takes more than latents, as for inpainting, or if an option is out of its range.
    """
    check_is_model(model)
    if model.has_self_attention_guidance():
        raise ValueError("expected a model without self-attention guidance, got one with it: disable it first")
    if any(isinstance(parent, ReferenceOnlyControlAdapter) for parent in model.unet.get_parents()):
        raise ValueError(
            "expected a model without reference-only control, which takes one image at a time, got one with it: eject"
            " that adapter first, or record and replay references in a loop of your own (docs/stacking.md)"
        )
    if model.unet.in_channels != LATENT_CHANNELS:
        raise ValueError(
            f"expected a U-Net with {LATENT_CHANNELS} input channels, got one with {model.unet.in_channels}"
        )
    StyleAlignedAdapter(model.unet, **options)


@contextmanager
def beside(model: Model, describe: Callable[[], dict[str, Any]]) -> Generator[None]:
    """Let a model say that an adapter from a file is in it, for as long as that is so.

    Args:
        model: The model.
        describe: Returns what has to be known of the adapter to draw the same again, as it is then.
    """
    present = _BESIDE.setdefault(model, [])
    present.append(describe)
    try:
        yield
    finally:
        present.remove(describe)


def describe_model(model: Model) -> dict[str, Any]:
    """Return the class and precision of a model, and a fingerprint of what latents depend on: text encoders and U-Net.

    If there are adapters from files in it, it has a list of `adapters` too.

    Args:
        model: The model.
    """
    adapters = [describe() for describe in _BESIDE.get(model, ())]
    return {
        **({"adapters": adapters} if adapters else {}),
        "class": type(model).__name__,
        "classifier_free_guidance": model.classifier_free_guidance,
        "precision": name_precision(model.dtype),
        "fingerprint": fingerprint(model.clip_text_encoder, model.unet),
    }


def name_precision(dtype: DType) -> str:
    """Return the name of a data type, such as `"float16"`."""
    return str(dtype).removeprefix("torch.")


def fingerprint(*modules: fl.Module, dtype: DType | None = None) -> str:
    """Compute a fingerprint of some modules: of samples of each parameter, and of numbers such as the scale of a LoRA.

    Args:
        modules: The modules.
        dtype: The data type to compute it in, for the fingerprint that weights of this type have. None means that of
            the weights. It has to be one of no more precision.
    """
    digest = hashlib.sha256()
    for name, value in _numbers(modules):
        digest.update(f"{name}={float(value) if isinstance(value, int | float) else value}".encode())
    samples: list[Tensor] = []
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        digest.update(str(tuple(parameter.shape)).encode())
        samples.append(_sample(parameter, SAMPLES).to(parameters[-1]))
    digest.update(tensor_bytes(torch.cat(samples).to(dtype=dtype)))
    return digest.hexdigest()[:16]


def sample_weights(model: Model) -> Float[Tensor, " weights"]:
    """Return some of a model's weights, by which the same model is known in another precision.

    Args:
        model: The model. Text encoders and U-Net count, and numbers such as the scale of a LoRA.

    Returns:
        The weights, in float32 on the CPU.
    """
    modules = (model.clip_text_encoder, model.unet)
    numbers = [
        float(number)
        for _, value in _numbers(modules)
        for number in ([value] if isinstance(value, int | float) else value)
    ]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    each = max(1, WEIGHTS // len(parameters))
    samples = torch.cat([_sample(parameter, each).float() for parameter in parameters])
    return torch.cat((torch.tensor(numbers, dtype=torch.float32), samples.cpu()))


def same_weights(weights: Float[Tensor, " weights"], others: Float[Tensor, " others"]) -> bool:
    """Return whether weights of two precisions are the same but for rounding, to bfloat16 at the coarsest.

    Args:
        weights: Some weights, of `sample_weights`.
        others: The others.
    """
    if weights.shape != others.shape:
        return False
    bound = torch.maximum(weights.abs(), others.abs()) * 2**-8 + 2**-24  # below which float16 has nothing
    return bool(((weights - others).abs() <= bound).all())


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor, for a digest."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _numbers(modules: tuple[fl.Module, ...]) -> list[tuple[str, Any]]:
    """The numbers of layers that count as weights do: a number, or a list of them, by name."""
    numbers: list[tuple[str, Any]] = []
    for module in modules:
        adapters = module.get_parents() if isinstance(module, fl.Chain) else []
        for layer in (*adapters, *module.modules()):
            named = ((name, vars(layer).get(name)) for name in NUMBERS)
            numbers += [(name, value) for name, value in named if isinstance(value, int | float | list)]
    return numbers


def _sample(parameter: Tensor, count: int) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // count)][:count]
