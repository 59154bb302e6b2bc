"""The one place where sets meet styles and models: what is drawn, and what it was made with."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from style_aligned.models.model import Model, describe_model, fingerprint
from style_aligned.sampling.generation import OF_A_REFERENCE as SETTINGS_OF_A_REFERENCE, OnLatents, generate
from style_aligned.sampling.samples import Sample
from style_aligned.sets.inputs import generate_arguments
from style_aligned.styles.file import StyleError
from style_aligned.styles.style import Style

OF_A_REFERENCE = (*SETTINGS_OF_A_REFERENCE, "style")  # no matter for unaligned images
OTHER_PRECISION = "the style was made in"  # the start of the warning of `Style.check`
KINDS = {"Mini": "the embedded model", "StableDiffusion_XL": "SDXL", "StableDiffusion_1": "Stable Diffusion 1.5"}


def start_style(model: Model, settings: Mapping[str, Any]) -> Style:
    """Return a style from a prompt, none of whose steps is done.

    Args:
        model: The model.
        settings: Arguments of `Style.from_prompt`: `prompt`, and those others that are not the model's own.
    """
    settings = {name: value for name, value in settings.items() if value is not None and name != "source"}
    if "size" in settings:
        settings["size"] = tuple(settings["size"])
    return Style.from_prompt(model, **settings)


def draw(
    model: Model,
    style: Style,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    is_aligned: bool,
    batch_size: int,
    inputs: Sequence[Mapping[str, Any]] = (),
    bank_device: str | None = None,
    on_step: Callable[[int], None] | None = None,
    on_latents: OnLatents | None = None,
) -> Iterator[Sample]:
    """Draw images in one chunk."""
    arguments: dict[str, Any] = {
        "seeds": seeds, "batch_size": batch_size, "chunk_size": max(1, len(prompts)), "on_step": on_step,
        "on_latents": on_latents, **generate_arguments(inputs),
    }  # fmt: skip
    force = style.is_complete  # what needs it was told by `check_fit`, as was another precision
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", OTHER_PRECISION)
        samples = generate(model, style, prompts, **arguments, aligned=is_aligned, force=force, bank_device=bank_device)
    return iter(samples)


def decode(model: Model, latents: Tensor) -> Image.Image:
    """Return the image of some latents."""
    with torch.no_grad():
        return model.lda.latents_to_image(latents)


def check_fit(style: Style, model: Model, name: str, *, force: bool = False) -> str | None:
    """Check that a style fits a model.

    Args:
        style: The style.
        model: The model.
        name: What an error calls the style, such as its file.
        force: Whether to let other weights of the same kind of model pass.

    Returns:
        A warning, or None.

    Raises:
        StyleError: If it does not, with what to do.
    """
    own, given = style.model, describe_model(model)
    if own["class"] != given["class"]:
        own_kind, given_kind = (KINDS.get(kind["class"], kind["class"]) for kind in (own, given))
        advice = "use --model mini" if own["class"] == "Mini" else "add --model with its file, folder or name"
        raise StyleError(f"{name} is of {own_kind}, and the model is {given_kind}: {advice}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            style.check(model)
        except StyleError as error:
            if not style.is_complete:
                raise
            style.check(model, force=True)
            if not force:
                what, advice = "weights", "pass that model by --model, or --force"
                if own.get("adapters") != given.get("adapters"):
                    what, advice = "adapters", "give those by --lora, --embedding and --ip-adapter, or --force"
                elif style.control:
                    what, advice = "weights or control models", "give those by --model and --control, or --force"
                raise StyleError(f"{name} was made with other {what}: {advice} ({error})") from None
            return f"{name} was made with other weights or adapters: images will differ from those of its own model"
    return f"{name}: {caught[0].message}" if caught else None


def describe_drawer(model: Model) -> dict[str, Any]:
    """Return what images depend on of a model."""
    return {**describe_model(model), "decoder": fingerprint(model.lda)}


def image_settings(style: Style, drawer: Mapping[str, Any], *, is_aligned: bool | None = None) -> dict[str, Any]:
    """Return all settings that an image depends on, besides its prompt and seed.

    Args:
        style: The style.
        drawer: What `describe_drawer` says of the model that draws: not the style's own, if it was forced.
        is_aligned: Whether the image follows the reference. None for the reference itself.
    """
    settings = {
        **style.describe(),
        "model": {name: drawer[name] for name in (*style.model, "adapters") if name in drawer},
        "decoder": drawer["decoder"],
        "style": style.digest,
    }
    if is_aligned is None:
        return settings
    left_out = () if is_aligned else OF_A_REFERENCE
    return {"aligned": is_aligned, **{name: value for name, value in settings.items() if name not in left_out}}
