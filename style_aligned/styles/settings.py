"""The settings of a style: completed with what is recommended for its model, and checked."""

import math
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from style_aligned.models.family import PIXELS, family_of, latents_shape
from style_aligned.models.model import Model
from style_aligned.options import (
    INVERSION,
    PRESETS,
    SETTINGS as RUN_SETTINGS,
    STYLE_OPTIONS,
    check_options,
    check_seed,
    is_integer,
    split_options,
)
from style_aligned.words import show

MAX_PROMPT = 1 << 15  # characters: two prompts fit into a header, at 14 bytes for one that is escaped twice
MAX_LATENTS = 1 << 28  # elements
MAX_SIDE = 1 << 16  # pixels
MAX_CONTROLS = 16
METHODS = ("prompt", "noise", "ddim")
SETTINGS = (
    "prompt", "negative_prompt", "seed", "num_inference_steps", "condition_scale", "size", "options", "solver", "model",
    "method", "picture", "details", "control",
)  # fmt: skip
DEFAULTS: dict[str, Any] = {"method": "prompt", "picture": None, "details": {}, "control": []}  # said only if another

GUIDANCE_OFF = (0, 1)
"""The strengths of the classifier-free guidance that turn it off."""

FIXED = {
    "prompt": "the reference was made from its prompt",
    "negative_prompt": "the reference was made with its negative prompt",
    "seed": "the reference was made from the noise of its seed",
    "num_inference_steps": "the latents of the reference are those of its own steps",
    "condition_scale": "the reference was made with its guidance",
    "size": "the latents of the reference have a size, and generate(…, size=…) draws targets of another one",
    "solver": "the latents of the reference are those of its own solver",
    "model": "the latents of the reference are those of its own model",
    "method": "the reference was made by it",
    "picture": "the reference was made from it",
    "details": "the reference was made by them",
    "control": "the reference was drawn with it",
    "text": "it is the embedding of the reference's prompt",
    "trajectory": "it is the reference itself",
}
"""Why settings of a style that has a trajectory cannot change."""


