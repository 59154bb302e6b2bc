"""DDIM as diffusers runs it, for every noise schedule and prediction that a checkpoint can ask for."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM, SolverParams, TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.solver import ResolvedSolverParams
from torch import Generator, Tensor

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(kw_only=True, frozen=True)
class SourceParams(ResolvedSolverParams):
    """Parameters of a solver that Refiners' have no names for; the names are diffusers'.

    Attributes:
        prediction_type: What the U-Net predicts: the noise, or the velocity.
        rescale_betas_zero_snr: Whether the schedule is rescaled to end in pure noise.
        set_alpha_to_one: Whether the last step goes to a picture without any noise.
    """

    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False


class SourceDDIM(DDIM):
    """DDIM as the models' authors and diffusers run it.

    Refiners' drops the noise of the very last step. The schedule of SDXL and SD 1.5 does not end without noise
    (diffusers: `set_alpha_to_one=False`): what is left has a deviation of 0.03, and it belongs to the picture.
    Refiners' has neither velocity prediction nor zero terminal SNR, and its `TRAILING` has a timestep too many.

    See [[arXiv:2010.02502] Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502) for more details, and
    [[arXiv:2305.08891] Common Diffusion Noise Schedules and Sample Steps are Flawed](https://arxiv.org/abs/2305.08891).
    """

    def __init__(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
        """Initialize the SourceDDIM.

        Args:
            num_inference_steps: The number of steps.
            *args: As for Refiners' `DDIM`.
            **kwargs: As for Refiners' `DDIM`; `params` may be `SourceParams`.

        Raises:
            ValueError: If the model predicts noise, and a step is at a timestep where there is nothing but noise.
        """
        super().__init__(num_inference_steps, *args, **kwargs)
        reached = self.timesteps[self.timesteps < len(self.cumulative_scale_factors)]
        if self.prediction_type == "epsilon" and (self.cumulative_scale_factors[reached] == 0).any():
            raise ValueError(
                f"a model that predicts noise cannot start at timestep {int(reached[0])}, where there is nothing but"
                " noise (zero terminal SNR): expected timestep_spacing='leading', or a model that predicts velocity"
            )

    @property
    def prediction_type(self) -> PredictionType:
        """What the U-Net predicts."""
        return self.params.prediction_type if isinstance(self.params, SourceParams) else "epsilon"

    def resolve_params(self, params: SolverParams | ResolvedSolverParams | None) -> ResolvedSolverParams:
        return params if isinstance(params, SourceParams) else super().resolve_params(params)

    def sample_noise_schedule(self) -> Tensor:
        scale_factors = super().sample_noise_schedule()
        if isinstance(self.params, SourceParams) and self.params.rescale_betas_zero_snr:
            signal = scale_factors.cumprod(dim=0).sqrt()
            squared = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2
            scale_factors = torch.cat([squared[:1], squared[1:] / squared[:-1]])
        return scale_factors

    def _generate_timesteps(self) -> Tensor:
        count, total = self.num_inference_steps, self.params.num_train_timesteps
        match self.params.timesteps_spacing:
            case TimestepSpacing.TRAILING:
                timesteps = [round(end) - 1 for end in np.arange(total, 0, -total / count)[:count].tolist()]
            case TimestepSpacing.LINSPACE:
                timesteps = [round(timestep) for timestep in reversed(np.linspace(0, total - 1, count).tolist())]
            case _:
                return super()._generate_timesteps()
        return torch.tensor(timesteps)

    def __call__(self, x: Tensor, predicted_noise: Tensor, step: int, generator: Generator | None = None) -> Tensor:
        """Apply one step of the backward diffusion process.

        Args:
            x: The latents, of any shape.
            predicted_noise: What the U-Net predicts for them, of the same shape: noise, or velocity.
            step: The index of the step.
            generator: Ignored, this solver is deterministic.

        Returns:
            The latents of the next step, of the same shape.
        """
        assert self.first_inference_step <= step < self.num_inference_steps, f"invalid step {step}"
        previous = int(self.timesteps[step]) - self.params.num_train_timesteps // self.num_inference_steps
        scale = self.cumulative_scale_factors[max(previous, 0)]
        if previous < 0 and isinstance(self.params, SourceParams) and self.params.set_alpha_to_one:
            scale = torch.ones_like(scale)
        if self.prediction_type == "v_prediction":
            current, std = self._signal_and_noise(step)
            noise = current * predicted_noise + std * x
        else:
            noise = predicted_noise
        return scale * self.remove_noise(x, predicted_noise, step) + torch.sqrt(1 - scale**2) * noise

    def remove_noise(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """Return the picture that a prediction means.

        Args:
            x: The latents.
            noise: What the U-Net predicts for them: noise, or velocity.
            step: The index of the step.
        """
        current, std = self._signal_and_noise(step)
        if self.prediction_type == "v_prediction":
            return current * x - std * noise
        return (x - std * noise) / current

    def _signal_and_noise(self, step: int) -> tuple[Tensor, Tensor]:
        signal = self.cumulative_scale_factors[self.timesteps[step]]
        return signal, torch.sqrt(1 - signal**2)
