"""Solvers as the model's own, for any number of steps, and the latents that they take from noise to an image."""

import warnings
from copy import copy, deepcopy
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, LCMSolver, Solver
from torch import Generator, Tensor

from style_aligned.models.family import latents_shape
from style_aligned.models.model import Model
from style_aligned.notes import Note

MAX_SIGNAL = 0.0125
"""How much more of a picture's variance the first timestep can have than the last of training, without a warning."""


def describe_solver(solver: Solver) -> dict[str, Any]:
    """Return the name of a solver and what it was set up with, its number of steps aside."""
    parameters = {name: getattr(value, "value", value) for name, value in asdict(solver.params).items()}
    if isinstance(solver, DPMSolver):
        parameters["last_step_first_order"] = solver.last_step_first_order
    if isinstance(solver, LCMSolver):
        parameters["num_orig_steps"] = solver.dpm.num_inference_steps
    return {"name": type(solver).__name__, **parameters}


def make_solver(model: Model, num_inference_steps: int) -> Solver:
    """Make a solver as the model's, for a number of steps.

    Args:
        model: The model.
        num_inference_steps: The number of steps.

    Raises:
        ValueError: If the model's is on another device, if Refiners cannot make one, if it would not be the same in
            everything else, or if there are too many steps to start from noise, as there can be for solvers whose
            timesteps have whole distances.
    """
    name = type(model.solver).__name__
    if (device := torch.empty(0, device=model.device).device) != model.solver.device:  # "cuda" is "cuda:0"
        raise ValueError(f"expected a solver on {device}, as the model, got {name} on {model.solver.device}")
    trained, solved = (getattr(thing, "prediction_type", "epsilon") for thing in (model, model.solver))
    if trained != solved:
        raise ValueError(
            f"expected a solver for a model that predicts {trained!r}, got {name}, which is for {solved!r}"
        )
    try:
        solver = model.solver.rebuild(num_inference_steps=num_inference_steps, first_inference_step=0)
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"expected a solver that can do {num_inference_steps} steps, got {name}: {error}") from None
    own, made = describe_solver(model.solver), describe_solver(solver)
    if differing := [key for key in own if own[key] != made[key]]:
        key = differing[0]
        raise ValueError(f"expected {name} with {key}={made[key]}, which is all that it can be set to, got {own[key]}")
    first, total = int(solver.timesteps[0]), solver.params.num_train_timesteps
    if first >= total or (num_inference_steps > total // 2 and first < 0.75 * total):
        raise ValueError(
            f"expected at most {total // 2} steps of {name}, got {num_inference_steps}, which would start at timestep"
            f" {first} of 0 to {total - 1} instead of from noise"
        )
    return solver


def warn_about_first_timestep(solver: Solver) -> None:
    """Warn about steps that start far from where training ended, from noise that the model takes for half a picture.

    Args:
        solver: The solver.
    """
    first, last = int(solver.timesteps[0]), len(solver.cumulative_scale_factors) - 1
    signal = solver.cumulative_scale_factors.square()[[min(first, last), last]]
    if float(signal[0] - signal[1]) > MAX_SIGNAL:
        count = solver.num_inference_steps
        warnings.warn(
            f"{count} {'step' if count == 1 else 'steps'} of {type(solver).__name__} start at timestep {first} of"
            f" {last}, where {float(signal[0]):.0%} of a picture is there already, but from pure noise: take more"
            " steps, or timestep spacing trailing for a model of few steps",
            Note,
            stacklevel=4,
        )


def sample_noise(model: Model, seed: int, size: tuple[int, int]) -> Float[Tensor, "1 4 height width"]:
    """Sample the noise that an image starts from: the same on every device, and whatever else is sampled.

    Args:
        model: The model.
        seed: The seed.
        size: The height and width of the image, in pixels.
    """
    noise = torch.randn(latents_shape(size), generator=Generator().manual_seed(seed))
    return noise.to(device=model.device, dtype=model.dtype)


class Trajectory:
    """The latents of one image on their way from noise, with a solver and a source of noise of their own.

    That way neither the state of a solver nor its noise depends on what else is generated. A trajectory does not
    change: a step gives another one, so that a step that is interrupted can be done again.
    """

    def __init__(self, model: Model, solver: Solver, seed: int, noise: Float[Tensor, "1 4 height width"]) -> None:
        """Initialize the Trajectory.

        Args:
            model: The model.
            solver: The solver, of which a copy is taken.
            seed: The seed for solvers that add noise at each step, such as LCM's. On a GPU it gives other noise.
            noise: The noise to start from.
        """
        self.solver = _copy(solver)
        self.generator = Generator(device=model.device).manual_seed(seed)
        # past the numbers that the seed gives for the first noise: what is added later must not be that noise again
        torch.randn(noise.shape, generator=self.generator, device=model.device)
        self.latents = solver.scale_model_input(noise, step=-1)

    def after(self, predicted_noise: Float[Tensor, "1 4 height width"], step: int) -> "Trajectory":
        """Do one step of the solver.

        Args:
            predicted_noise: The noise in the latents.
            step: The step.

        Returns:
            The trajectory after the step.
        """
        other = copy(self)
        other.solver = _copy(self.solver)
        other.generator = Generator(device=self.generator.device)
        other.generator.set_state(self.generator.get_state())
        latents = other.solver(self.latents, predicted_noise=predicted_noise, step=step, generator=other.generator)
        other.latents = latents.to(dtype=self.latents.dtype)  # solvers in float32, such as LCM's, may have raised it
        return other


def _copy(solver: Solver) -> Solver:
    """Copy a solver with its state. What is the same for all steps, such as its timesteps, is shared."""
    shared = {id(value): value for value in vars(solver).values() if isinstance(value, Tensor)}
    return deepcopy(solver, shared)
