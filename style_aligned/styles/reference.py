"""The reference of a set: what it is generated from, and its way from noise, a step at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.defaults import GUIDANCE, STEPS
from style_aligned.models.denoising import (
    Model,
    TextEmbedding,
    Trajectory,
    check_latents,
    describe_solver,
    embed,
    make_solver,
    predict_noise,
    sample_noise,
)
from style_aligned.models.family import check_model, default_size, describe_model
from style_aligned.styles.file import StyleError, check_settings

CHECKED = ("class", "classifier_free_guidance", "precision", "fingerprint")  # of a model, what explains most first


@dataclass(frozen=True, eq=False)
class BaseReference:
    """What a reference is generated from: what a style and a reference that is being generated have in common.

    Attributes:
        prompt: The prompt of the reference.
        negative_prompt: The prompt to guide away from, for the targets too.
        seed: The seed of its noise, unless that was given.
        num_inference_steps: The number of steps.
        condition_scale: The strength of the classifier-free guidance, for the targets too.
        size: The height and width of the images, in pixels.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].
        solver: The name and parameters of the solver.
        model: The class, precision and fingerprint of the model, and whether it has classifier-free guidance.
        text: The text embedding of the reference.
    """

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    condition_scale: float
    size: tuple[int, int]
    options: dict[str, Any]
    solver: dict[str, Any]
    model: dict[str, Any]
    text: TextEmbedding = field(repr=False)

    def check(self, model: Model, force: bool = False) -> None:
        """Check that it fits a model.

        Args:
            model: The model, with its solver.
            force: Whether to let other weights of the same kind of model, or another precision, pass.

        Raises:
            StyleError: If it does not, with the reason.
            ValueError: If the model has self-attention guidance, or is adapted already.
        """
        check_model(model, {})
        kind = type(self).__name__.lower()
        own, given = self.model, describe_model(model)
        for name in CHECKED[:2] if force else CHECKED:
            if given[name] != own[name]:
                raise StyleError(f"expected a model with {name}={own[name]}, as the {kind}'s, got {given[name]}")
        given_solver = describe_solver(model.solver)
        if given_solver != self.solver:
            names, none = {**self.solver, **given_solver}, "nothing of that name"
            name = next(name for name in names if given_solver.get(name, none) != self.solver.get(name, none))
            raise StyleError(
                f"expected a solver with {name}={self.solver.get(name, none)}, as the {kind}'s, got"
                f" {given_solver.get(name, none)}"
            )
        try:
            StyleAlignedAdapter(model.unet, **self.options)
            make_solver(model, self.num_inference_steps)
        except ValueError as error:
            raise StyleError(f"the {kind} does not fit the model: {error}") from None

    def predict_noise(
        self, model: Model, solver: Solver, latents: Float[Tensor, "1 4 height width"], step: int
    ) -> Float[Tensor, "1 4 height width"]:
        """Have the reference go through the U-Net.

        Args:
            model: The model.
            solver: The solver, for its timesteps. It stays as it is.
            latents: The latents of the reference before the step.
            step: The step.

        Returns:
            The noise in the latents.
        """
        device, dtype = model.device, model.dtype
        text = TextEmbedding(*(tensor.to(device=device, dtype=dtype) for tensor in self.text.tensors.values()))
        latents = latents.to(device=device, dtype=dtype)
        return predict_noise(model, solver, latents, step, text=text, condition_scale=self.condition_scale)


@dataclass(frozen=True, eq=False)
class Reference(BaseReference):
    """The reference of a set while it is being generated: it becomes a [`Style`][style_aligned.styles.Style].

    [`generate`][style_aligned.sampling.generate] does its steps along with those of its targets: what goes through the
    U-Net to be recorded for them is its own step. That saves the passes that making the style beforehand takes.
    Everything else is fixed; only `states` grows.

    Attributes:
        states: Its latents before each step so far and before the next one, each with the solver and the source of
            noise as they were then.
    """

    states: list[Trajectory] = field(repr=False)

    @classmethod
    @torch.no_grad()
    def from_prompt(
        cls,
        model: Model,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        noise: Float[Tensor, "1 4 height width"] | None = None,
        num_inference_steps: int = STEPS,
        condition_scale: float = GUIDANCE,
        size: tuple[int, int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> "Reference":
        """Start from a prompt and noise. No step is done yet.

        Args:
            model: The model, with the solver to use.
            prompt: The prompt of the reference.
            negative_prompt: The prompt to guide away from.
            seed: The seed of the noise.
            noise: The noise itself, in place of what the seed gives.
            num_inference_steps: The number of steps.
            condition_scale: The strength of the classifier-free guidance.
            size: The height and width in pixels. None means what the model was trained for.
            options: Options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].

        Raises:
            ValueError: If the prompt is empty, a number out of its range, an option not one that a style can have, the
                solver not one that can do these steps, or if the model has self-attention guidance or is adapted
                already.
        """
        size = default_size(model) if size is None else size
        options = dict(options or {})
        settings: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "num_inference_steps": num_inference_steps,
            "condition_scale": condition_scale,
            "size": size,
            "options": options,
        }
        check_settings(settings)
        check_model(model, options)
        noise = sample_noise(model, seed, size) if noise is None else noise
        if noise.shape != (1, 4, size[0] // 8, size[1] // 8):
            raise ValueError(f"expected noise of shape {(1, 4, size[0] // 8, size[1] // 8)}, got {tuple(noise.shape)}")
        if not noise.isfinite().all():
            raise ValueError("expected noise to be finite, got NaN or infinity")

        solver = make_solver(model, num_inference_steps)
        noise = noise.to(device=model.device, dtype=model.dtype, copy=True)  # the caller's may change
        return cls(
            **settings,
            solver=describe_solver(solver),
            model=describe_model(model),
            text=embed(model, prompt, negative_prompt),
            states=[Trajectory(model, solver, seed=seed, noise=noise)],
        )

    @property
    def steps_done(self) -> int:
        """The number of steps that are done."""
        return len(self.states) - 1

    @property
    def latents(self) -> Float[Tensor, "steps 4 height width"]:
        """The latents before each step so far, and before the next one."""
        return torch.cat([state.latents for state in self.states])

    def check(self, model: Model, force: bool = False) -> None:
        """Check that it was started with a model, as that is now.

        Args:
            model: The model, with its solver.
            force: Ignored: a reference's steps must all be done by one model.

        Raises:
            StyleError: If it was not, with the reason.
            ValueError: If the model has self-attention guidance, or is adapted already.
        """
        super().check(model)
        device = self.states[0].latents.device
        if torch.empty(0, device=model.device).device != device:  # "cuda" is "cuda:0"
            raise StyleError(
                f"expected a model on {device}, where the reference was started, got one on {model.device}"
            )

    @torch.no_grad()
    def advance(self, model: Model, step: int) -> bool:
        """Go through the U-Net at a step, and do that step if it is the next one.

        What is interrupted has changed nothing.

        Args:
            model: The model that it was started with.
            step: The step: the next one, or one that is done.

        Returns:
            Whether it was the next one.

        Raises:
            ValueError: If there is no such step or those before it are not done, or if the latents overflow.
        """
        if not 0 <= step < self.num_inference_steps or step > self.steps_done:
            raise ValueError(
                f"expected a step between 0 and {min(self.steps_done, self.num_inference_steps - 1)}, got {step}"
            )
        state = self.states[step]
        predicted_noise = self.predict_noise(model, state.solver, state.latents, step)
        if step < self.steps_done:
            return False
        state = state.copy()
        state.advance(predicted_noise, step)
        check_latents(state.latents, self.prompt)
        self.states.append(state)
        return True

    def finish(self, model: Model, on_step: Callable[[int], None] | None = None) -> None:
        """Do the steps that are left.

        Args:
            model: The model that it was started with.
            on_step: Called after each step, with the number of images that have done one, which is 1.

        Raises:
            StyleError: If the model is another one, or has another solver.
            ValueError: If the model has self-attention guidance or is adapted, or if the latents overflow.
        """
        self.check(model)
        while self.steps_done < self.num_inference_steps:
            self.advance(model, self.steps_done)
            if on_step is not None:
                on_step(1)
