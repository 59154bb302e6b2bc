"""From a picture to a style: encoded, and noised or inverted to every step."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from style_aligned.files import digest_picture
from style_aligned.models.family import family_of
from style_aligned.models.finite import check_latents
from style_aligned.models.model import Model, check_is_model, check_model, describe_model, sample_weights
from style_aligned.models.solvers import describe_solver, make_solver, warn_about_first_timestep
from style_aligned.models.state import exclusive_use
from style_aligned.models.text import embed
from style_aligned.notes import Note
from style_aligned.styles.captions import Captioner, caption_picture
from style_aligned.styles.file import PREVIEW
from style_aligned.styles.inversion import add_noise, encode_picture, invert, with_offset
from style_aligned.styles.mask import prepare_mask
from style_aligned.styles.picture import Fit, fit_picture, open_alpha, open_mask, open_picture
from style_aligned.styles.settings import (
    GUIDANCE_OFF,
    METHODS,
    check_details,
    check_noise,
    check_settings,
    complete_settings,
)
from style_aligned.styles.trajectory import ReferenceTrajectory
from style_aligned.words import show


def read_picture(
    model: Model,
    image: str | Path | Image.Image,
    prompt: str | None,
    method: str,
    details: dict[str, Any],
    *,
    noise: Tensor | None,
    captioner: Captioner | str | Path | None,
    mask: Tensor | Image.Image | str | Path | None,
    on_step: Callable[[int], None] | None,
    **given: Any,
) -> dict[str, Any]:
    """Make all that a `Style` is made of, from a picture: see `Style.from_image`.

    Args:
        model: The model, with the solver to use.
        image: The picture, or the path of its file.
        prompt: The prompt. None has a captioner write it.
        method: `"noise"` or `"ddim"`.
        details: How the method works, by the names of the arguments of `Style.from_image`, `fit` among them.
        noise: The noise, in place of what the seed gives.
        captioner: What writes a prompt.
        mask: Which part of the picture gives the style.
        on_step: Called after each step of an inversion, with 1.
        given: The other settings, for `complete_settings`. None means what is recommended.

    Returns:
        The arguments of `Style`.
    """
    check_is_model(model)
    if method not in METHODS[1:]:
        raise ValueError(f"expected method to be one of {', '.join(METHODS[1:])}, got {show(method)}")
    opened, notes = open_picture(image)
    fitted, fit_notes = fit_picture(opened, given["size"], family_of(model).default_size, details["fit"])
    notes += fit_notes
    size = (fitted.height, fitted.width)
    if mask is not None and not isinstance(mask, Tensor):
        mask = _fit_mask(mask, image, size, details["fit"])
    reference_mask = None if mask is None else prepare_mask(mask, size)
    given = {**given, "size": size, "prompt": "-" if prompt is None else prompt}
    settings = complete_settings(model, "Style.from_image", **given)
    steps = settings["num_inference_steps"]
    check_details(details, steps)
    if prompt is None:
        caption = caption_picture(opened, model, captioner)
        settings["prompt"] = caption.prompt
        check_settings(settings)
        notes.append(f"captioned {caption.prompt!r}")
    if notes:
        name = "the picture" if isinstance(image, Image.Image) else str(image)
        warnings.warn(f"{name}: {', '.join(notes)}", Note, stacklevel=3)
    with exclusive_use(model):
        check_model(model, settings["options"])
        solver = make_solver(model, steps)
        warn_about_first_timestep(solver)
        text = embed(model, settings["prompt"], settings["negative_prompt"])
        latents = encode_picture(model, fitted)
        if method == "noise":
            generator = Generator().manual_seed(settings["seed"])
            sampled = torch.randn(latents.shape, generator=generator)
            noise = sampled if noise is None else check_noise(noise, settings["size"])
            rows = add_noise(latents, solver, noise.detach(), fresh=generator if details["fresh_noise"] else None)
        else:
            rows, residual = invert(
                model, latents, solver, text, condition_scale=details["inversion_scale"],
                iterations=details["iterations"], on_step=on_step,
            )  # fmt: skip
            rows = with_offset(rows, details["offset"])
            if details["iterations"] > 0:
                details = {**details, "residual": residual}
        check_latents(torch.cat(rows), settings["prompt"], model.unet)
        preview = fitted.copy()
        preview.thumbnail((PREVIEW, PREVIEW))
        return {
            **settings,
            "solver": describe_solver(solver),
            "model": describe_model(model),
            "text": text.conditional if settings["condition_scale"] in GUIDANCE_OFF else text,
            "trajectory": ReferenceTrajectory(steps, rows, preview=preview),
            "method": method,
            "picture": digest_picture(opened),
            "details": details,
            "weights": sample_weights(model),
            "reference_mask": reference_mask,
        }


def _fit_mask(
    mask: Image.Image | str | Path, picture: Image.Image | str | Path, size: tuple[int, int], fit: Fit
) -> Image.Image:
    """Bring a mask to the size of a picture's reference, as the picture was."""
    if mask == "alpha":
        mask = open_alpha(picture)
    return fit_picture(open_mask(mask), size, size, fit, color="black")[0]
