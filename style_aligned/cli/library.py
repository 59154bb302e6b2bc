"""The heavy parts of the library, imported when they are called."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from style_aligned.cli import inputs
from style_aligned.cli.console import warn
from style_aligned.cli.options import ModelOptions

if TYPE_CHECKING:
    from style_aligned.models.model import Model
else:
    Model = Any  # annotations are evaluated, and it takes seconds to import

UNKNOWN_WORDS = 8  # to name


def load_model(
    name: str, options: ModelOptions, bank_device: str | None = None, extras: Mapping[str, Any] | None = None
) -> Model:
    """Load a model by its name or path.

    Args:
        name: The name.
        options: Where it computes, in which precision, and what takes the place of its own parts.
        bank_device: Another device that has to be there.
        extras: What goes beside StyleAligned, as a set keeps it.
    """
    from style_aligned.models.checkpoints import load_model
    from style_aligned.models.devices import find_device

    inputs.check_model_name(name)
    if bank_device is not None:
        find_device(bank_device)
    model = load_model(name, **options.keywords)
    if extras:
        from style_aligned.sets.extras import add_extras

        add_extras(model, extras)
    return model


def is_embedded(model: Model) -> bool:
    """Return whether a model is the embedded one."""
    return hasattr(getattr(model.clip_text_encoder, "tokenizer", None), "unknown_words")


def warn_about_prompts(model: Model, texts: Sequence[str]) -> None:
    """Warn about what a model will not make of prompts.

    That is words that it does not know, prompts of which it knows no word at all, and ends that it does not see.

    Args:
        model: The model.
        texts: The prompts.
    """
    tokenizer: Any = getattr(model.clip_text_encoder, "tokenizer", None)
    if hasattr(tokenizer, "unknown_words"):
        unknown = list(dict.fromkeys(word for text in texts for word in tokenizer.unknown_words(text)))
        if unknown:
            more = f" and {len(unknown) - UNKNOWN_WORDS} more" if len(unknown) > UNKNOWN_WORDS else ""
            warn(
                f"the embedded model does not know {', '.join(map(repr, unknown[:UNKNOWN_WORDS]))}{more}:"
                " `style-aligned concepts` lists what it draws"
            )
        meaningless = [text for text in texts if not tokenizer.known_words(text)]
        if meaningless:
            warn(
                f"{_count(len(meaningless), 'prompt')} without any word that the embedded model knows, such as"
                f" {meaningless[0][:80]!r}: it draws anything"
            )
        limit = tokenizer.sequence_length - 2
        long = [text for text in texts if len(tokenizer.encode(text)) - 2 > limit]
        if long:
            warn(f"{_count(len(long), 'prompt')} longer than {limit} words: the embedded model does not see the rest")
        return

    from style_aligned.models.checkpoints.prompts import describe_prompts

    for message in describe_prompts(model, texts):
        warn(message)


def warn_about_size(model: Model, size: tuple[int, int]) -> None:
    """Warn about a size that a model was not trained for.

    Args:
        model: The model.
        size: The height and width.
    """
    from style_aligned.models.family import default_size

    trained = default_size(model)
    area_ratio = size[0] * size[1] / (trained[0] * trained[1])
    if size != trained if is_embedded(model) else not 0.5 <= area_ratio <= 2:
        warn(
            f"the model was trained for images of about {trained[1]}x{trained[0]}:"
            f" at {size[1]}x{size[0]} objects may double or fall apart"
        )


def _count(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"
