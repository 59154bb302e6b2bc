"""A style: the reference image of a set, as the trajectory that leads to it, in a file of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from style_aligned.defaults import GUIDANCE, STEPS
from style_aligned.models.denoising import Model, TextEmbedding, embed
from style_aligned.styles.file import PREVIEW, StyleError, read_style_file, write_style_file
from style_aligned.styles.reference import BaseReference, Reference

SETTINGS = tuple(field.name for field in fields(BaseReference) if field.name != "text")


@dataclass(frozen=True, eq=False)
class Style(BaseReference):
    """The reference of a set: its latents at every step, its text embedding, and how they came about.

    Attributes:
        latents: The latents before each step, and after the last one.
        preview: The reference in small.
    """

    latents: Float[Tensor, "steps 4 height width"] = field(repr=False)
    preview: Image.Image = field(repr=False)

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
    ) -> "Style":
        """Make a style from a prompt, by generating its reference.

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
            ValueError: If the prompt is empty, a number out of its range, an option not one that a style can have, or
                the solver not one that can do these steps, if the model has self-attention guidance or is adapted
                already, or if the latents overflow.
        """
        reference = Reference.from_prompt(
            model,
            prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            noise=noise,
            num_inference_steps=num_inference_steps,
            condition_scale=condition_scale,
            size=size,
            options=options,
        )
        return cls.from_reference(model, reference)

    @classmethod
    def from_reference(
        cls, model: Model, reference: Reference, *, on_step: Callable[[int], None] | None = None
    ) -> "Style":
        """Make a style from a reference, doing the steps that are left.

        Args:
            model: The model that the reference was started with.
            reference: The reference.
            on_step: Called after each step, with the number of images that have done one, which is 1.

        Raises:
            StyleError: If the reference was started with another model, or another solver.
            ValueError: If the model has self-attention guidance or is adapted, or if the latents overflow.
        """
        reference.finish(model, on_step=on_step)
        with torch.no_grad():
            preview = model.lda.latents_to_image(reference.states[-1].latents)
        preview.thumbnail((PREVIEW, PREVIEW))
        settings = {name: getattr(reference, name) for name in SETTINGS}
        return cls(**settings, text=reference.text, latents=reference.latents, preview=preview)

    def check(self, model: Model, force: bool = False) -> None:
        """Check that it fits a model.

        Args:
            model: The model, with its solver.
            force: Whether to let other weights of the same kind of model, or another precision, pass.

        Raises:
            StyleError: If it does not, with the reason.
            ValueError: If the model has self-attention guidance, or is adapted already.
        """
        super().check(model, force=force)
        found, expected = (
            {name: list(tensor.shape) for name, tensor in embedding.tensors.items()}
            for embedding in (self.text, embed(model, ""))
        )
        if found != expected:
            raise StyleError(f"expected a style with text embeddings of shapes {expected}, got {found}")

    def image(self, model: Model) -> Image.Image:
        """Decode the reference.

        Args:
            model: The model.
        """
        with torch.no_grad():
            return model.lda.latents_to_image(self.latents[-1:].to(device=model.device, dtype=model.dtype))

    def save(self, path: str | Path) -> None:
        """Write the style to a safetensors file: the same bytes for the same style.

        Args:
            path: The path of the file. What is there is replaced once the new file is complete.

        Raises:
            ValueError: If a setting is not of its type or out of its range, so that the file could not be read again.
            OSError: If the file cannot be written.
        """
        settings = {name: getattr(self, name) for name in SETTINGS}
        tensors = {"latents": self.latents, **self.text.tensors}
        write_style_file(Path(path), {**settings, "size": list(self.size)}, tensors, self.preview)

    @classmethod
    def load(cls, path: str | Path) -> "Style":
        """Read a style from a file that [`save`][style_aligned.styles.Style.save] has written.

        Everything is checked, shapes before anything is allocated.

        Args:
            path: The path of the file.

        Raises:
            StyleError: If the file is not a style, or was altered or cut off.
            FileNotFoundError: If there is no such file.
        """
        settings, tensors, preview = read_style_file(Path(path))
        latents = tensors.pop("latents")
        return cls(**settings, latents=latents, text=TextEmbedding(**tensors), preview=preview)
