"""Other solvers, and settings for models and LoRAs that draw in few steps."""

from dataclasses import dataclass, replace
from typing import Any

from refiners.foundationals.latent_diffusion.solvers import DPMSolver, Euler, LCMSolver, Solver, TimestepSpacing

from style_aligned.models.checkpoints.solver import SourceDDIM
from style_aligned.models.model import Model
from style_aligned.words import show


@dataclass(frozen=True)
class Preset:
    """Settings for a kind of model of few steps.

    Attributes:
        num_inference_steps: The number of steps.
        condition_scale: The strength of the classifier-free guidance: 0 is none, which these models are made for.
        is_consistency_model: Whether the solver is that of latent consistency models, and not DDIM from the last
            timestep of training.
    """

    num_inference_steps: int
    condition_scale: float = 0.0
    is_consistency_model: bool = False


PRESETS = {
    "lcm": Preset(4, is_consistency_model=True),
    "lightning": Preset(4),
    "turbo": Preset(1),
    "hyper": Preset(8),
}
"""The presets: for LCM-LoRA, SDXL-Lightning, SDXL-Turbo and SD-Turbo, and Hyper-SD."""


def use_preset(model: Model, name: str) -> Preset:
    """Give a model the solver of a preset.

    Args:
        model: The model, whose weights or LoRA are made for few steps.
        name: One of `PRESETS`.

    Returns:
        The preset, for the number of steps and the guidance of a style.

    Raises:
        ValueError: If there is no such preset, or the model is not one from a file.

    Example:
        ```py
        from style_aligned.models.presets import PRESETS

        assert PRESETS["lightning"].num_inference_steps == 4
        ```
    """
    if name not in PRESETS:
        raise ValueError(f"expected preset to be one of {', '.join(PRESETS)}, got {show(name)}")
    solver: Any = model.solver
    if not isinstance(solver, SourceDDIM | LCMSolver):
        raise ValueError(
            f"expected a model from a checkpoint for the preset {name}, got one with {type(solver).__name__}"
        )
    preset = PRESETS[name]
    steps, device = preset.num_inference_steps, solver.device
    if preset.is_consistency_model:
        model.solver = LCMSolver(num_inference_steps=steps, device=device)
    else:
        params = SourceDDIM(1).params if isinstance(solver, LCMSolver) else solver.params
        params = replace(params, timesteps_spacing=TimestepSpacing.TRAILING)
        model.solver = SourceDDIM(steps, params=params, device=device)
    return preset


SOLVERS: dict[str, type[Solver]] = {"dpm": DPMSolver, "euler": Euler, "lcm": LCMSolver}
"""Refiners' solvers, beside DDIM, which is the models' own."""


def use_solver(model: Model, name: str) -> None:
    """Give a model another solver.

    Args:
        model: The model, which predicts noise.
        name: One of `SOLVERS`, or `"ddim"` for the model's own.

    Raises:
        ValueError: If there is no such solver, or the model predicts velocity, or has a noise schedule of its own.
    """
    if name == "ddim":
        return
    if name not in SOLVERS:
        raise ValueError(f"expected solver to be one of ddim, {', '.join(SOLVERS)}, got {show(name)}")
    params: Any = model.solver.params
    usual = (getattr(params, "prediction_type", "epsilon"), getattr(params, "rescale_betas_zero_snr", False))
    if usual != ("epsilon", False):
        raise ValueError(
            f"expected a model that predicts noise for the solver {name}, got one that predicts velocity or has no"
            " signal at the last timestep: leave the solver as it is"
        )
    model.solver = SOLVERS[name](num_inference_steps=model.solver.num_inference_steps, device=model.solver.device)