def complete_settings(
    model: Model,
    function: str,
    *,
    options: Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    like: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Check the settings of a style that is to be made, and fill in what is recommended for its model.

    Args:
        model: The model.
        function: The name of the function that was given them, for errors.
        options: The options that were given by name.
        keywords: Those that were given as keywords.
        like: The name of a preset, which takes precedence over what is recommended.
        settings: The other settings. None means what is recommended.
    """
    family = family_of(model)
    if like is not None and like not in PRESETS:
        raise ValueError(f"expected like to be one of {', '.join(PRESETS)}, got {show(like)}")
    preset = PRESETS.get(like or "", {})
    recommended = {**vars(family), "size": family.default_size, **preset}
    for name in ("num_inference_steps", "condition_scale", "size"):
        if settings[name] is None:
            settings[name] = recommended[name]
    own = {name: value for name, value in preset.items() if name in STYLE_OPTIONS}
    settings["options"] = {**family.options, **own, **split_options(keywords, options, function)}
    check_settings(settings)
    return {**settings, "size": tuple(settings["size"])}


def check_noise(noise: Any, size: tuple[int, int], images: int = 1) -> Tensor:
    """Check noise that images are to start from.

    Args:
        noise: The noise.
        size: The height and width of the images, in pixels.
        images: The number of images.

    Raises:
        TypeError: If it is no tensor of a floating type.
        ValueError: If it is of another shape, or not finite.
    """
    if not (isinstance(noise, Tensor) and noise.is_floating_point()):
        raise TypeError(f"expected noise to be a tensor of a floating type, got {show(noise)}")
    if noise.shape != (expected := latents_shape(size, images)):
        raise ValueError(f"expected noise of shape {expected}, got {tuple(noise.shape)}")
    if not noise.isfinite().all():
        raise ValueError("expected noise to be finite, got NaN or infinity")
    return noise


def check_details(details: Mapping[str, Any], steps: int) -> None:
    """Check how a picture is to be brought to its trajectory.

    Args:
        details: The settings for that, by name.
        steps: The number of steps.

    Raises:
        TypeError: If one is not of its type.
        ValueError: If one is out of its range.
    """
    for name, value in details.items():
        if name in INVERSION:
            INVERSION[name].check(value)
    if not details.get("offset", 0) < steps:
        raise ValueError(f"expected offset to be less than the number of steps, {steps}, got {details['offset']}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a style, as far as that can be done without a model.

    Args:
        settings: The settings, by name.

    Raises:
        TypeError: If a number or an option is not of its type.
        ValueError: If one is out of its range.
    """
    prompt, negative_prompt = settings["prompt"], settings["negative_prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        found = "an empty one" if isinstance(prompt, str) else show(prompt)
        raise ValueError(f"expected a prompt with at least one word, got {found}")
    if not isinstance(negative_prompt, str):
        raise ValueError(f"expected negative_prompt to be a text, got {show(negative_prompt)}")
    for text in (prompt, negative_prompt):
        if "\0" in text or text.encode(errors="replace").decode() != text:
            raise ValueError(f"expected prompts that can be written as UTF-8, without zero bytes, got {text[:80]!r}")
        if len(text) > MAX_PROMPT:
            raise ValueError(f"expected prompts of at most {MAX_PROMPT} characters, got one of {len(text)}")
    check_seed(settings["seed"])
    for name in ("num_inference_steps", "condition_scale"):
        if settings[name] is None:
            raise TypeError(f"expected {name} to be a number, got None")
        RUN_SETTINGS[name].check(settings[name])
    check_size(settings["size"])
    (height, width), steps = settings["size"], settings["num_inference_steps"]
    if (count := (steps + 1) * math.prod(latents_shape((height, width)))) > MAX_LATENTS:
        raise ValueError(
            f"expected at most {MAX_LATENTS} elements in the latents of all steps, got {count} with"
            f" {steps} step{'' if steps == 1 else 's'} of a size of {height}x{width}"
        )
    if not isinstance(settings["options"], dict):
        raise TypeError(f"expected options by name, got {show(settings['options'])}")
    check_options(cast(dict[str, Any], settings["options"]), STYLE_OPTIONS)
    if settings["condition_scale"] in (0, 1):
        needy = {"halves": "both", "query_guidance": 0}
        options = cast(dict[str, Any], settings["options"])
        if name := next((name for name, value in needy.items() if options.get(name, value) != value), None):
            raise ValueError(
                f"expected guidance beside {name}={options[name]}, which acts on one of its halves, got"
                f" condition_scale={settings['condition_scale']:g}, which is none"
            )
    method, picture, details, control = (settings.get(name, default) for name, default in DEFAULTS.items())
    check_control(control)
    if method not in METHODS or isinstance(picture, str) != (method != "prompt") or not isinstance(details, dict):
        raise ValueError(
            f"expected a method among {', '.join(METHODS)}, the digest of a picture for all but the first, and details"
            f" by name, got {show(method)}, {show(picture)} and {show(details)}"
        )


def check_control(control: Any) -> None:
    """Check what a style says of the control models that its reference was drawn with.

    Raises:
        ValueError: If it is not a list of the file, scale and picture of each.
    """
    fields = {"file": str, "scale": int | float, "picture": str}
    described = cast(list[Any], control) if isinstance(control, list) else [None]
    for own in described:
        known = cast(dict[str, Any], own) if isinstance(own, dict) else {}
        if known.keys() != fields.keys() or not all(isinstance(known[name], kind) for name, kind in fields.items()):
            raise ValueError(f"expected the file, scale and picture of each control model, got {show(control)}")
    if len(described) > MAX_CONTROLS:
        raise ValueError(f"expected at most {MAX_CONTROLS} control models, got {len(described)}")


def check_size(size: Any) -> None:
    """Check the size of images: their height and width, in pixels.

    Args:
        size: The size.

    Raises:
        ValueError: If it is none, or one that latents cannot have.
    """
    if not isinstance(size, list | tuple) or len(cast(list[Any], size)) != 2:
        raise ValueError(f"expected a size of height and width, got {show(size)}")
    height, width = cast(tuple[Any, Any], size)
    if any(not is_integer(side) or not 64 <= side <= MAX_SIDE or side % PIXELS != 0 for side in (height, width)):
        raise ValueError(
            f"expected a size of multiples of {PIXELS}, at least 64 and at most {MAX_SIDE}, got"
            f" {show(height)}x{show(width)}"
        )


def refusal(name: str, value: Any, own: Any) -> str:
    """Return why a setting of a style that has a trajectory cannot change."""
    changeable = ", ".join(STYLE_OPTIONS)
    return (
        f"expected {name} to stay {show(own)}, got {show(value)}: {FIXED[name]}. Make a new style, or change options"
        f" ({changeable})"
    )
