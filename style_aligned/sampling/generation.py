"""Sets of any size that follow a style, at flat memory."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor, device as Device

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.adapter.reference_bank import ReferenceBank
from style_aligned.models.checkpoints.prompts import warn_about_prompts
from style_aligned.models.denoising import take_step
from style_aligned.models.devices import find_device
from style_aligned.models.finite import check_latents, decode_image
from style_aligned.models.model import Model, check_is_model, describe_model
from style_aligned.models.solvers import Trajectory, make_solver, sample_noise
from style_aligned.models.state import exclusive_use, is_out_of_memory, reset
from style_aligned.models.text import TextEmbedding, embed
from style_aligned.notes import Note
from style_aligned.options import INIT_STRENGTH, SETTINGS, check_seed
from style_aligned.sampling.control import read_control
from style_aligned.sampling.init import Init, Picture, Start, read_inits
from style_aligned.sampling.progress import show_progress
from style_aligned.sampling.samples import Sample, Samples
from style_aligned.styles.control import Control, Pictures
from style_aligned.styles.settings import check_noise, check_size
from style_aligned.styles.style import Style
from style_aligned.words import show

OF_A_REFERENCE = (
    "reference", "reference_seed", "options", "method", "picture", "details", "reference_mask", "blend",
    "reference_control",
)  # fmt: skip
"""Settings that do not matter to unaligned images."""

OnLatents = Callable[[Sequence[int], Sequence[Tensor]], None]
"""What is called after a step of some images, with their indices and their latents."""


def generate(
    model: Model,
    style: Style | str | Path,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    noise: Float[Tensor, "images 4 height width"] | None = None,
    size: tuple[int, int] | None = None,
    init: Picture | Sequence[Picture | None] | None = None,
    init_strength: float | int | Sequence[float | int] = INIT_STRENGTH,
    init_mask: Picture | Sequence[Picture | None] | None = None,
    control: Picture | Sequence[Pictures] | None = None,
    aligned: bool = True,
    batch_size: int = 4,
    chunk_size: int = 32,
    bank_device: Device | str | None = None,
    force: bool = False,
    on_step: Callable[[int], None] | None = None,
    on_latents: OnLatents | None = None,
    progress: bool = False,
) -> Samples:
    """Generate images in a style, one for each prompt.

    At each step the reference goes through the U-Net alone and what the targets need of it is recorded, to be replayed
    for the targets, `batch_size` at a time. The reference does not attend to the targets: the images equal those of one
    large batch with the reference in front, and up to rounding none of them depends on the others.

    A model draws for one thread at a time: others wait, and not while images are handed out.

    Args:
        model: The model.
        style: The style, or the path of its file. Steps of its reference that are not done yet are done along with
            those of the first images.
        prompts: The prompts.
        seeds: The seed of each image. None counts on from the seed of the reference.
        noise: The noise of each image, in place of what the seeds give.
        size: The height and width of the images, in pixels. None means the size of the reference.
        init: A picture that images start from, in place of noise alone, or one for each; None is for noise. A picture
            of another size is cropped to its middle, and that is said.
        init_strength: How much of the way from the picture is done, above 0 and up to 1, for all images or for each.
        init_mask: What is drawn anew, white there, for all images or for each; the rest is kept. None means all of it.
        control: A picture that images follow by the control model that
            [`Extras`][style_aligned.models.extras.Extras] has put beside the model, or one for each. With several
            control models, each image has a list with a picture for each of them. The reference is drawn without it. A
            picture of another size is cropped to its middle, and that is said.
        aligned: Whether the images follow the reference. Without it, they are what the model draws with the same noise
            and settings, to compare with.
        batch_size: The number of images that go through the U-Net at a time. It is halved, with a warning, if there is
            not enough memory.
        chunk_size: The number of images that are on their way at a time: the reference is recorded anew for each chunk.
        bank_device: Where to keep what is recorded. `"cpu"` spares the memory of a GPU, 0.8 GB for SDXL at 1024x1024
            in half precision.
        force: Whether to let the style of other weights pass, if its reference has done all of its steps.
        on_step: Called as steps get done, with the number of images that have done one, the reference among them.
        on_latents: Called after a step of some images, with their indices among the prompts and what the latents are
            then, each of shape `(1, 4, height, width)`: noisy ones, but for the last step.
        progress: Whether to show a bar.

    Returns:
        The images, in the order of their prompts: drawn as they are asked for, a chunk at a time.

    Raises:
        StyleError: If the style does not fit the model, or its file is none.
        ValueError: If a prompt is empty, the numbers of prompts, seeds and noise differ, a size is less than one, or
            the model has self-attention guidance or is adapted already, or, once it is at it, if latents overflow.
        TypeError: If the first argument is no model, a prompt is no text, a seed or a size no integer, or the noise no
            tensor of a floating type.

    Example:
        ```py
        from style_aligned import Style, generate, load_model

        model = load_model()
        style = Style.from_prompt(model, "a fox, neon sign", seed=5, num_inference_steps=2)
        images = generate(model, style, ["a rocket, neon sign", "an umbrella, neon sign"])
        assert [image.seed for image in images] == [6, 7]
        ```
    """
    check_is_model(model)
    if isinstance(style, str | Path):
        style = _load(style)
    if not isinstance(style, Style):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a Style or the path of a style file, got {show(style)}")
    prompts = _check_prompts(prompts)
    size = style.size if size is None else size
    check_size(size)
    run = _Run(
        model=model,
        style=style,
        prompts=prompts,
        seeds=_check_seeds(seeds, style.seed, len(prompts)),
        noise=None if noise is None else check_noise(noise, size, len(prompts)),
        size=size,
        inits=read_inits(init, init_strength, init_mask, count=len(prompts), size=size),
        control=read_control(model, control, count=len(prompts), size=size),
        aligned=aligned,
        batch_size=batch_size,
        bank_device=None if bank_device is None else find_device(bank_device, "bank_device"),
        on_step=on_step,
        on_latents=on_latents,
        progress=progress,
    )
    for name, number in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        SETTINGS[name].check(number)
    style.check(model, force=force)
    if size != style.size and style.options.get("query_guidance"):
        raise ValueError("expected images of the reference's size beside query_guidance, got another one")
    warn_about_prompts(model, prompts)
    return Samples(len(prompts), chunk_size, run.draw, of=f"{show(style.prompt, 40)}")


@dataclass
class _Run:
    """All that images are drawn from."""

    model: Model
    style: Style
    prompts: list[str]
    seeds: list[int]
    noise: Tensor | None
    size: tuple[int, int]
    inits: list[Init | None]
    control: Control | None
    aligned: bool
    batch_size: int
    bank_device: Device | None
    on_step: Callable[[int], None] | None
    on_latents: OnLatents | None
    progress: bool

    def draw(self, chunk: range) -> Iterator[Sample]:
        """Draw some images, and decode each as it is asked for."""
        drawn, settings = self.draw_latents(chunk)
        for index in chunk:
            latents = drawn.pop(0)
            check_latents(latents, self.prompts[index], self.model.unet)
            with exclusive_use(self.model):
                image = decode_image(self.model.lda, latents, f"the image of {show(self.prompts[index])}")
            init = self.inits[index]
            own = settings if init is None else {**settings, "init": init.describe()}
            own = own if self.control is None else {**own, "control": self.control.describe(index)}
            yield Sample(self.prompts[index], self.seeds[index], latents, image, own)
            del image, latents

    def draw_latents(self, chunk: range) -> tuple[list[Tensor], dict[str, Any]]:
        """Draw some images, up to their latents. Returns the settings they were drawn with, too."""
        model, style = self.model, self.style
        left = sum(part.num_inference_steps - part.steps_done for part, _ in style.parts)
        new_steps = left if self.aligned else 0
        steps = style.num_inference_steps
        firsts = [0 if init is None else init.first_step(steps) for init in (self.inits[index] for index in chunk)]
        total = len(chunk) * steps - sum(firsts) + new_steps
        with (
            exclusive_use(model),
            show_progress(self.progress, total, chunk, len(self.prompts), self.on_step) as on_step,
            nullcontext() if self.control is None else self.control.of_chunk(),
        ):
            solver = make_solver(model, steps)
            starts = [self.start(index, solver) for index in chunk]
            trajectories = [start.trajectory for start in starts]
            negative = style.text.to(model.device, model.dtype)
            texts = [embed(model, self.prompts[index], None).behind_negative_of(negative) for index in chunk]
            if self.aligned:
                # the model is as it was whenever an image is handed out
                with StyleAlignedAdapter(model.unet, **style.options) as adapter:
                    references = [(part, weight, ReferenceBank(self.bank_device)) for part, weight in style.parts]
                    banks = [bank for _, _, bank in references]
                    for step in solver.inference_steps:
                        active = [index for index, first in enumerate(firsts) if first <= step]
                        is_shared = adapter.set_step(step, steps) and len(active) > 0
                        for part, _, bank in references:
                            if not is_shared and step < part.steps_done:
                                continue
                            adapter.reference_mask = part.reference_mask
                            with adapter.record(bank):
                                if part.advance(model, solver, step):
                                    on_step(1)
                        weights = [weight for _, weight, _ in references]
                        with adapter.replay(*banks, weights=weights) if is_shared else nullcontext():
                            self.take_step(chunk, active, starts, trajectories, texts, step, on_step)
                    for bank in banks:  # before images take their memory
                        bank.clear()
            else:
                for step in solver.inference_steps:
                    active = [index for index, first in enumerate(firsts) if first <= step]
                    self.take_step(chunk, active, starts, trajectories, texts, step, on_step)
            return [trajectory.latents for trajectory in trajectories], self.describe()

    def take_step(
        self,
        chunk: range,
        active: Sequence[int],
        starts: Sequence[Start],
        trajectories: list[Trajectory],
        texts: Sequence[TextEmbedding],
        step: int,
        on_step: Callable[[int], None],
    ) -> None:
        """Do one step of some images, a micro-batch at a time: a smaller one, if there is not enough memory."""
        done = 0
        while done < len(active):
            batch = active[done : done + self.batch_size]
            count = len(batch)
            try:
                with self.follow([chunk[index] for index in batch], texts):
                    after = take_step(
                        self.model,
                        [trajectories[index] for index in batch],
                        step,
                        texts=[texts[index] for index in batch],
                        condition_scale=self.style.condition_scale,
                    )
                for index, trajectory in zip(batch, after, strict=True):
                    trajectories[index] = starts[index].keep(trajectory, step)
            except Exception as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
                count = 0
            if count == 0:  # outside of the handler, which keeps what has filled the memory
                self.halve_batch(min(self.batch_size, len(active) - done))
            else:
                done += count
                on_step(count)
                if self.on_latents is not None:
                    latents = [trajectories[index].latents for index in batch]
                    self.on_latents([chunk[index] for index in batch], latents)

    def follow(self, images: Sequence[int], texts: Sequence[TextEmbedding]) -> AbstractContextManager[None]:
        """Have images follow their control pictures for a pass, if they have any."""
        return nullcontext() if self.control is None else self.control.on(images, halves=texts[0].rows)

    def start(self, index: int, solver: Solver) -> Start:
        """Return where an image starts."""
        seed, noise, init = self.seeds[index], self.make_noise(index), self.inits[index]
        if init is None:
            return Start(Trajectory(self.model, solver, seed, noise))
        return init.start(self.model, solver, seed, noise)

    def halve_batch(self, size: int) -> None:
        reset(self.model)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_size = (size + 1) // 2
        warnings.warn(
            f"not enough memory for {size} images at a time: going on with batches of {self.batch_size}",
            Note,
            stacklevel=2,
        )

    def make_noise(self, index: int) -> Tensor:
        if self.noise is None:
            return sample_noise(self.model, self.seeds[index], self.size)
        return self.noise[index : index + 1].to(device=self.model.device, dtype=self.model.dtype)

    def describe(self) -> dict[str, Any]:
        """Say what the images depend on, their prompts and seeds aside."""
        settings = {
            **self.style.describe(),
            "aligned": self.aligned,
            "size": f"{self.size[1]}x{self.size[0]}",
            "model": describe_model(self.model),
        }
        if not self.aligned:
            return {name: settings[name] for name in settings if name not in OF_A_REFERENCE}
        if self.size != self.style.size:
            settings["reference_size"] = self.style.describe()["size"]
        return {**settings, "style": self.style.digest}


def _load(path: str | Path) -> Style:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a Style or the path of a style file, got {show(str(path))}: no such file")
    return Style.load(path)


def _check_prompts(prompts: Any) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(f"expected a sequence of prompts, got the string {show(prompts)}")
    if not isinstance(prompts, Sequence):
        raise TypeError(f"expected a sequence of prompts, got {show(prompts)}")
    checked: list[str] = []
    for index, prompt in enumerate(prompts):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if not isinstance(prompt, str):
            raise TypeError(f"expected prompts to be texts, got {show(prompt)} at index {index}")
        if not prompt.strip():
            raise ValueError(f"expected prompts with at least one word, got an empty one at index {index}")
        checked.append(prompt)
    return checked


def _check_seeds(seeds: Sequence[int] | None, reference: int, count: int) -> list[int]:
    if seeds is not None and (isinstance(seeds, str) or not isinstance(seeds, Iterable)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a sequence of seeds, one for each prompt, got {show(seeds)}")
    checked = list(range(reference + 1, reference + 1 + count) if seeds is None else seeds)
    if len(checked) != count:
        raise ValueError(f"expected a seed for each of {count} prompts, got {len(checked)}")
    for seed in checked:
        check_seed(seed, "seeds" if seeds is not None else "the seeds that count on from the reference's")
    return checked
