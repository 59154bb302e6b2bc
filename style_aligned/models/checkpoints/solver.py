"""The noise schedule that the weights were trained for, read from diffusers' settings."""

import warnings
from dataclasses import dataclass
from typing import Any

from refiners.foundationals.latent_diffusion.solvers import DDIM, NoiseSchedule, SolverParams, TimestepSpacing
from torch import Generator, Tensor

from style_aligned.models.checkpoints.errors import CheckpointError

MAX_TIMESTEPS = 10_000  # for each of which a solver has numbers in memory
NOISE_SCHEDULES = {"scaled_linear": NoiseSchedule.QUADRATIC, "linear": NoiseSchedule.UNIFORM}


class SourceDDIM(DDIM):
    """DDIM as the models' authors and diffusers run it.

    Refiners' drops the noise of the very last step. The schedule of SDXL and SD 1.5 does not end without noise
    (diffusers: `set_alpha_to_one=False`): what is left has a deviation of 0.03, and it belongs to the picture.

    See [[arXiv:2010.02502] Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502) for more details.
    """

    def __call__(self, x: Tensor, predicted_noise: Tensor, step: int, generator: Generator | None = None) -> Tensor:
        """Apply one step of the backward diffusion process.

        Args:
            x: The latents, of any shape.
            predicted_noise: What the U-Net predicts for them, of the same shape.
            step: The index of the step.
            generator: Ignored, this solver is deterministic.

        Returns:
            The latents of the next step, of the same shape.
        """
        denoised_x = super().__call__(x=x, predicted_noise=predicted_noise, step=step, generator=generator)
        if step == self.num_inference_steps - 1:
            denoised_x = denoised_x + self.noise_std[0] * predicted_noise
        return denoised_x


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of a model; the defaults are those of SDXL and SD 1.5.

    Attributes:
        num_train_timesteps: The number of timesteps in training.
        beta_start: The diffusion rate of the first.
        beta_end: The diffusion rate of the last.
        beta_schedule: How it goes from one to the other, in diffusers' words.
        steps_offset: The last timestep of a picture.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1

    @classmethod
    def from_config(cls, config: dict[str, Any], where: object) -> "Schedule":
        """Read the schedule from diffusers' `scheduler_config.json`.

        Raises:
            CheckpointError: For a model that predicts anything but noise, a schedule that Refiners does not know, or
                settings that no model has.
        """
        kind = str(config.get("_class_name", ""))
        if kind.startswith("EDM") or config.get("trained_betas") is not None:
            what = "noise levels in the way of EDM" if kind.startswith("EDM") else "betas of its own"
            raise CheckpointError(f"{where}: a model with {what}, for which Refiners has no solver")
        prediction = config.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise CheckpointError(f"{where}: a model that predicts {prediction!r}; only 'epsilon' (noise) is supported")
        if config.get("timestep_spacing", "leading") != "leading":
            warnings.warn(
                f"{where}: timesteps spaced {config['timestep_spacing']!r}; they will be 'leading' here", stacklevel=2
            )
        try:
            fields = {name: type(default)(config.get(name, default)) for name, default in vars(cls()).items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{where}: settings that make no sense: {error}") from error
        if fields["beta_schedule"] not in NOISE_SCHEDULES:
            raise CheckpointError(
                f"{where}: a beta schedule {fields['beta_schedule']!r}; expected one of {', '.join(NOISE_SCHEDULES)}"
            )
        schedule = cls(**fields)
        if (
            not 2 <= schedule.num_train_timesteps <= MAX_TIMESTEPS
            or not 0 < schedule.beta_start <= schedule.beta_end < 1
            or not 0 <= schedule.steps_offset < schedule.num_train_timesteps
        ):
            raise CheckpointError(
                f"{where}: settings that make no sense: expected 2 to {MAX_TIMESTEPS} timesteps, an offset among them,"
                f" and betas that grow between 0 and 1, got {fields}"
            )
        return schedule

    def solver(self, num_inference_steps: int = 30) -> SourceDDIM:
        """Build the solver of this schedule, in float32: numbers near 1 are too coarse in half precision."""
        return SourceDDIM(
            num_inference_steps=num_inference_steps,
            params=SolverParams(
                num_train_timesteps=self.num_train_timesteps,
                timesteps_spacing=TimestepSpacing.LEADING,
                timesteps_offset=self.steps_offset,
                initial_diffusion_rate=self.beta_start,
                final_diffusion_rate=self.beta_end,
                noise_schedule=NOISE_SCHEDULES[self.beta_schedule],
            ),
        )
