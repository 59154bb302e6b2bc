"""The kinds of models: what each was trained for, and the settings that suit it.

To add a kind of model, add a `Family` here, and its key rules to `style_aligned.models.checkpoints`.
This module imports nothing that takes time, for the command line to start at once.
"""

from dataclasses import dataclass, field
from typing import Any

LATENT_CHANNELS = 4
PIXELS = 8
"""Height and width, in pixels, of what one latent stands for."""


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        name: What people call it.
        default_size: The height and width, in pixels, that it was trained for.
        takes_size: Whether the U-Net is told the size of the image, by time ids.
        num_inference_steps: The number of steps that is recommended.
        condition_scale: The strength of the classifier-free guidance that is recommended.
        options: The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter] that are
            recommended, where they are not the adapter's own defaults.
    """

    name: str
    default_size: tuple[int, int]
    takes_size: bool
    num_inference_steps: int = 30
    condition_scale: float = 5.0
    options: dict[str, Any] = field(default_factory=dict[str, Any])


SDXL = Family("Stable Diffusion XL", default_size=(1024, 1024), takes_size=True)
SD1 = Family("Stable Diffusion 1.5", default_size=(512, 512), takes_size=False)
# stronger guidance makes targets whose prompts name no style leave the reference's; and with shared group
# normalization, their backgrounds follow the reference's much more closely
MINI = Family(
    "the embedded model", default_size=(256, 256), takes_size=True, condition_scale=2.0,
    options={"share_group_norm": True},
)  # fmt: skip

FAMILIES = {"Mini": MINI, "StableDiffusion_XL": SDXL, "StableDiffusion_1": SD1}
"""The families, by the class of their models. A subclass stands before its base class."""


def family_of(model: Any) -> Family:
    """Return the family of a model.

    Args:
        model: The model, of one of the classes in `FAMILIES` or of a subclass.

    Raises:
        TypeError: If it is none of these.
    """
    names = {base.__name__ for base in type(model).__mro__}
    for name, family in FAMILIES.items():
        if name in names:
            return family
    raise TypeError(f"expected a model of {', '.join(FAMILIES)} or a subclass, got a {type(model).__name__}")


def latents_shape(size: tuple[int, int], images: int = 1) -> tuple[int, int, int, int]:
    """Return the shape of the latents of some images.

    Args:
        size: The height and width of the images, in pixels.
        images: The number of images.

    Example:
        >>> latents_shape((768, 1344))
        (1, 4, 96, 168)
    """
    return images, LATENT_CHANNELS, size[0] // PIXELS, size[1] // PIXELS


def default_size(model: Any) -> tuple[int, int]:
    """Return the height and width in pixels that a model was trained for."""
    return family_of(model).default_size
