"""What goes into the model beside the latents: prompts that fit, and the size of the image."""

import warnings
from collections.abc import Iterable

import torch
from jaxtyping import Int
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from torch import Tensor, device as Device

from style_aligned.models.checkpoints.tokenizer import find_tokenizer


def warn_about_long_prompts(model: StableDiffusion_XL | StableDiffusion_1, prompts: Iterable[str]) -> list[str]:
    """Warn about prompts that are longer than the text encoder reads (77 tokens, two of them its own).

    Args:
        model: The model.
        prompts: The prompts.

    Returns:
        What is cut off each prompt, from the first word that does not fit: "" where nothing is.
    """
    tokenizer = find_tokenizer(model.clip_text_encoder)
    cuts: list[str] = []
    for prompt in prompts:
        cut = "" if tokenizer is None else tokenizer.cut(prompt)
        cuts.append(cut)
        if tokenizer is not None and cut:
            warnings.warn(
                f"the prompt {_shorten(prompt)!r} is longer than {tokenizer.sequence_length} tokens; "
                f"the model does not see its end: {cut!r}",
                stacklevel=2,
            )
    return cuts


def time_ids(
    size: tuple[int, int],
    *,
    rows: int = 2,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
    device: Device | str = "cpu",
) -> Int[Tensor, "rows 6"]:
    """Tell SDXL the real size of the image: Refiners' `default_time_ids` always says 1024x1024.

    See [[arXiv:2307.01952] SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis
    ](https://arxiv.org/abs/2307.01952), section 2.2.

    Args:
        size: The height and width of the image, in pixels.
        rows: The number of rows of the batch: twice the images, with classifier-free guidance.
        original_size: The height and width that the image pretends to have had before it was scaled; `size` if `None`.
        crop: The top and left at which it pretends to have been cropped.
        device: The PyTorch device to use.

    Example:
        >>> time_ids((768, 1344), rows=1).tolist()
        [[768, 1344, 0, 0, 768, 1344]]
    """
    values = [*(original_size or size), *crop, *size]
    return torch.tensor(data=values, device=device).repeat(rows, 1)


def _shorten(prompt: str, length: int = 40) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 1] + "…"
