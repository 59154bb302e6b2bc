"""One step of denoising: the only place where latents go through a U-Net."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor, device as Device

from style_aligned.models.contexts import repeat_rows
from style_aligned.models.family import PIXELS, family_of
from style_aligned.models.model import Model
from style_aligned.models.solvers import Trajectory
from style_aligned.models.text import TextEmbedding, stack


def take_step(
    model: Model,
    trajectories: Sequence[Trajectory],
    step: int,
    *,
    texts: Sequence[TextEmbedding],
    condition_scale: float | int,
) -> list[Trajectory]:
    """Do one step of some images, all at once.

    Args:
        model: The model.
        trajectories: The images, of one size. They stay as they are.
        step: The step.
        texts: The text embedding of each.
        condition_scale: The strength of the guidance.

    Returns:
        The images after the step.
    """
    latents = torch.cat([trajectory.latents for trajectory in trajectories])
    predicted_noise = predict_noise(
        model, trajectories[0].solver, latents, step, text=stack(texts), condition_scale=condition_scale
    )
    parts = zip(trajectories, predicted_noise.to(dtype=latents.dtype).chunk(len(trajectories)), strict=True)
    return [trajectory.after(own, step) for trajectory, own in parts]


def predict_noise(
    model: Model,
    solver: Solver,
    x: Float[Tensor, "images 4 height width"],
    step: int,
    *,
    text: TextEmbedding,
    condition_scale: float | int,
) -> Float[Tensor, "images 4 height width"]:
    """Predict the noise in some latents at a step of a solver, with classifier-free guidance if the text has it.

    Args:
        model: The model.
        solver: The solver, for its timesteps and the scale of the model's input. It stays as it is.
        x: The latents.
        step: The step.
        text: The text embeddings, with the rows of `x` in each half. With one half there is no guidance.
        condition_scale: The strength of the guidance.
    """
    return predict_noise_at(
        model,
        solver.scale_model_input(x, step=step),
        solver.timesteps[step],
        text=text,
        condition_scale=condition_scale,
    )


def predict_noise_at(
    model: Model,
    x: Float[Tensor, "images 4 height width"],
    timestep: Tensor,
    *,
    text: TextEmbedding,
    condition_scale: float | int,
) -> Float[Tensor, "images 4 height width"]:
    """Predict the noise in some latents at a timestep, with classifier-free guidance if the text has it.

    Args:
        model: The model.
        x: The latents, scaled as the model takes them.
        timestep: The timestep, a single number.
        text: The text embeddings, with the rows of `x` in each half. With one half there is no guidance.
        condition_scale: The strength of the guidance.
    """
    halves = text.rows // len(x)
    context: dict[str, Any] = dict(text.tensors)
    if isinstance(model, StableDiffusion_XL) and family_of(model).takes_size:
        height, width = (PIXELS * length for length in x.shape[-2:])
        context["time_ids"] = time_ids((height, width), rows=text.rows, device=x.device)
    model.set_unet_context(timestep=timestep.unsqueeze(dim=0), **context)
    with repeat_rows(model.unet, halves=halves, images=len(x)):
        prediction: Tensor = model.unet(x.repeat(halves, 1, 1, 1))
    if halves == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional + condition_scale * (conditional - unconditional)


def time_ids(
    size: tuple[int, int],
    *,
    rows: int = 2,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    device: Device | str = "cpu",
) -> Int[Tensor, "rows 6"]:
    """Tell SDXL the real size of the image: Refiners' `default_time_ids` always says 1024x1024.

    See [[arXiv:2307.01952] SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis
    ](https://arxiv.org/abs/2307.01952), section 2.2.

    Args:
        size: The height and width of the image, in pixels.
        rows: The number of rows of the batch: twice the images, with classifier-free guidance.
        original_size: The height and width that the image pretends to have had before it was scaled; `size` if `None`.
        crop: The top and left at which it pretends to have been cropped.
        device: The PyTorch device to use.

    Example:
        >>> time_ids((768, 1344), rows=1).tolist()
        [[768, 1344, 0, 0, 768, 1344]]
    """
    values = [*(original_size or size), *crop, *size]
    return torch.tensor(data=values, device=device).repeat(rows, 1)
