"""The way of a reference from noise to its image: known from the start, or grown a step at a time as it is used."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from style_aligned.models.finite import check_latents
from style_aligned.models.model import Model
from style_aligned.models.solvers import Trajectory


class ReferenceTrajectory:
    """The latents of a reference before each step, and after the last one, as far as they are known.

    Several styles can share one: those that differ in what it does not depend on.

    Attributes:
        num_inference_steps: The number of steps.
        latents: The latents, each of shape (1, 4, height, width).
        state: The reference before its next step. None means that no step is left to do.
        model: The model that does the steps that are left, and decodes the preview. None once nothing is left to do.
        preview: The reference in small. None means that it was not decoded yet.
    """

    def __init__(
        self,
        num_inference_steps: int,
        latents: Sequence[Tensor],
        *,
        state: Trajectory | None = None,
        model: Model | None = None,
        preview: Image.Image | None = None,
    ) -> None:
        """Initialize the ReferenceTrajectory.

        Args:
            num_inference_steps: The number of steps.
            latents: The latents that are known.
            state: The reference before its next step. None means that all latents are known.
            model: The model.
            preview: The reference in small.
        """
        self.num_inference_steps = num_inference_steps
        self.latents = list(latents)
        self.state = state
        self.model = model
        self.preview = preview

    @classmethod
    def start(cls, num_inference_steps: int, state: Trajectory, model: Model) -> "ReferenceTrajectory":
        """Start from noise. No step is done yet.

        Args:
            num_inference_steps: The number of steps.
            state: The reference before its first step.
            model: The model that is to do the steps.
        """
        return cls(num_inference_steps, [state.latents], state=state, model=model)

    @property
    def steps_done(self) -> int:
        """The number of steps that are done."""
        return len(self.latents) - 1

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done."""
        return self.steps_done == self.num_inference_steps

    @property
    def stacked(self) -> Float[Tensor, "steps 4 height width"]:
        """The latents that are known."""
        return torch.cat(self.latents)

    def advance(self, predicted_noise: Float[Tensor, "1 4 height width"], step: int, prompt: str) -> bool:
        """Do a step if it is the next one. What is interrupted has changed nothing.

        Args:
            predicted_noise: The noise in the latents before the step.
            step: The step: the next one, or one that is done.
            prompt: What the reference shows, for an error.

        Returns:
            Whether it was the next one.

        Raises:
            ValueError: If the latents overflow.
        """
        if step < self.steps_done or self.state is None:
            return False
        state = self.state.after(predicted_noise, step)
        if self.model is not None:
            check_latents(state.latents, prompt, self.model.unet)
        self.state = state
        self.latents.append(state.latents)
        return True
