"""Images that start from a picture instead of noise alone, all over or within a mask."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from refiners.foundationals.latent_diffusion.solvers import Solver
from torch import Tensor

from style_aligned.files import digest_picture
from style_aligned.models.model import Model
from style_aligned.models.solvers import Trajectory
from style_aligned.notes import Note
from style_aligned.options import check_init_strength
from style_aligned.styles.inversion import NoiseLevels, encode_picture, noise_levels, noise_to
from style_aligned.styles.mask import digest_mask, prepare_mask
from style_aligned.styles.picture import fit_picture, open_picture
from style_aligned.words import show

Picture = str | Path | Image.Image


@dataclass(frozen=True, eq=False)
class Init:
    """A picture to start from.

    Attributes:
        picture: The picture, of the size of the image.
        strength: How much of the way is done: at 1 the picture only lends its composition, at 0.1 little changes.
        mask: What is drawn anew, between 0 and 1, at the resolution of the latents. None means all of it.
    """

    picture: Image.Image
    strength: float
    mask: Float[Tensor, "latents_height latents_width"] | None = None

    @classmethod
    def read(cls, picture: Picture, size: tuple[int, int], strength: float | int, mask: Picture | None) -> "Init":
        """Read a picture to start from. What is done to it is said in a warning.

        Args:
            picture: The picture, or its path. It is cropped to the size of the image.
            size: The height and width of the image, in pixels.
            strength: How much of the way is done, above 0 and up to 1.
            mask: What is drawn anew: white or opaque there. None means all of it.

        Raises:
            ValueError: If a picture cannot be read, the mask leaves nothing, or the strength is out of its range.
        """
        check_init_strength(strength)
        opened, notes = open_picture(picture)
        fitted, more = fit_picture(opened, size, size, "crop")
        if notes or more:
            name = "the picture to start from" if isinstance(picture, Image.Image) else str(picture)
            warnings.warn(f"{name}: {', '.join(notes + more)}", Note, stacklevel=3)
        return cls(
            fitted, float(strength), None if mask is None else prepare_mask(mask, size, name="init_mask", of="image")
        )

    def first_step(self, steps: int) -> int:
        """Return the first of some steps that is done."""
        return min(steps - 1, steps - math.ceil(self.strength * steps - 1e-9))

    def describe(self) -> dict[str, Any]:
        """Return what has to be known to draw the same again."""
        described = {"picture": digest_picture(self.picture), "strength": self.strength}
        return described if self.mask is None else {**described, "mask": digest_mask(self.mask)}

    def start(self, model: Model, solver: Solver, seed: int, noise: Float[Tensor, "1 4 height width"]) -> "Start":
        """Encode the picture, and noise it to the first step.

        Args:
            model: The model, of which nobody else makes use meanwhile.
            solver: The solver, for all steps.
            seed: The seed for solvers that add noise.
            noise: The noise.
        """
        first = self.first_step(solver.num_inference_steps)
        latents = encode_picture(model, self.picture).to(noise.device)
        kept = None if self.mask is None else 1 - self.mask.to(noise.device)
        own = solver.rebuild(num_inference_steps=solver.num_inference_steps, first_inference_step=first)
        levels = noise_levels(solver)
        trajectory = Trajectory(model, own, seed, noise)
        trajectory.latents = noise_to(latents, levels, noise, first).to(noise.dtype)
        return Start(trajectory, latents, noise, levels, kept)


@dataclass(frozen=True, eq=False)
class Start:
    """Where an image starts.

    Attributes:
        trajectory: Its latents.
        latents: The latents of the picture. None if there is none.
        noise: The noise that was added to them.
        levels: The noise levels of the solver.
        kept: How much of the picture is kept, at each place of the latents.
    """

    trajectory: Trajectory
    latents: Tensor | None = None
    noise: Tensor | None = None
    levels: NoiseLevels | None = None
    kept: Tensor | None = None

    def keep(self, trajectory: Trajectory, step: int) -> Trajectory:
        """Put the picture back where it is kept, noised as it is after a step."""
        if self.kept is not None:
            assert self.latents is not None
            assert self.noise is not None
            assert self.levels is not None
            noisy = noise_to(self.latents, self.levels, self.noise, step + 1).to(trajectory.latents.dtype)
            trajectory.latents = trajectory.latents.lerp(noisy, self.kept.to(noisy.dtype))
        return trajectory


def read_inits(
    init: Picture | Sequence[Picture | None] | None,
    strength: float | int | Sequence[float | int],
    mask: Picture | Sequence[Picture | None] | None,
    *,
    count: int,
    size: tuple[int, int],
) -> list[Init | None]:
    """Read what images start from: the same picture for all, or one for each.

    Args:
        init: The pictures. None is for an image that starts from noise.
        strength: How much of the way is done.
        mask: What is drawn anew.
        count: The number of images.
        size: Their height and width, in pixels.

    Raises:
        ValueError: If there are more or fewer of them than images, a mask without a picture, or one cannot be read.
    """
    inits, strengths, masks = (
        _for_each(value, count, name)
        for name, value in (("init", init), ("init_strength", strength), ("init_mask", mask))
    )
    read: dict[Any, Init] = {}  # a picture that many images start from is read, and what is wrong with it said, once
    found: list[Init | None] = []
    for picture, own, part in zip(inits, strengths, masks, strict=True):
        if picture is None and part is not None:
            raise ValueError(f"expected an init beside init_mask {show(str(part))}, got none")
        key = (_key(picture), own, _key(part))
        if picture is not None and key not in read:
            read[key] = Init.read(picture, size, own, part)
        found.append(None if picture is None else read[key])
    return found


def _key(picture: Picture | None) -> str | int:
    return id(picture) if isinstance(picture, Image.Image) else str(picture)


def _for_each(value: Any, count: int, name: str) -> list[Any]:
    if value is None or isinstance(value, str | Path | Image.Image | int | float):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"expected one {name}, or one for each of {count} prompts, got {len(value)}")
    return list(value)
