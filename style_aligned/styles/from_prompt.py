"""From a prompt to a style: the noise that its reference starts from."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from style_aligned.models.extras.control import controls_of
from style_aligned.models.model import Model, check_is_model, check_model, describe_model, sample_weights
from style_aligned.models.solvers import (
    Trajectory,
    describe_solver,
    make_solver,
    sample_noise,
    warn_about_first_timestep,
)
from style_aligned.models.state import exclusive_use
from style_aligned.models.text import embed
from style_aligned.styles.control import Control, Pictures, read_pictures
from style_aligned.styles.mask import prepare_mask
from style_aligned.styles.settings import GUIDANCE_OFF, check_noise, complete_settings
from style_aligned.styles.trajectory import ReferenceTrajectory


def read_prompt(
    model: Model,
    prompt: str,
    *,
    noise: Tensor | None,
    mask: Tensor | Image.Image | str | Path | None,
    control: Pictures | None,
    **given: Any,
) -> dict[str, Any]:
    """Make all that a `Style` is made of, from a prompt: see `Style.from_prompt`. No step is done.

    Args:
        model: The model, with the solver to use.
        prompt: The prompt.
        noise: The noise, in place of what the seed gives.
        mask: Which part of the reference gives the style.
        control: A picture that the reference follows, or a list with one for each of several control models.
        given: The other settings, for `complete_settings`. None means what is recommended.

    Returns:
        The arguments of `Style`.
    """
    check_is_model(model)
    settings = complete_settings(model, "Style.from_prompt", prompt=prompt, **given)
    steps, seed, size = (settings[name] for name in ("num_inference_steps", "seed", "size"))
    is_guided = settings["condition_scale"] not in GUIDANCE_OFF
    with exclusive_use(model):
        check_model(model, settings["options"])
        noise = sample_noise(model, seed, size) if noise is None else check_noise(noise, size)
        solver = make_solver(model, steps)
        warn_about_first_timestep(solver)
        noise = noise.to(device=model.device, dtype=model.dtype, copy=True)  # the caller's may change
        pictures = [] if control is None else read_pictures(model, [control], size)
        return {
            **settings,
            "control": Control(controls_of(model), pictures).describe(0) if pictures else [],
            "control_pictures": tuple(picture for own in pictures for picture in own),
            "solver": describe_solver(solver),
            "model": describe_model(model),
            "text": embed(model, prompt, settings["negative_prompt"] if is_guided else None),
            "trajectory": ReferenceTrajectory.start(steps, Trajectory(model, solver, seed, noise), model),
            "weights": sample_weights(model),
            "reference_mask": None if mask is None else prepare_mask(mask, size),
        }
