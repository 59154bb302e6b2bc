"""The noise schedule that the weights were trained for, in the words of diffusers' settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from refiners.foundationals.latent_diffusion.solvers import NoiseSchedule, TimestepSpacing
from refiners.foundationals.latent_diffusion.solvers.solver import ModelPredictionType, ResolvedSolverParams
from torch import Tensor

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.solver import PredictionType, SourceDDIM, SourceParams

MAX_TIMESTEPS = 10_000  # for each of which a solver has numbers in memory
NOISE_SCHEDULES = {"scaled_linear": NoiseSchedule.QUADRATIC, "linear": NoiseSchedule.UNIFORM}
SPACINGS = {
    spacing.value: spacing for spacing in (TimestepSpacing.LEADING, TimestepSpacing.TRAILING, TimestepSpacing.LINSPACE)
}
PREDICTIONS: dict[str, PredictionType] = {  # and how else people write them
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v_prediction", "v", "v_pred", "vpred", "velocity"), "v_prediction"),
}


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of a model; the defaults are those of SDXL and SD 1.5.

    Attributes:
        num_train_timesteps: The number of timesteps in training.
        beta_start: The diffusion rate of the first.
        beta_end: The diffusion rate of the last.
        beta_schedule: How it goes from one to the other: `"scaled_linear"` or `"linear"`.
        steps_offset: The last timestep of a picture.
        timestep_spacing: Which timesteps the steps are at: `"leading"`, `"trailing"` or `"linspace"`.
        prediction_type: What the U-Net predicts: `"epsilon"` (noise) or `"v_prediction"` (velocity).
        rescale_betas_zero_snr: Whether the schedule ends in pure noise.
        set_alpha_to_one: Whether the last step leaves no noise at all.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1
    timestep_spacing: str = "leading"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: object) -> "Schedule":
        """Read the schedule from diffusers' `scheduler_config.json`.

        Args:
            config: The settings.
            where: Their file, for messages.

        Raises:
            CheckpointError: For a model that predicts anything but noise or velocity, a schedule that no solver here
                can do, or settings that no model has.
        """
        values: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            value = config.get(name, default)
            try:
                if isinstance(default, bool) and not isinstance(value, bool):
                    raise ValueError(f"expected true or false as {name}, got {value!r}")
                values[name] = type(default)(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(f"{where}: settings that make no sense: {error}") from error
        values["prediction_type"] = read_prediction_type(values["prediction_type"], where)
        for name, known in (("beta_schedule", NOISE_SCHEDULES), ("timestep_spacing", SPACINGS)):
            if values[name] not in known:
                raise CheckpointError(
                    f"{where}: a {name.replace('_', ' ')} {values[name]!r}; expected one of {', '.join(known)}"
                )
        schedule = cls(**values)
        if (
            not 2 <= schedule.num_train_timesteps <= MAX_TIMESTEPS
            or not 0 < schedule.beta_start <= schedule.beta_end < 1
            or not 0 <= schedule.steps_offset < schedule.num_train_timesteps
        ):
            raise CheckpointError(
                f"{where}: settings that make no sense: expected 2 to {MAX_TIMESTEPS} timesteps, an offset among them,"
                f" and betas that grow between 0 and 1, got {values}"
            )
        return schedule

    @property
    def alphas_cumprod(self) -> Tensor:
        """How much of the picture's variance there is at each timestep."""
        return self.solver(1).cumulative_scale_factors.square()

    def fitted(self, alphas_cumprod: Tensor, tolerance: float) -> "Schedule | None":
        """Return the schedule that has given numbers: this one, this one with or without zero terminal SNR, or another.

        Args:
            alphas_cumprod: The numbers, in float64.
            tolerance: The relative error that they may have.

        Returns:
            The schedule, or None where no schedule that is known has such numbers.
        """
        if not 2 <= len(alphas_cumprod) <= MAX_TIMESTEPS:
            return None
        plain = replace(self, num_train_timesteps=len(alphas_cumprod), timestep_spacing="leading")
        candidates = [replace(plain, rescale_betas_zero_snr=zero) for zero in (False, True)]
        if alphas_cumprod[-1] > 0:
            start, end = float(1 - alphas_cumprod[0]), float(1 - alphas_cumprod[-1] / alphas_cumprod[-2])
            if 0 < start <= end < 1:
                candidates += [
                    replace(plain, beta_start=start, beta_end=end, beta_schedule=kind, rescale_betas_zero_snr=False)
                    for kind in NOISE_SCHEDULES
                ]
        errors = [_relative_error(alphas_cumprod, candidate.alphas_cumprod.double()) for candidate in candidates]
        best = min(range(len(errors)), key=errors.__getitem__)
        if not errors[best] <= tolerance:
            return None
        return replace(candidates[best], timestep_spacing=self.timestep_spacing)

    def solver(self, num_inference_steps: int = 30) -> SourceDDIM:
        """Build the solver of this schedule, in float32: numbers near 1 are too coarse in half precision.

        Raises:
            ValueError: If the model predicts noise and a step is at a timestep where there is nothing else.
        """
        params: dict[str, Any] = {
            "num_train_timesteps": self.num_train_timesteps,
            "timesteps_spacing": SPACINGS[self.timestep_spacing],
            "timesteps_offset": self.steps_offset,
            "initial_diffusion_rate": self.beta_start,
            "final_diffusion_rate": self.beta_end,
            "noise_schedule": NOISE_SCHEDULES[self.beta_schedule],
            "model_prediction_type": ModelPredictionType.NOISE,
        }
        special = {
            name: getattr(self, name) for name in ("prediction_type", "rescale_betas_zero_snr", "set_alpha_to_one")
        }
        # style files hold a solver's parameters: those of the usual models have no others than Refiners' solvers
        is_special = any(special[name] != getattr(Schedule, name) for name in special)
        return SourceDDIM(
            num_inference_steps,
            params=SourceParams(**params, **special) if is_special else ResolvedSolverParams(**params),
        )


def read_prediction_type(value: object, where: object) -> PredictionType:
    """Read what a model predicts, however that is written.

    Args:
        value: What is written.
        where: Where it is, for messages.

    Raises:
        CheckpointError: For anything but noise and velocity.
    """
    name = str(value).strip().lower().replace("-", "_").replace(" ", "_")
    if name not in PREDICTIONS:
        raise CheckpointError(
            f"{where}: a model that predicts {value!r}; expected 'epsilon' (noise) or 'v_prediction' (velocity)"
        )
    return PREDICTIONS[name]


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest relative error, where numbers below 1e-4 count as that: half precision has them no better."""
    return float(((actual - expected).abs() / expected.clamp(min=1e-4)).max())
