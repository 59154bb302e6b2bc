"""One step of denoising with a Refiners model, and what it takes: noise, text embeddings, guidance."""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.solvers import DPMSolver, LCMSolver, Solver
from torch import Generator, Tensor

Model = StableDiffusion_XL | StableDiffusion_1


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """What a model needs of a prompt: one row for each guidance half, the negative one first.

    Attributes:
        clip_text_embedding: The embedding of each token.
        pooled_text_embedding: The embedding of the whole prompt. None for models that need none.
    """

    clip_text_embedding: Float[Tensor, "halves tokens dim"]
    pooled_text_embedding: Float[Tensor, "halves pooled_dim"] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The embeddings that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def embed(model: Model, prompt: str, negative_prompt: str = "") -> TextEmbedding:
    """Compute the text embedding of a prompt.

    Args:
        model: The model.
        prompt: The prompt.
        negative_prompt: The prompt to guide away from. Not used where the model has no classifier-free guidance.
    """
    with torch.no_grad():
        embedding = model.compute_clip_text_embedding(text=prompt, negative_text=negative_prompt)
    tensors = embedding if isinstance(embedding, tuple) else (embedding,)
    # without guidance, refiners 0.4.0 embeds the negative prompt all the same
    halves = 2 if model.classifier_free_guidance else 1
    return TextEmbedding(*(tensor[-halves:] for tensor in tensors))


def stack(embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
    """Lay out the embeddings of several prompts as rows of a batch: all negative ones, then all positive ones.

    Args:
        embeddings: The embeddings, at least one.
    """
    columns = zip(*(embedding.tensors.values() for embedding in embeddings), strict=True)
    return TextEmbedding(*(torch.stack(column, dim=1).flatten(start_dim=0, end_dim=1) for column in columns))


def sample_noise(model: Model, seed: int, size: tuple[int, int]) -> Float[Tensor, "1 4 height width"]:
    """Sample the noise that an image starts from: the same on every device, and whatever else is sampled.

    Args:
        model: The model.
        seed: The seed.
        size: The height and width of the image, in pixels.
    """
    height, width = size
    noise = torch.randn(1, 4, height // 8, width // 8, generator=Generator().manual_seed(seed))
    return noise.to(device=model.device, dtype=model.dtype)


def describe_solver(solver: Solver) -> dict[str, Any]:
    """Give the name of a solver and what it was set up with, its number of steps aside."""
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


def predict_noise(
    model: Model,
    solver: Solver,
    x: Float[Tensor, "images 4 height width"],
    step: int,
    *,
    text: TextEmbedding,
    condition_scale: float,
) -> Float[Tensor, "images 4 height width"]:
    """Predict the noise in some latents, with classifier-free guidance if the model has it.

    Args:
        model: The model.
        solver: The solver, for its timesteps and the scale of the model's input. It stays as it is.
        x: The latents.
        step: The step.
        text: The text embeddings, with the rows of `x` in each half.
        condition_scale: The strength of the guidance.
    """
    halves = 2 if model.classifier_free_guidance else 1
    context: dict[str, Any] = dict(text.tensors)
    if isinstance(model, StableDiffusion_XL):
        height, width = (8 * length for length in x.shape[-2:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=x.device)
        context["time_ids"] = time_ids.repeat(halves * len(x), 1)

    timestep = solver.timesteps[step].unsqueeze(dim=0)
    model.set_unet_context(timestep=timestep, **context)
    prediction: Tensor = model.unet(solver.scale_model_input(x.repeat(halves, 1, 1, 1), step=step))
    if halves == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional + condition_scale * (conditional - unconditional)


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


class Trajectory:
    """The latents of one image on their way from noise, with a solver and a source of noise of their own.

    That way neither the state of a solver nor its noise depends on what else is generated.
    """

    def __init__(self, model: Model, solver: Solver, seed: int, noise: Float[Tensor, "1 4 height width"]) -> None:
        """Initialize the Trajectory.

        Args:
            model: The model.
            solver: The solver, of which a copy is taken.
            seed: The seed for solvers that add noise at each step, such as LCM's. On a GPU it gives other noise.
            noise: The noise to start from.
        """
        self.solver = deepcopy(solver)
        self.generator = Generator(device=model.device).manual_seed(seed)
        # past the numbers that the seed gives for the first noise: what is added later must not be that noise again
        torch.randn(noise.shape, generator=self.generator, device=model.device)
        self.latents = solver.scale_model_input(noise, step=-1)

    def copy(self) -> "Trajectory":
        """Give one that goes on from here on its own."""
        other = copy(self)
        other.solver = deepcopy(self.solver)
        other.generator = Generator(device=self.generator.device).set_state(self.generator.get_state())
        return other

    def advance(self, predicted_noise: Float[Tensor, "1 4 height width"], step: int) -> None:
        """Do one step of the solver.

        Args:
            predicted_noise: The noise in the latents.
            step: The step.
        """
        latents = self.solver(self.latents, predicted_noise=predicted_noise, step=step, generator=self.generator)
        self.latents = latents.to(dtype=self.latents.dtype)  # solvers in float32, such as LCM's, may have raised it
