"""Whether a style fits a model: the same weights, in any precision, the same solver, and text embeddings alike."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from style_aligned.models.extras.control import controls_of
from style_aligned.models.model import Model, describe_model, fingerprint, name_precision, same_weights, sample_weights
from style_aligned.models.solvers import describe_solver
from style_aligned.models.text import TextEmbedding, embed
from style_aligned.notes import Note
from style_aligned.styles.file import StyleError
from style_aligned.styles.settings import GUIDANCE_OFF


def check_weights(
    model: Model, own: dict[str, Any], samples: Tensor | None, *, condition_scale: float | int, force: bool
) -> None:
    """Check that a model has the weights that a complete style was made with. Another precision is a warning.

    Args:
        model: The model.
        own: What `describe_model` has said of the style's own model.
        samples: Samples of its weights, if the style has any.
        condition_scale: The guidance of the style.
        force: Whether to let other weights of the same kind of model pass.

    Raises:
        StyleError: If it does not, with the reason.
    """
    names = ["class"] if condition_scale in GUIDANCE_OFF else ["class", "classifier_free_guidance"]
    _compare(own, given := describe_model(model), names)
    if not force:
        check_adapters(own, given)
    if force or given["fingerprint"] == own["fingerprint"]:
        return
    if given["precision"] == own["precision"]:
        what = f"fingerprint={own['fingerprint']}, as the style's, got {given['fingerprint']}"
        raise StyleError(f"expected a model with {what}")
    _check_other_precision(model, own, samples)


def check_started(model: Model, own: dict[str, Any], device: torch.device, *, condition_scale: float | int) -> None:
    """Check that a model is the one with which a style was started, whose steps are not all done.

    Args:
        model: The model.
        own: What `describe_model` has said of the style's own model.
        device: Where the style was started.
        condition_scale: The guidance of the style.

    Raises:
        StyleError: If it is not, with the reason.
    """
    if torch.empty(0, device=model.device).device != device:  # "cuda" is "cuda:0"
        raise StyleError(f"expected a model on {device}, where the style was started, got one on {model.device}")
    names = ["class"] if condition_scale in GUIDANCE_OFF else ["class", "classifier_free_guidance"]
    check_adapters(own, given := describe_model(model))
    _compare(own, given, [*names, "precision", "fingerprint"])


def check_adapters(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a model has the adapters from files that a style was made with.

    Args:
        own: What `describe_model` has said of the style's own model.
        given: What it says of the model.

    Raises:
        StyleError: If it has others.
    """
    if own.get("adapters") != given.get("adapters"):
        raise StyleError(
            f"expected a model with {_name_adapters(own)}, as the style's, got one with {_name_adapters(given)}"
        )


def check_control_models(model: Model, own: Sequence[Mapping[str, Any]], *, force: bool) -> None:
    """Check that a model has the control models that a style's reference was drawn with.

    Args:
        model: The model.
        own: What the style says of each: its file, its scale and the digest of the picture.
        force: Whether to let as many others pass.

    Raises:
        StyleError: If it has not.
    """
    given = [control.describe() for control in controls_of(model)]
    is_same = [_name(one) for one in own] == [_name(one) for one in given]
    if own and not is_same and not (force and len(own) == len(given)):
        expected, found = (" and ".join(map(_name, some)) for some in (own, given))
        raise StyleError(
            f"expected a model with the control models {expected}, as the style's reference, got one with"
            f" {found or 'none'}"
        )


def _name_adapters(described: Mapping[str, Any]) -> str:
    named = [_name(adapter) for adapter in described.get("adapters", ())]
    return " and ".join(named) or "no adapters"


def check_solver(model: Model, own: dict[str, Any]) -> None:
    """Check that a model has the solver of a style.

    Raises:
        StyleError: If it has not, with the first parameter that differs.
    """
    if (given := describe_solver(model.solver)) != own:
        names, none = {**own, **given}, "nothing of that name"
        name = next(name for name in names if given.get(name, none) != own.get(name, none))
        raise StyleError(
            f"expected a solver with {name}={own.get(name, none)}, as the style's, got {given.get(name, none)}"
        )


def check_text(model: Model, text: TextEmbedding) -> None:
    """Check that a text embedding has the shapes of those of a model.

    Raises:
        StyleError: If it has not.
    """
    found, expected = (
        {name: list(tensor.shape[1:]) for name, tensor in embedding.tensors.items()}
        for embedding in (text, embed(model, "", None))
    )
    if found != expected:
        raise StyleError(f"expected a style with text embeddings of shapes {expected}, got {found}")


def _compare(own: dict[str, Any], given: dict[str, Any], names: list[str]) -> None:
    for name in names:
        if given[name] != own[name]:
            raise StyleError(f"expected a model with {name}={own[name]}, as the style's, got {given[name]}")


def _check_other_precision(model: Model, own: dict[str, Any], samples: Tensor | None) -> None:
    precision, given = own["precision"], name_precision(model.dtype)
    if samples is not None:
        is_same = same_weights(samples, sample_weights(model))
    elif torch.finfo(model.dtype).bits > torch.finfo(getattr(torch, precision, torch.float32)).bits:
        rounded = fingerprint(model.clip_text_encoder, model.unet, dtype=getattr(torch, precision))
        is_same = rounded == own["fingerprint"]
    else:
        raise StyleError(
            f"expected a model with precision={precision}, as the style's, got {given}: a style file of an earlier"
            " version does not tell weights of another precision"
        )
    if not is_same:
        raise StyleError(
            f"expected a model with the weights of the style's, which had precision={precision}, got others in {given}"
        )
    warnings.warn(
        f"the style was made in {precision} and the model is in {given}: images differ a little from those in"
        f" {precision}",
        Note,
        stacklevel=4,
    )


def _name(adapter: Mapping[str, Any]) -> str:
    """An adapter as the command line takes it: its file, and its scale or its word."""
    scale = adapter.get("scale")
    return f"{adapter['file']}:{adapter['token'] if scale is None else format(scale, 'g')}"
