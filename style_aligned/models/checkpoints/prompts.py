"""What goes into the model beside the latents: prompts that fit, and the size of the image."""

import warnings
from collections.abc import Iterable

from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL

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


def _shorten(prompt: str, length: int = 40) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 1] + "…"
