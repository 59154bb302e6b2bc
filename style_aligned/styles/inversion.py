"""From the latents of a picture to a trajectory that leads to it: noised to every step, or inverted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from refiners.fluxion.utils import image_to_tensor
from refiners.foundationals.latent_diffusion import LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.solvers import Euler, Solver
from torch import Generator, Tensor

from style_aligned.models.denoising import predict_noise_at
from style_aligned.models.finite import check_finite
from style_aligned.models.model import Model
from style_aligned.models.text import TextEmbedding


@dataclass(frozen=True)
class NoiseLevels:
    """How much of the picture and how much noise there is before each step of a solver, and after the last one.

    Attributes:
        timesteps: The timestep of each step, of shape (steps,).
        signal: The factor of the picture's latents, of shape (steps + 1,). With the noise, its squares add up to 1.
        noise: The factor of the noise.
        scale: What the solver multiplies the sum by: 1, but for Euler's.
    """

    timesteps: Tensor
    signal: Float[Tensor, " levels"]
    noise: Float[Tensor, " levels"]
    scale: Float[Tensor, " levels"]


def noise_levels(solver: Solver) -> NoiseLevels:
    """Return the noise levels of a solver, in float32 on the CPU.

    Args:
        solver: The solver, for its timesteps and noise schedule.
    """
    timesteps = solver.timesteps.cpu()
    if isinstance(solver, Euler):
        sigmas = solver.sigmas.float().cpu()
        scale = (1 + sigmas**2).sqrt()
        return NoiseLevels(timesteps, 1 / scale, sigmas / scale, scale)
    signal = solver.scale_factors.float().cpu().cumprod(dim=0).sqrt()
    # one step before the last timestep: the schedule does not begin without noise
    last = int(timesteps[-1]) - solver.params.num_train_timesteps // solver.num_inference_steps
    ends_in_one = last < 0 and getattr(solver.params, "set_alpha_to_one", False)
    end = torch.ones(1) if ends_in_one else signal[max(last, 0)][None]
    signal = torch.cat((signal[timesteps.long().clamp(max=len(signal) - 1)], end))
    return NoiseLevels(timesteps, signal, (1 - signal**2).sqrt(), torch.ones(len(signal)))


def encode_picture(model: Model, image: Image.Image) -> Float[Tensor, "1 4 height width"]:
    """Encode a picture: the mean of the autoencoder's distribution, computed in float32.

    Args:
        model: The model, of which nobody else makes use meanwhile.
        image: The picture.

    Returns:
        The latents, in float32.

    Raises:
        NonFiniteError: If they overflow.
    """
    lda, dtype = model.lda, model.lda.dtype
    assert dtype is not None
    if dtype != torch.float32:  # SDXL's overflows in float16
        lda.to(dtype=torch.float32)
    try:
        pixels = image_to_tensor(image, device=lda.device, dtype=torch.float32)
        latents = LatentDiffusionAutoencoder.encode(lda, 2 * pixels - 1).float()
    finally:
        if dtype != torch.float32:
            lda.to(dtype=dtype)
    check_finite(latents, "lda", lda, "the latents of the picture")
    return latents


def add_noise(
    latents: Float[Tensor, "1 4 height width"],
    solver: Solver,
    noise: Float[Tensor, "1 4 height width"],
    fresh: Generator | None = None,
) -> list[Tensor]:
    """Noise the latents of a picture to every step of a solver. No model is needed for that.

    Args:
        latents: The latents.
        solver: The solver.
        noise: The noise.
        fresh: Where to take the noise of every step but the first from. None means the same noise for all steps.

    Returns:
        The latents before each step, and those of the picture.
    """
    levels, rows = noise_levels(solver), list[Tensor]()
    for step in range(len(levels.timesteps)):
        if fresh is not None and step > 0:
            noise = torch.randn(noise.shape, generator=fresh)
        rows.append(noise_to(latents, levels, noise, step))
    return [*rows, latents]


def noise_to(
    latents: Float[Tensor, "1 4 height width"],
    levels: NoiseLevels,
    noise: Float[Tensor, "1 4 height width"],
    step: int,
) -> Float[Tensor, "1 4 height width"]:
    """Noise the latents of a picture to the level before a step. After the last one it has no noise.

    Args:
        latents: The latents.
        levels: The noise levels of a solver.
        noise: The noise.
        step: The step, or the number of steps.
    """
    if step == len(levels.timesteps):
        return latents
    noisy = float(levels.signal[step]) * latents + float(levels.noise[step]) * noise.to(latents)
    return float(levels.scale[step]) * noisy


def invert(
    model: Model,
    latents: Float[Tensor, "1 4 height width"],
    solver: Solver,
    text: TextEmbedding,
    *,
    condition_scale: float | int,
    iterations: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> tuple[list[Tensor], float]:
    """Walk from the latents of a picture to noise, by the steps of DDIM backwards.

    Each step takes the noise that the model predicts at the latents that it comes from, with the timestep that it goes
    to. See [[arXiv:2105.05233] Diffusion Models Beat GANs on Image Synthesis](https://arxiv.org/abs/2105.05233),
    appendix F. Fixed-point iterations then predict it at the latents that the step goes to: see
    [[arXiv:2403.14602] ReNoise: Real Image Inversion Through Iterative Noising](https://arxiv.org/abs/2403.14602).

    Args:
        model: The model, of which nobody else makes use meanwhile.
        latents: The latents of the picture, in float32.
        solver: The solver, for its timesteps and noise schedule.
        text: The text embedding of the picture's prompt.
        condition_scale: The strength of the guidance.
        iterations: The number of fixed-point iterations of each step.
        on_step: Called after each step, with 1.

    Returns:
        The latents before each step, and those of the picture; and the largest distance that the last iteration of a
        step still went, relative to the latents: 0 without iterations.
    """
    levels = noise_levels(solver)
    halves = text if condition_scale not in (0, 1) else text.conditional
    x, rows, residual = latents, [latents], 0.0

    def predict(at: Tensor, step: int) -> Tensor:
        timestep = levels.timesteps[step].to(device=model.device)
        at = at.to(device=model.device, dtype=model.dtype)
        output = predict_noise_at(model, at, timestep, text=halves, condition_scale=condition_scale)
        return output.to(device=latents.device, dtype=torch.float32)

    for step in reversed(range(len(levels.timesteps))):
        source, target = ((levels.signal[level], levels.noise[level]) for level in (step + 1, step))
        # where the U-Net predicts velocity, a prediction means other noise at each level
        following = _step(x, _to_noise(predict(x, step), x, source, solver), source, target)
        distance = 0.0
        for _ in range(iterations):
            predicted_noise = _to_noise(predict(following, step), following, target, solver)
            refined = _step(x, predicted_noise, source, target)
            distance = float(((refined - following).square().sum() / refined.square().sum()).sqrt())
            following = refined
        residual = max(residual, distance)
        x = following
        rows.append(levels.scale[step] * x)
        if on_step is not None:
            on_step(1)
    return rows[::-1], residual


def with_offset(rows: list[Tensor], offset: int) -> list[Tensor]:
    """Have a reference skip the noisiest latents of its trajectory, as Google's code does.

    An inversion ends in latents that are not quite noise. The reference begins at the latents of the step `offset`, and
    stays there until its own trajectory has got there.

    Args:
        rows: The latents before each step, and those of the picture.
        offset: How many steps to skip.
    """
    steps = len(rows) - 1
    return [rows[offset], *(rows[max(offset + 1, step)] for step in range(1, steps + 1))]


def _step(x: Tensor, predicted_noise: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Go from one noise level to another, each given as the factors of signal and noise."""
    picture = (x - source[1] * predicted_noise) / source[0]
    return target[0] * picture + target[1] * predicted_noise


def _to_noise(output: Tensor, x: Tensor, level: tuple[Tensor, Tensor], solver: Solver) -> Tensor:
    """Return the noise that an output of the U-Net means: it may be velocity."""
    if getattr(solver.params, "prediction_type", "epsilon") == "v_prediction":
        return level[0] * output + level[1] * x
    return output
