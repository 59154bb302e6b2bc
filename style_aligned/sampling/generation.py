"""Sets of any size that follow a style, at flat memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from PIL import Image
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor, device as Device

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.adapter.reference_bank import ReferenceBank
from style_aligned.models.denoising import (
    Model,
    TextEmbedding,
    Trajectory,
    check_latents,
    embed,
    make_solver,
    predict_noise,
    sample_noise,
    stack,
)
from style_aligned.models.family import check_model
from style_aligned.styles.reference import Reference
from style_aligned.styles.style import Style


@dataclass(frozen=True, eq=False)
class Sample:
    """One generated image.

    Attributes:
        prompt: Its prompt.
        seed: The seed of its noise.
        latents: Its latents.
        image: The image itself.
    """

    prompt: str
    seed: int
    latents: Float[Tensor, "1 4 height width"] = field(repr=False)
    image: Image.Image = field(repr=False)


def generate(
    model: Model,
    style: Style | Reference,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    noise: Float[Tensor, "images 4 height width"] | None = None,
    batch_size: int = 4,
    chunk_size: int = 32,
    bank_device: Device | str | None = None,
    force: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Sample]:
    """Generate images in a style, one for each prompt.

    At each step the reference goes through the U-Net alone and what the targets need of it is recorded, to be replayed
    for the targets, `batch_size` at a time. The reference does not attend to the targets: the images equal those of one
    large batch with the reference in front, and up to rounding none of them depends on the others.

    Args:
        model: The model.
        style: The style, or a reference that is to become one: the steps that it has not done yet are done along with
            those of the first images. The images are the same.
        prompts: The prompts.
        seeds: The seed of each image. None counts on from the seed of the reference.
        noise: The noise of each image, in place of what the seeds give.
        batch_size: The number of images that go through the U-Net at a time.
        chunk_size: The number of images that are on their way at a time: the reference is recorded anew for each chunk.
        bank_device: Where to keep what is recorded. `"cpu"` spares the memory of a GPU, 0.8 GB for SDXL at 1024x1024
            in half precision.
        force: Whether to let the style of other weights, or of another precision, pass. A reference never does.
        on_step: Called as steps get done, with the number of images that have done one, the reference among them.

    Yields:
        The images, in the order of their prompts.

    Raises:
        StyleError: If the style or the reference does not fit the model.
        ValueError: If a prompt is empty, the numbers of prompts, seeds and noise differ, a size is less than one, or
            the model has self-attention guidance or is adapted already, or, once it is at it, if latents overflow.
        TypeError: If a prompt is no text, a seed or a size no integer, or the noise no tensor of a floating type.
        RuntimeError: If there is no `bank_device` of that name.
    """
    style.check(model, force=force)
    prompts, seeds = _check(model, style, prompts, seeds, noise, batch_size, chunk_size)
    bank_device = None if bank_device is None else torch.empty(0, device=bank_device).device  # fails now, if it does
    return _generate(model, style, prompts, seeds, noise, batch_size, chunk_size, bank_device, on_step, is_aligned=True)


def generate_unaligned(
    model: Model,
    style: Style | Reference,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    noise: Float[Tensor, "images 4 height width"] | None = None,
    batch_size: int = 4,
    chunk_size: int = 32,
    force: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Sample]:
    """Generate images with the noise and the settings of [`generate`][style_aligned.sampling.generate], unaligned.

    Args:
        model: The model.
        style: The style or reference, for its settings.
        prompts: The prompts.
        seeds: The seed of each image. None counts on from the seed of the reference.
        noise: The noise of each image, in place of what the seeds give.
        batch_size: The number of images that go through the U-Net at a time.
        chunk_size: The number of images that are on their way at a time.
        force: Whether to let the style of other weights, or of another precision, pass.
        on_step: Called as steps get done, with the number of images that have done one.

    Yields:
        The images, in the order of their prompts.

    Raises:
        StyleError, ValueError, TypeError: As for `generate`.
    """
    style.check(model, force=force)
    prompts, seeds = _check(model, style, prompts, seeds, noise, batch_size, chunk_size)
    return _generate(model, style, prompts, seeds, noise, batch_size, chunk_size, None, on_step, is_aligned=False)


def _check(
    model: Model,
    style: Style | Reference,
    prompts: Sequence[str],
    seeds: Sequence[int] | None,
    noise: Tensor | None,
    batch_size: int,
    chunk_size: int,
) -> tuple[list[str], list[int]]:
    """Check the arguments, before anything is computed. Gives copies of the prompts, and of the seeds."""
    if isinstance(prompts, str):
        raise TypeError(f"expected a sequence of prompts, got the string {prompts!r}")
    prompts = list(prompts)
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected prompts to be texts, got {prompt!r} at index {index}")
        if not prompt.strip():
            raise ValueError(f"expected prompts with at least one word, got an empty one at index {index}")
    seeds = list(range(style.seed + 1, style.seed + 1 + len(prompts)) if seeds is None else seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"expected a seed for each of {len(prompts)} prompts, got {len(seeds)}")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected seeds to be integers, got {seed!r}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"expected seeds between 0 and 2**64 - 1, got {seed}")
    expected = (len(prompts), 4, style.size[0] // 8, style.size[1] // 8)
    if noise is not None and not (isinstance(noise, Tensor) and noise.is_floating_point()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected noise to be a tensor of a floating type, got {type(noise).__name__}")
    if noise is not None and noise.shape != expected:
        raise ValueError(f"expected noise of shape {expected}, got {tuple(noise.shape)}")
    if noise is not None and not noise.isfinite().all():
        raise ValueError("expected noise to be finite, got NaN or infinity")
    for name, number in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        if not isinstance(number, int) or isinstance(number, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected {name} to be an integer, got {number!r}")
        if number < 1:
            raise ValueError(f"expected {name} to be at least 1, got {number}")
    check_model(model, style.options)
    return prompts, seeds


def _generate(
    model: Model,
    style: Style | Reference,
    prompts: Sequence[str],
    seeds: Sequence[int],
    noise: Tensor | None,
    batch_size: int,
    chunk_size: int,
    bank_device: Device | str | None,
    on_step: Callable[[int], None] | None,
    is_aligned: bool,
) -> Iterator[Sample]:
    for start in range(0, len(prompts), chunk_size):
        chunk = range(start, min(start + chunk_size, len(prompts)))
        solver = make_solver(model, style.num_inference_steps)
        trajectories = [
            Trajectory(
                model,
                solver,
                seed=seeds[index],
                noise=sample_noise(model, seeds[index], style.size)
                if noise is None
                else noise[index : index + 1].to(device=model.device, dtype=model.dtype),
            )
            for index in chunk
        ]
        texts = [embed(model, prompts[index], style.negative_prompt) for index in chunk]
        if is_aligned:
            # the model is as it was whenever an image is handed out
            with StyleAlignedAdapter(model.unet, **style.options) as adapter:
                bank = ReferenceBank(device=bank_device)
                for step in solver.inference_steps:
                    with torch.no_grad(), adapter.record(bank):
                        _pass_reference(model, style, solver, step, on_step)
                    with torch.no_grad(), adapter.replay(bank):
                        _advance(model, style, trajectories, texts, step, batch_size, on_step)
                bank.clear()  # before images take their memory
        else:
            for step in solver.inference_steps:
                with torch.no_grad():
                    _advance(model, style, trajectories, texts, step, batch_size, on_step)
        for index, trajectory in zip(chunk, trajectories, strict=True):
            check_latents(trajectory.latents, prompts[index])
            with torch.no_grad():
                image = model.lda.latents_to_image(trajectory.latents)
            yield Sample(prompt=prompts[index], seed=seeds[index], latents=trajectory.latents, image=image)


def _pass_reference(
    model: Model, style: Style | Reference, solver: Solver, step: int, on_step: Callable[[int], None] | None
) -> None:
    """Have the reference go through the U-Net, as it is at a step, and do that step if it has not done it yet."""
    if isinstance(style, Style):
        style.predict_noise(model, solver, style.latents[step : step + 1], step)
    elif style.advance(model, step) and on_step is not None:
        on_step(1)


def _advance(
    model: Model,
    style: Style | Reference,
    trajectories: Sequence[Trajectory],
    texts: Sequence[TextEmbedding],
    step: int,
    batch_size: int,
    on_step: Callable[[int], None] | None,
) -> None:
    """Do one step of some images, a micro-batch at a time."""
    for start in range(0, len(trajectories), batch_size):
        batch = trajectories[start : start + batch_size]
        predicted_noise = predict_noise(
            model,
            batch[0].solver,
            torch.cat([trajectory.latents for trajectory in batch]),
            step,
            text=stack(texts[start : start + batch_size]),
            condition_scale=style.condition_scale,
        )
        for trajectory, own_noise in zip(batch, predicted_noise.chunk(len(batch)), strict=True):
            trajectory.advance(own_noise, step)
        if on_step is not None:
            on_step(len(batch))
