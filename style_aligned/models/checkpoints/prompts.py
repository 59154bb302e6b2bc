"""What a model will not make of prompts: said before it draws."""

import re
import warnings
from collections.abc import Iterable

from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL

from style_aligned.models.checkpoints.tokenizer import find_tokenizer
from style_aligned.notes import Note

SYNTAX = re.compile(  # of other programs
    r"(?<!\\)\([^()]*:\s*[\d.]+\s*\)"  # (word:1.3)
    r"|(?<!\\)\(\([^()]+\)\)"  # ((word))
    r"|(?<!\\)\[[^\[\]]+\]"  # [word], [from:to:0.5]
    r"|<(?:lora|lyco|locon|hypernet|ti|embedding):[^<>]*>"
    r"|\bembedding:\S+"
    r"|(?<!\w)\{[^{}]*\|[^{}]*\}"  # {one|other}
    r"|\b(?:BREAK|AND)\b(?=\s+\S)"
)


def warn_about_prompts(model: StableDiffusion_XL | StableDiffusion_1, prompts: Iterable[str]) -> None:
    """Warn about prompts that are too long, and about the syntax of other programs, which is read as plain text.

    Args:
        model: The model. The embedded one has words of its own, and is left out.
        prompts: The prompts.
    """
    for message in describe_prompts(model, prompts):
        warnings.warn(message, Note, stacklevel=3)


def describe_prompts(model: StableDiffusion_XL | StableDiffusion_1, prompts: Iterable[str]) -> list[str]:
    """Return what `warn_about_prompts` warns about: a line for each prompt that is too long, and one for syntax."""
    prompts, tokenizer = list(prompts), find_tokenizer(model.clip_text_encoder)
    if tokenizer is None:
        return []
    messages = [
        f"the prompt {_shorten(prompt)!r} is longer than {tokenizer.sequence_length} tokens; "
        f"the model does not see its end: {cut!r}"
        for prompt, cut in zip(prompts, long_prompts(model, prompts), strict=True)
        if cut
    ]
    found = next(((prompt, match[0]) for prompt in prompts if (match := SYNTAX.search(prompt))), None)
    if found is not None:
        messages.append(
            f"the prompt {_shorten(found[0])!r} is read word for word: {_shorten(found[1])!r} has no special meaning"
            " here (weights, BREAK and <lora:…> are the syntax of other programs)"
        )
    return messages


def long_prompts(model: StableDiffusion_XL | StableDiffusion_1, prompts: Iterable[str]) -> list[str]:
    """Return what is cut off each prompt, from the first word that does not fit: "" where nothing is.

    A text encoder reads 77 tokens, two of them its own.

    Args:
        model: The model.
        prompts: The prompts.
    """
    tokenizer = find_tokenizer(model.clip_text_encoder)
    return ["" if tokenizer is None else tokenizer.cut(prompt) for prompt in prompts]


def _shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
