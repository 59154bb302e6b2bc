"""The reference of a set: what it is generated from, and its way from noise, a step at a time."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from refiners.foundationals.latent_diffusion import StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor

from style_aligned.adapter import StyleAlignedAdapter
from style_aligned.defaults import GUIDANCE, STEPS
from style_aligned.denoising import (
    Model,
    TextEmbedding,
    Trajectory,
    describe_solver,
    embed,
    make_solver,
    predict_noise,
    sample_noise,
)
from style_aligned.style_file import StyleError, check_settings

CHECKED = ("class", "classifier_free_guidance", "precision", "fingerprint")  # of a model, what explains most first
SAMPLES = 64  # of each parameter, for the fingerprint of a model


@dataclass(frozen=True, eq=False)
class BaseReference:
    """What a reference is generated from: what a style and a reference on its way have in common.

    Attributes:
        prompt: The prompt of the reference.
        negative_prompt: The prompt to guide away from, for the targets too.
        seed: The seed of its noise.
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
        own, given = self.model, describe_model(model)
        for name in CHECKED[:2] if force else CHECKED:
            if given[name] != own[name]:
                raise StyleError(f"expected a model with {name}={own[name]}, as the style's, got {given[name]}")
        given_solver = describe_solver(model.solver)
        if given_solver != self.solver:
            name = next(
                name for name in {**self.solver, **given_solver} if given_solver.get(name) != self.solver.get(name)
            )
            raise StyleError(
                f"expected a solver with {name}={self.solver.get(name)}, as the style's, got {given_solver.get(name)}"
            )
        try:
            StyleAlignedAdapter(model.unet, **self.options)
        except ValueError as error:
            raise StyleError(f"the style does not fit the model: {error}") from None

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
    """The reference of a set, on its way to be a [`Style`][style_aligned.style.Style].

    [`generate`][style_aligned.sampling.generate] takes it along with the images of its set: each step of it goes
    through the U-Net once, for itself and for them. With a style that was made before, it does so twice.

    Attributes:
        trajectory: The latents that it has come to.
        passed: The latents before each step so far, the next one included.
    """

    trajectory: Trajectory = field(repr=False)
    passed: list[Float[Tensor, "1 4 height width"]] = field(repr=False)

    @classmethod
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
        trajectory = Trajectory(model, solver, seed=seed, noise=noise.to(device=model.device, dtype=model.dtype))
        return cls(
            **settings,
            solver=describe_solver(solver),
            model=describe_model(model),
            text=embed(model, prompt, negative_prompt),
            trajectory=trajectory,
            passed=[trajectory.latents],
        )

    @property
    def steps_done(self) -> int:
        """The number of steps that are done."""
        return len(self.passed) - 1

    @torch.no_grad()
    def advance(self, model: Model, step: int) -> None:
        """Go through the U-Net at a step, and do that step if it is the next one.

        Args:
            model: The model.
            step: The step: the next one, or one that is done.

        Raises:
            ValueError: If the latents overflow.
        """
        predicted_noise = self.predict_noise(model, self.trajectory.solver, self.passed[step], step)
        if step == self.steps_done:
            self.trajectory.advance(predicted_noise, step)
            check_latents(self.trajectory.latents, self.prompt)
            self.passed.append(self.trajectory.latents)

    def finish(self, model: Model, on_step: Callable[[int], None] | None = None) -> None:
        """Do all steps that are not done yet.

        Args:
            model: The model that it was started with.
            on_step: Called after each step, with the number of images that have done one, which is 1.

        Raises:
            StyleError: If the model is another one, or has another solver.
            ValueError: If the latents overflow.
        """
        self.check(model)
        while self.steps_done < self.num_inference_steps:
            self.advance(model, self.steps_done)
            if on_step is not None:
                on_step(1)


def default_size(model: Model) -> tuple[int, int]:
    """Give the height and width in pixels that a model was trained for."""
    if isinstance(model, StableDiffusion_XL):
        height, width = (int(length) for length in model.default_time_ids[0, :2])
        return height, width
    return 512, 512


def describe_model(model: Model) -> dict[str, Any]:
    """Give the class and precision of a model, and a fingerprint of what latents depend on: text encoders and U-Net."""
    return {
        "class": type(model).__name__,
        "classifier_free_guidance": model.classifier_free_guidance,
        "precision": str(model.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(model.clip_text_encoder, model.unet),
    }


def fingerprint(*modules: fl.Module) -> str:
    """Give a fingerprint of the weights of some modules, from samples of each parameter."""
    digest = hashlib.sha256()
    samples: list[Tensor] = []
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        digest.update(str(tuple(parameter.shape)).encode())
        flat = parameter.detach().flatten()
        samples.append(flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to(dtype=parameters[-1].dtype))
    digest.update(torch.cat(samples).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_model(model: Model, options: dict[str, Any]) -> None:
    """Check that a model can be aligned.

    Args:
        model: The model.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].

    Raises:
        ValueError: If it has self-attention guidance or is adapted already, or if an option is out of its range.
    """
    if model.has_self_attention_guidance():
        raise ValueError("expected a model without self-attention guidance, got one with it: disable it first")
    StyleAlignedAdapter(model.unet, **options)


def check_latents(latents: Tensor, prompt: str) -> None:
    """Check that latents have not overflowed.

    Args:
        latents: The latents.
        prompt: What they show.

    Raises:
        ValueError: If they have.
    """
    if not latents.isfinite().all():
        raise ValueError(
            f"the latents of {prompt!r} overflowed to NaN or infinity: expected a scale, a shift and a guidance that"
            " the model's precision can hold"
        )
